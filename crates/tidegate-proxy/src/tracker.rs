//! What the edge knows of requests to HTTP trackers: how many announces and scrapes, and how they ended.
//!
//! A tracker says 200 to everything, so the status tells nothing. The body is looked at while it passes, piece
//! by piece and without a copy; nothing of it waits. Rules without a tracker pay for none of this. Must not
//! change a request or an answer.

use std::sync::Arc;

use http::{HeaderMap, Method, header};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tidegate_model::RouteId;
use tidegate_tracker::FailureClass;
use tidegate_tracker::announce::{self, Event, Request};
use tidegate_tracker::bencode::{Answer, Scanner, Text};

use crate::access_log::REDACTED;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    route: String,
    rule: String,
    event: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabels {
    route: String,
    rule: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    route: String,
    rule: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    route: String,
    rule: String,
    reason: &'static str,
}

/// How an announce or scrape ended that the tracker answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// With peers or counts.
    Ok,
    /// With a `failure reason`.
    Failure,
    /// With something that is no answer of a tracker, such as a page of another program.
    Other,
    /// With a content coding, so that nothing is known.
    Encoded,
    /// Before its end.
    Cut,
}

impl Ending {
    const ALL: [Self; 5] = [
        Self::Ok,
        Self::Failure,
        Self::Other,
        Self::Encoded,
        Self::Cut,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failure => "failure",
            Self::Other => "other",
            Self::Encoded => "encoded",
            Self::Cut => "cut",
        }
    }
}

/// Metrics of all trackers.
#[derive(Debug, Default)]
pub(crate) struct TrackerFamilies {
    announces: Family<EventLabels, Counter>,
    scrapes: Family<RuleLabels, Counter>,
    answers: Family<ResultLabels, Counter>,
    failures: Family<FailureLabels, Counter>,
}

impl TrackerFamilies {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "tracker_announces",
            "Announces to HTTP trackers, by event",
            self.announces.clone(),
        );
        registry.register(
            "tracker_scrapes",
            "Scrapes of HTTP trackers",
            self.scrapes.clone(),
        );
        registry.register(
            "tracker_answers",
            "Answers of HTTP trackers to announces and scrapes, by result",
            self.answers.clone(),
        );
        registry.register(
            "tracker_failures",
            "Answers of HTTP trackers with a failure reason, by class",
            self.failures.clone(),
        );
    }

    /// Handles for one rule. Every series is there from the first request on, so that rates begin at zero.
    pub(crate) fn of(&self, route: &RouteId, rule: &str) -> TrackerMetrics {
        let (route, rule) = (route.to_string(), rule.to_owned());
        TrackerMetrics {
            announces: Event::ALL.map(|event| {
                self.announces.get_or_create_owned(&EventLabels {
                    route: route.clone(),
                    rule: rule.clone(),
                    event: event.as_str(),
                })
            }),
            answers: Ending::ALL.map(|ending| {
                self.answers.get_or_create_owned(&ResultLabels {
                    route: route.clone(),
                    rule: rule.clone(),
                    result: ending.as_str(),
                })
            }),
            failures: FailureClass::ALL.map(|class| {
                self.failures.get_or_create_owned(&FailureLabels {
                    route: route.clone(),
                    rule: rule.clone(),
                    reason: class.as_str(),
                })
            }),
            scrapes: self
                .scrapes
                .get_or_create_owned(&RuleLabels { route, rule }),
        }
    }
}

/// Handles for one rule.
#[derive(Debug)]
pub(crate) struct TrackerMetrics {
    announces: [Counter; Event::ALL.len()],
    scrapes: Counter,
    answers: [Counter; Ending::ALL.len()],
    failures: [Counter; FailureClass::ALL.len()],
}

/// One announce or scrape.
pub(crate) struct TrackerWatch {
    metrics: Arc<TrackerMetrics>,
    seen: Seen,
}

/// What came of the backend's answer.
enum Seen {
    /// There is none yet.
    Nothing,
    /// Its body cannot be read.
    Encoded,
    Body(Scanner),
}

/// What the tracker said beside peers, for the log: without keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) failure: Option<String>,
    pub(crate) warning: Option<String>,
}

