//! An API server takes whatever the chart renders, and `PodSecurity` lets its pods in.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::chart::{helm, list, objects, one, render};
use crate::support::{Cluster, Kubectl};

const DRY_RUN: [&str; 5] = [
    "apply",
    "--server-side",
    "--force-conflicts",
    "--dry-run=server",
    "--validate=strict",
];

/// Values, and whether pods keep to `PodSecurity` `restricted`.
const VARIANTS: &[(&[&str], bool)] = &[
    (&[], true),
    (
        &[
            "replicas=1",
            "crds.keep=false",
            "service.type=NodePort",
            "service.nodePorts.https=30443",
        ],
        true,
    ),
    (
        &[
            "service.type=ClusterIP",
            "service.ipFamilyPolicy=SingleStack",
            "service.ipFamilies={IPv4}",
        ],
        true,
    ),
    (
        &[
            "service.annotations.load-balancer\\.hetzner\\.cloud/location=fsn1",
            "service.loadBalancerSourceRanges={192.0.2.0/24}",
            "service.loadBalancerClass=example.com/lb",
            "proxyProtocol=required",
            "trustedProxies={10.0.0.0/8}",
        ],
        true,
    ),
    (&["kind=DaemonSet"], true),
    (
        &[
            "kind=DaemonSet",
            "hostPorts.enabled=true",
            "service.enabled=false",
        ],
        false,
    ),
    (
        &[
            "kind=DaemonSet",
            "hostNetwork.enabled=true",
            "service.enabled=false",
        ],
        false,
    ),
    (
        &[
            "hostNetwork.enabled=true",
            "hostNetwork.bindPrivilegedPorts=false",
        ],
        false,
    ),
    (&["watchNamespaces={default}", "rbac.aggregate=false"], true),
    (
        &[
            "networkPolicy.enabled=true",
            "networkPolicy.adminFrom[0].namespaceSelector.matchLabels.name=monitoring",
            "networkPolicy.egress[0].ports[0].port=443",
        ],
        true,
    ),
    (
        &[
            "podMonitor.enabled=true",
            "serviceMonitor.enabled=true",
            "prometheusRule.enabled=true",
            "dashboard.enabled=true",
        ],
        true,
    ),
    (
        &[
            "defaultIssuer.enabled=true",
            "defaultIssuer.termsOfServiceAgreed=true",
            "extraVolumes[0].name=site",
            "extraVolumes[0].configMap.name=site",
            "extraVolumeMounts[0].name=site",
            "extraVolumeMounts[0].mountPath=/srv/tidegate",
            "extraEnv[0].name=A",
            "extraEnv[0].value=b",
            "nodeSelector.a=b",
            "tolerations[0].operator=Exists",
            "priorityClassName=system-node-critical",
            "imagePullSecrets[0].name=pull",
            "commonLabels.team=edge",
            "podLabels.a=b",
            "podAnnotations.a=b",
            "serviceAccount.annotations.a=b",
            "resources.limits.memory=1Gi",
        ],
        true,
    ),
];

/// Definitions of the Prometheus operator's kinds, as far as the chart uses them. Somebody's cluster may have
/// the real ones.
fn install_monitoring(kubectl: &Kubectl) {
    let name = "customresourcedefinition/podmonitors.monitoring.coreos.com";
    if kubectl.attempt(&["get", name]).0 {
        return;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/testdata/monitoring.yaml");
    kubectl.run(&["apply", "--server-side", "-f", file.to_str().unwrap()]);
    kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "-f",
        file.to_str().unwrap(),
    ]);
}

#[test]
fn every_variant_is_taken_and_its_pods_are_as_restricted_as_said() {
    let (Some(cluster), Some(helm)) = (Cluster::shared(), helm()) else {
        return;
    };
    let kubectl = cluster.kubectl();
    install_monitoring(kubectl);
    let namespace = cluster.namespace();
    let restricted = [
        "pod-security.kubernetes.io/enforce=restricted",
        "pod-security.kubernetes.io/warn=restricted",
    ];
    kubectl.run(&[
        "label",
        "namespace",
        namespace.name(),
        restricted[0],
        restricted[1],
    ]);
    for (set, is_restricted) in VARIANTS {
        let objects = render(&helm, "edge", namespace.name(), set);
        let args = [&DRY_RUN[..], &["-f", "-"]].concat();
        let (ok, said) = kubectl.attempt_with(&args, &list(&objects));
        assert!(ok, "{set:?}: {said}");
        // A workload is only warned of, its pods are refused later. The pods of `helm test` are among these.
        assert_eq!(
            !said.contains("Warning:"),
            *is_restricted,
            "{set:?}: {said}"
        );

        let workload = |it: &&Value| it.pointer("/spec/template/spec/containers").is_some();
        let workload = objects.iter().find(workload).unwrap();
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "edge", "namespace": namespace.name()}});
        pod["spec"] = workload["spec"]["template"]["spec"].clone();
        // Made by the chart, and not in a dry run; not what is asked here.
        pod["spec"]["serviceAccountName"] = "default".into();
        let create = ["create", "--dry-run=server", "-f", "-"];
        let (ok, said) = kubectl.attempt_with(&create, &pod.to_string());
        assert_eq!(ok, *is_restricted, "{set:?}: {said}");
        assert!(
            ok || said.contains("violates PodSecurity \"restricted"),
            "{said}"
        );
    }
}

#[test]
fn the_default_issuer_passes_the_rules_of_its_kind() {
    let (Some(cluster), Some(helm)) = (Cluster::shared(), helm()) else {
        return;
    };
    let set = [
        "defaultIssuer.enabled=true",
        "defaultIssuer.termsOfServiceAgreed=true",
        "defaultIssuer.email=admin@example.com",
        "defaultIssuer.spec.solvers[0].name=alpn",
        "defaultIssuer.spec.solvers[0].tlsAlpn01.none=null",
    ];
    let rendered = render(&helm, "edge", "edge", &set);
    let issuer = one(&rendered, "ConfigMap")["data"]["issuer.yaml"]
        .as_str()
        .unwrap();
    let args = [&DRY_RUN[..], &["-f", "-"]].concat();
    let (ok, said) = cluster.kubectl().attempt_with(&args, issuer);
    assert!(ok, "{said}\n{issuer}");
}

#[test]
fn manifests_without_helm_are_taken() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("manifests/install.yaml")).unwrap();
    assert!(!manifest.contains("helm"), "something of Helm's is left");
    // In a dry run nothing is in a namespace that the same run would make.
    let namespace = cluster.namespace();
    let base = root.join("manifests/kustomize/base");
    let base = cluster
        .kubectl()
        .run(&["kustomize", base.to_str().unwrap()]);
    for text in [manifest, base] {
        let mut all = objects(&text);
        let count = all.len();
        all.retain(|object| object["kind"] != "Namespace");
        assert!(all.len() + 1 == count && count > 12, "{count}");
        for object in &mut all {
            if let Some(own) = object.pointer_mut("/metadata/namespace") {
                assert_eq!(*own, "tidegate-system");
                *own = namespace.name().into();
            }
        }
        let args = [&DRY_RUN[..], &["-f", "-"]].concat();
        let (ok, said) = cluster.kubectl().attempt_with(&args, &list(&all));
        assert!(ok, "{said}");
    }
}
