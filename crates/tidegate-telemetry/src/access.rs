//! Requests as the access log tells them, for whoever shows them to people while they happen.
//!
//! What is listened to is the log itself, so that nobody is shown what the log would hide.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Target of the access log's events.
const TARGET: &str = "access";
/// Entries that a slow listener may be behind.
const BEHIND: usize = 1024;

static LISTENED: AtomicBool = AtomicBool::new(false);
static ENTRIES: LazyLock<broadcast::Sender<Arc<AccessEntry>>> =
    LazyLock::new(|| broadcast::Sender::new(BEHIND));

/// A request of the access log: its fields, in the log's order. Fields without a value are left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AccessEntry {
    /// Name and value of each.
    pub fields: Vec<(&'static str, AccessValue)>,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum AccessValue {
    /// A text.
    Text(String),
    /// A count.
    Count(u64),
    /// A number with fractions, such as milliseconds.
    Number(f64),
    /// Yes or no.
    Flag(bool),
}

/// Every request from now on that the access log tells. Costs what it costs only from the first call on.
pub fn access_entries() -> broadcast::Receiver<Arc<AccessEntry>> {
    LISTENED.store(true, Ordering::Relaxed);
    ENTRIES.subscribe()
}

/// Hands events of the access log on.
pub(crate) struct AccessTap;

impl<S: Subscriber> Layer<S> for AccessTap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == TARGET && LISTENED.load(Ordering::Relaxed) {
            let mut entry = AccessEntry::default();
            event.record(&mut entry);
            // Nobody may be listening any more.
            let _ = ENTRIES.send(Arc::new(entry));
        }
    }
}

impl AccessEntry {
    fn add(&mut self, field: &Field, value: AccessValue) {
        self.fields.push((field.name(), value));
    }
}

impl Visit for AccessEntry {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.add(field, AccessValue::Text(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, AccessValue::Text(value.to_owned()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, AccessValue::Count(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, AccessValue::Number(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, AccessValue::Flag(value));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::prelude::*;

    use super::*;

    #[test]
    fn requests_are_heard_and_nothing_else() {
        let mut entries = access_entries();
        let subscriber = tracing_subscriber::registry().with(AccessTap);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "other", path = "/other");
            let absent: Option<&str> = None;
            tracing::info!(target: "access", path = "/a", status = 200_u16, duration_ms = 1.5, absent, client = %"::1");
        });
        let entry = entries.try_recv().unwrap();
        assert_eq!(
            entry.fields,
            [
                ("path", AccessValue::Text("/a".to_owned())),
                ("status", AccessValue::Count(200)),
                ("duration_ms", AccessValue::Number(1.5)),
                ("client", AccessValue::Text("::1".to_owned())),
            ]
        );
        assert!(entries.try_recv().is_err());
    }
}