impl TrackerWatch {
    /// Counts the request. None if it is neither announce nor scrape, or an answer has no body.
    pub(crate) fn begin(
        metrics: impl FnOnce() -> Arc<TrackerMetrics>,
        method: &Method,
        target: &str,
    ) -> Option<Box<Self>> {
        let asked = announce::classify(target).filter(|_| *method != Method::HEAD)?;
        let metrics = metrics();
        match asked {
            Request::Announce(event) => metrics.announces[event as usize].inc(),
            Request::Scrape => metrics.scrapes.inc(),
        };
        let seen = Seen::Nothing;
        Some(Box::new(Self { metrics, seen }))
    }

    /// The backend has answered with this header.
    pub(crate) fn answered(&mut self, headers: &HeaderMap) {
        let identity =
            |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        self.seen = if codings.all(identity) {
            Seen::Body(Scanner::default())
        } else {
            Seen::Encoded
        };
    }

    /// A piece of the answer's body passes.
    pub(crate) fn passes(&mut self, piece: &[u8]) {
        if let Seen::Body(scanner) = &mut self.seen {
            scanner.feed(piece);
        }
    }

    /// Counts the answer; `whole` says whether all of it has passed.
    pub(crate) fn end(self, whole: bool) -> Said {
        let mut said = Said::default();
        let ending = match self.seen {
            // The edge answered itself, which other metrics count.
            Seen::Nothing => return said,
            Seen::Encoded => Ending::Encoded,
            Seen::Body(scanner) => {
                let (answer, warning) = scanner.finish();
                said.warning = warning.as_ref().map(without_keys);
                match answer {
                    Answer::Failure(reason) => {
                        let class = FailureClass::of(reason.as_str());
                        self.metrics.failures[class as usize].inc();
                        said.failure = Some(without_keys(&reason));
                        Ending::Failure
                    }
                    _ if !whole => Ending::Cut,
                    Answer::Announce | Answer::Scrape => Ending::Ok,
                    Answer::OtherDictionary | Answer::NotBencode => Ending::Other,
                    Answer::Cut => Ending::Cut,
                }
            }
        };
        self.metrics.answers[ending as usize].inc();
        said
    }
}

fn without_keys(text: &Text) -> String {
    announce::hide_keys_in_text(text.as_str(), REDACTED).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_in_the_order_of_their_words() {
        for (index, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index);
        }
        for (index, ending) in Ending::ALL.into_iter().enumerate() {
            assert_eq!(ending as usize, index);
        }
        for (index, class) in FailureClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index);
        }
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_not_guessed_at() {
        let families = TrackerFamilies::default();
        let metrics = Arc::new(families.of(&RouteId::new("default", "t"), "http1"));
        let counts =
            |metrics: &TrackerMetrics| Ending::ALL.map(|e| metrics.answers[e as usize].get());
        let watch =
            || TrackerWatch::begin(|| Arc::clone(&metrics), &Method::GET, "/announce").unwrap();

        let mut gzipped = watch();
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_ENCODING,
            http::HeaderValue::from_static("gzip"),
        );
        gzipped.answered(&headers);
        gzipped.passes(b"d14:failure reason1:xe");
        assert_eq!(gzipped.end(true), Said::default());
        assert_eq!(counts(&metrics), [0, 0, 0, 1, 0]);

        // The edge's own page is no answer of the tracker.
        let mut unanswered = watch();
        unanswered.passes(b"<html>");
        unanswered.end(true);
        assert_eq!(counts(&metrics), [0, 0, 0, 1, 0]);

        let mut identity = watch();
        headers.insert(
            header::CONTENT_ENCODING,
            http::HeaderValue::from_static("identity"),
        );
        identity.answered(&headers);
        identity.passes(b"d8:intervali60e5:peers");
        identity.passes(b"6:abcdefe");
        // All of the dictionary, but not of what was announced.
        identity.end(false);
        assert_eq!(counts(&metrics), [0, 0, 0, 1, 1]);
        assert!(TrackerWatch::begin(|| unreachable!(), &Method::GET, "/health_check").is_none());
        assert!(TrackerWatch::begin(|| unreachable!(), &Method::HEAD, "/announce").is_none());
    }
}
