//! Examples for Argo CD and Flux: their values are values of the chart, and Argo CD's Lua says the right thing.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::chart::{folder, helm, objects, one, rendered};
use crate::support::program::{self, missing};

fn example(path: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(path);
    objects(&fs::read_to_string(path).unwrap())
}

#[test]
fn values_of_the_examples_are_the_chart_s() {
    let Some(helm) = helm() else {
        return;
    };
    let argo = example("argocd/tidegate.yaml");
    let flux = example("flux/edge/tidegate.yaml");
    let temporary = tempfile::tempdir().unwrap();
    for values in [
        &argo[0]["spec"]["source"]["helm"]["valuesObject"],
        &one(&flux, "HelmRelease")["spec"]["values"],
    ] {
        assert!(values.is_object());
        let file = temporary.path().join("values.yaml");
        fs::write(&file, values.to_string()).unwrap();
        let mut command = Command::new(&helm);
        command.args(["template", "tidegate"]).arg(folder());
        let objects = rendered(command.arg("--values").arg(file)).unwrap();
        // Eight lines of a route are enough with these.
        let issuer = one(&objects, "ConfigMap")["data"]["issuer.yaml"].as_str();
        assert!(issuer.unwrap().contains("mailto:you@example.com"));
    }
}

/// A value as Lua writes it.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(lua).collect();
            format!("{{{}}}", items.join(", "))
        }
        Value::Object(map) => {
            let items: Vec<String> = (map.iter())
                .map(|(key, value)| format!("[{key:?}] = {}", lua(value)))
                .collect();
            format!("{{{}}}", items.join(", "))
        }
        scalar => scalar.to_string(),
    }
}

#[test]
fn argo_cd_is_told_the_health() {
    if missing(&["lua5.4"]) {
        return;
    }
    let map = &example("argocd/argocd-cm.yaml")[0];
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "message": format!("{kind} is {status}")});
    let status = |generation: u32, conditions: &[Value]| {
        let status = json!({"observedGeneration": generation, "conditions": conditions});
        json!({"metadata": {"generation": 2}, "spec": {}, "status": status})
    };
    let mut suspended = status(2, &[condition("Ready", "False")]);
    suspended["spec"]["suspend"] = true.into();
    let ready = condition("Ready", "True");
    for (object, health, message) in [
        (
            json!({"metadata": {"generation": 1}, "spec": {}}),
            "Progressing",
            "Waiting for Tidegate",
        ),
        // As the definitions' default is, right after it was applied.
        (
            json!({"metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": -1}}),
            "Progressing",
            "Waiting for Tidegate",
        ),
        // The status is that of the version before.
        (
            status(1, std::slice::from_ref(&ready)),
            "Progressing",
            "Waiting for Tidegate",
        ),
        (
            status(2, &[condition("Ready", "False")]),
            "Progressing",
            "Ready is False",
        ),
        (
            status(2, std::slice::from_ref(&ready)),
            "Healthy",
            "Ready is True",
        ),
        (
            status(
                2,
                &[
                    condition("Accepted", "False"),
                    condition("Ready", "False"),
                    condition("Stalled", "True"),
                ],
            ),
            "Degraded",
            "Stalled is True",
        ),
        (suspended, "Suspended", "spec.suspend is true"),
    ] {
        for kind in ["TlsRoute", "TunnelAgent", "AcmeIssuer"] {
            let key = format!("resource.customizations.health.edge.tidegate.dev_{kind}");
            let script = map["data"][&key].as_str().unwrap();
            let whole = format!(
                "local obj = {}\nlocal hs = (function()\n{script}\nend)()\nprint(hs.status .. ': ' .. hs.message)\n",
                lua(&object)
            );
            let said = program::succeed(Command::new("lua5.4").args(["-e", &whole]));
            assert_eq!(
                said.trim(),
                format!("{health}: {message}"),
                "{kind}: {object}"
            );
        }
    }
}
