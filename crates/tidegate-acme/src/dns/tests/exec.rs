//! Programs that work, fail, hang and talk too much.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tidegate_model::Secret;

use crate::dns::exec::{Exec, Settings};
use crate::dns::{DnsSolver as _, TxtRecord};

fn script(folder: &TempDir, text: &str) -> Settings {
    let program = folder.path().join("hook");
    std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    Settings {
        program,
        args: Vec::new(),
        env: BTreeMap::from([(
            "API_TOKEN".to_owned(),
            Secret::new("s3cr3t-token".to_owned()),
        )]),
        timeout: Duration::from_secs(20),
    }
}

fn record() -> TxtRecord {
    TxtRecord::new("_acme-challenge.example.test", "value-1")
}

async fn failure(settings: Settings) -> String {
    let name = settings.program.display().to_string();
    let error = Exec::new(settings)
        .unwrap()
        .present(&record(), SystemTime::now())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "DnsProgramFailed");
    error.to_string().replace(&name, "HOOK")
}

#[tokio::test]
async fn program_gets_action_name_value_and_environment() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = script(
        &folder,
        r#"echo "$* | $EXEC_ACTION $EXEC_FQDN $EXEC_VALUE $EXEC_TTL $API_TOKEN ${CARGO_MANIFEST_DIR-none}" >> "$(dirname "$0")/calls""#,
    );
    settings.args = vec!["--zone".to_owned(), "x".to_owned()];
    let solver = Exec::new(settings).unwrap();
    solver.present(&record(), SystemTime::now()).await.unwrap();
    solver.remove(&record(), SystemTime::now()).await.unwrap();
    let calls = std::fs::read_to_string(folder.path().join("calls")).unwrap();
    assert_eq!(
        calls,
        "--zone x present _acme-challenge.example.test. value-1 | present \
         _acme-challenge.example.test. value-1 60 s3cr3t-token none\n\
         --zone x cleanup _acme-challenge.example.test. value-1 | cleanup \
         _acme-challenge.example.test. value-1 60 s3cr3t-token none\n"
    );
}

#[tokio::test]
async fn failures_are_told_without_the_secret() {
    let folder = tempfile::tempdir().unwrap();
    let settings = script(&folder, "echo \"denied for $API_TOKEN\" >&2; exit 3");
    assert_eq!(
        failure(settings).await,
        "run HOOK present: exit status: 3: denied for [redacted]"
    );
    let settings = script(&folder, "kill -9 $$");
    assert!(failure(settings).await.contains("signal: 9"));
    let mut settings = script(&folder, "exec sleep 60");
    settings.timeout = Duration::from_millis(200);
    assert_eq!(
        failure(settings).await,
        "run HOOK present: no end after 0.2 s, killed"
    );
    let mut settings = script(&folder, "");
    settings.program = PathBuf::from("/nonexistent/hook");
    assert!(failure(settings).await.contains("cannot be started"));
    let mut settings = script(&folder, "");
    settings.program = PathBuf::from("hook");
    assert!(Exec::new(settings).is_err());
}

#[tokio::test]
async fn what_a_program_leaves_behind_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let settings = script(&folder, "sleep 15 & exit 0");
    let solver = Exec::new(settings).unwrap();
    let began = std::time::Instant::now();
    solver.present(&record(), SystemTime::now()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(14));
}

#[tokio::test]
async fn much_output_neither_blocks_nor_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let settings = script(
        &folder,
        "head -c 3000000 /dev/zero | tr '\\0' 'x'; head -c 3000000 /dev/zero | tr '\\0' 'y' >&2; exit 1",
    );
    let text = failure(settings).await;
    assert!(text.contains("exit status: 1: …yyy"), "{text}");
    assert!(text.len() < 600, "{}", text.len());
}
