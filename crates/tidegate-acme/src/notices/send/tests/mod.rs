//! Deliveries to real listeners on this machine: HTTP by hyper, SMTP by a scripted server.

mod smtp;
mod webhook;

use std::sync::Mutex;
use std::time::SystemTime;

use super::*;
use crate::notices::{NoticeKind, Severity};

pub(super) fn notice(severity: Severity) -> Notice {
    Notice {
        subject: "default/blog".into(),
        kind: NoticeKind::Failing,
        severity,
        title: "Getting a certificate for a.example keeps failing".into(),
        body: "Route: default/blog\n.a line with a dot first".into(),
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_534_400),
    }
}
