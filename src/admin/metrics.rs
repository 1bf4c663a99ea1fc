//! The metrics of process and configuration, in front of those of the data plane, as OpenMetrics text.
//!
//! Names are documented in `docs/reference/metrics.md`; a test compares the two.

use std::fmt::Write as _;

use tidegate_acme::observed::Observed;

use super::{Admin, acme_metrics, udp_metrics};

/// Renders everything, with the closing `# EOF`.
pub(super) fn render(admin: &Admin) -> String {
    let mut out = Exposition::default();
    process(&mut out);
    configuration(&mut out, admin);
    udp_metrics::relays(&mut out, &admin.udp.counted());
    udp_metrics::ways(&mut out, &admin.udp.states().borrow());
    let mut text = out.0;
    if let Some(edge) = admin.edge.get() {
        text.push_str(&edge.metrics());
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("# EOF\n");
    text
}

fn configuration(out: &mut Exposition, admin: &Admin) {
    let control = admin.control.borrow().clone();
    out.family("tidegate_build", "info", "The running program.");
    out.sample("tidegate_build_info", &[("version", &control.version)], 1.0);
    out.family(
        "tidegate_ready",
        "gauge",
        "1 while traffic should be sent here.",
    );
    let ready = admin.readiness.why_not().is_none();
    out.sample("tidegate_ready", &[], f64::from(u8::from(ready)));
    out.family(
        "tidegate_config_revision",
        "gauge",
        "Number of the published configuration; counts from 1 at each start.",
    );
    let published = admin.store.load_full();
    out.sample("tidegate_config_revision", &[], count(published.revision));
    out.family(
        "tidegate_config_problems",
        "gauge",
        "Problems of the objects, by reason.",
    );
    let mut reasons = std::collections::BTreeMap::<&str, u64>::new();
    for problem in &control.problems {
        *reasons.entry(&problem.reason).or_default() += 1;
    }
    for (reason, number) in reasons {
        out.sample(
            "tidegate_config_problems",
            &[("reason", reason)],
            count(number),
        );
    }
    out.family(
        "tidegate_objects",
        "gauge",
        "Objects in use, by kind; those in state kept are served in their last good version.",
    );
    for objects in &control.objects {
        let current = objects.count.saturating_sub(objects.kept);
        for (state, number) in [("current", current), ("kept", objects.kept)] {
            let labels = [("kind", objects.kind.as_str()), ("state", state)];
            out.sample("tidegate_objects", &labels, count(number as u64));
        }
    }
    let observed = match &*admin.engine.borrow() {
        Some(engine) => engine.observe(),
        None => Observed::default(),
    };
    let routes = &control.routes;
    acme_metrics::certificates(out, &published.snapshot, routes, &observed);
    acme_metrics::engine(out, &observed);
}

/// What `/proc` says; left out where it does not exist.
fn process(out: &mut Exposition) {
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_ascii_whitespace().next())
                .and_then(|value| value.parse::<f64>().ok())
        };
        if let Some(kibibytes) = field("VmRSS:") {
            out.family("process_resident_memory_bytes", "gauge", "Resident memory.");
            out.sample("process_resident_memory_bytes", &[], kibibytes * 1024.0);
        }
        if let Some(threads) = field("Threads:") {
            out.family("process_threads", "gauge", "Threads.");
            out.sample("process_threads", &[], threads);
        }
    }
    if let Some(ticks) = cpu_ticks() {
        out.family("process_cpu_seconds", "counter", "CPU time spent.");
        // The kernel counts in hundredths of a second on every Linux.
        out.sample("process_cpu_seconds_total", &[], ticks / 100.0);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        out.family("process_open_fds", "gauge", "Open file descriptors.");
        out.sample("process_open_fds", &[], count(files.count() as u64));
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        out.family(
            "process_max_fds",
            "gauge",
            "Most file descriptors that may be open.",
        );
        out.sample("process_max_fds", &[], count(limit));
    }
}

fn cpu_ticks() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(super) fn count(number: u64) -> f64 {
    number as f64
}

/// OpenMetrics text in the making.
#[derive(Default)]
pub(super) struct Exposition(String);

impl Exposition {
    #[cfg(test)]
    pub(super) fn into_text(self) -> String {
        self.0
    }

    /// Begins a family; of a counter without `_total`.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}");
    }

    /// Adds a sample to the family that was begun last.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"{}\"", escaped(value));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_escaped() {
        let mut out = Exposition::default();
        out.family("x", "gauge", "A thing.");
        out.sample("x", &[("a", "q\"\\\n"), ("b", "c")], 1.5);
        assert_eq!(
            out.0,
            "# TYPE x gauge\n# HELP x A thing.\nx{a=\"q\\\"\\\\\\n\",b=\"c\"} 1.5\n"
        );
    }

    #[test]
    fn every_name_is_documented() {
        let documented = include_str!("../../docs/reference/metrics.md");
        let source = concat!(
            include_str!("metrics.rs"),
            include_str!("acme_metrics.rs"),
            include_str!("udp_metrics.rs")
        );
        let mut found = 0;
        let names = source.split('"').filter(|text| {
            (text.starts_with("tidegate_") || text.starts_with("process_"))
                && !text.ends_with('_')
                && !text.contains('{')
        });
        for name in names {
            found += 1;
            assert!(
                documented.contains(&format!("`{name}`")),
                "{name} is not documented"
            );
        }
        assert!(found > 20);
    }
}
