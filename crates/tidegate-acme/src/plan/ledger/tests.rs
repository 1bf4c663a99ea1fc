//! The limits against orders: what is allowed, what is refused, until when.

use super::*;
use crate::plan::moment::{MINUTE, parse_rfc3339};

fn start() -> SystemTime {
    parse_rfc3339("2026-11-01T00:00:00Z").unwrap()
}

fn names(list: &str) -> Vec<HostPattern> {
    list.split_whitespace()
        .map(|name| HostPattern::parse(name).unwrap())
        .collect()
}

fn refused(verdict: &Verdict) -> (LimitName, SystemTime) {
    match verdict {
        Verdict::Allowed => panic!("allowed"),
        Verdict::NotBefore(refusal) => (refusal.limit, refusal.at),
    }
}

/// Orders as fast as allowed until refused; how many, and the refusal.
fn order_until_refused(
    ledger: &mut Ledger,
    limits: &Limits,
    kind: OrderKind,
    set: impl Fn(u32) -> Vec<HostPattern>,
    now: SystemTime,
) -> (u32, Refusal) {
    for count in 0..1000 {
        let names = set(count);
        match ledger.may_order(limits, &names, kind, now) {
            Verdict::Allowed => ledger.record_order(limits, &names, kind, now),
            Verdict::NotBefore(refusal) => return (count, refusal),
        }
        ledger.record_success(&names, now);
    }
    panic!("never refused")
}

#[test]
fn each_limit_is_met_and_refills_as_published() {
    type Set = fn(u32) -> Vec<HostPattern>;
    let cases: [(&str, Set, u32, LimitName, Duration); 4] = [
        (
            "exact set",
            |_| names("a.example.com b.example.com"),
            5,
            LimitName::CertificatesPerSet,
            33 * HOUR + 36 * MINUTE,
        ),
        (
            "domain",
            |n| names(&format!("n{n}.example.co.uk")),
            50,
            LimitName::CertificatesPerDomain,
            Duration::from_millis(12_096_000),
        ),
        (
            "account",
            |n| names(&format!("n{n}.example-{n}.com")),
            300,
            LimitName::OrdersPerAccount,
            Duration::from_secs(36),
        ),
        (
            "IPv6 /64",
            |n| names(&format!("2001:db8::{n:x}")),
            50,
            LimitName::CertificatesPerDomain,
            Duration::from_millis(12_096_000),
        ),
    ];
    for (name, set, count, limit, refill) in cases {
        let mut ledger = Ledger::default();
        let (orders, refusal) =
            order_until_refused(&mut ledger, &LETS_ENCRYPT, OrderKind::New, set, start());
        assert_eq!((orders, refusal.limit), (count, limit), "{name}");
        assert_eq!(between(start(), refusal.at), refill, "{name}");
        // One comes back then, and only one.
        let (orders, _) = order_until_refused(
            &mut ledger,
            &LETS_ENCRYPT,
            OrderKind::New,
            |n| set(n + 1000),
            refusal.at,
        );
        assert_eq!(orders, 1, "{name}");
        // After the whole period all are back.
        let later = after(refusal.at, 8 * DAY);
        let (orders, _) = order_until_refused(
            &mut ledger,
            &LETS_ENCRYPT,
            OrderKind::New,
            |n| set(n + 2000),
            later,
        );
        assert_eq!(orders, count, "{name}");
    }
    // Addresses of other /64 and other IPv4 addresses have their own.
    for (one, other) in [
        ("2001:db8::1", "2001:db8:0:1::1"),
        ("192.0.2.1", "192.0.2.2"),
    ] {
        assert_ne!(
            registered_domain(&names(one)[0]),
            registered_domain(&names(other)[0])
        );
    }
}

#[test]
fn a_registered_domain_is_what_one_can_buy() {
    for (name, domain) in [
        ("www.example.com", "example.com"),
        ("*.a.b.example.co.uk", "example.co.uk"),
        ("example.com", "example.com"),
        ("blog.someone.github.io", "someone.github.io"),
        ("co.uk", "co.uk"),
        ("box.lan", "box.lan"),
        ("localhost", "localhost"),
        ("192.0.2.7", "192.0.2.7"),
        ("[2001:db8:1:2:3::4]", "2001:db8:1:2::/64"),
    ] {
        assert_eq!(registered_domain(&names(name)[0]), domain, "{name}");
    }
}

#[test]
fn a_set_of_names_is_the_same_in_any_order() {
    assert_eq!(
        set_key(&names("b.com a.com b.com")),
        set_key(&names("a.com b.com"))
    );
    assert_ne!(set_key(&names("a.com")), set_key(&names("*.a.com")));
    let many: Vec<HostPattern> = (0..100)
        .flat_map(|n| names(&format!("n{n}.example.com")))
        .collect();
    assert!(set_key(&many).starts_with("sha256:"));
}

#[test]
fn renewals_count_for_less() {
    let set = names("a.example.com b.example.com");
    let mut ledger = Ledger::default();
    // The domain is used up by other names.
    order_until_refused(
        &mut ledger,
        &LETS_ENCRYPT,
        OrderKind::New,
        |n| names(&format!("n{n}.example.com")),
        start(),
    );
    let may = |ledger: &Ledger, kind| ledger.may_order(&LETS_ENCRYPT, &set, kind, start());
    assert_eq!(
        refused(&may(&ledger, OrderKind::New)).0,
        LimitName::CertificatesPerDomain
    );
    assert_eq!(may(&ledger, OrderKind::Renewal), Verdict::Allowed);
    let (renewals, refusal) = order_until_refused(
        &mut ledger,
        &LETS_ENCRYPT,
        OrderKind::Renewal,
        |_| set.clone(),
        start(),
    );
    assert_eq!(
        (renewals, refusal.limit),
        (5, LimitName::CertificatesPerSet)
    );
    assert_eq!(may(&ledger, OrderKind::AriRenewal), Verdict::Allowed);
    for _ in 0..20 {
        ledger.record_order(&LETS_ENCRYPT, &set, OrderKind::AriRenewal, start());
    }
    let unchanged = ledger.may_order(&LETS_ENCRYPT, &set, OrderKind::Renewal, start());
    assert_eq!(
        refused(&unchanged).1,
        refusal.at,
        "ARI renewals use up nothing"
    );
}

#[test]
fn failures_are_counted_by_name_and_give_the_certificate_back() {
    let set = names("good.example.com *.bad.example.com");
    let failed = names("*.bad.example.com");
    let mut ledger = Ledger::default();
    let mut now = start();
    for _ in 0..5 {
        assert_eq!(
            ledger.may_order(&LETS_ENCRYPT, &set, OrderKind::New, now),
            Verdict::Allowed
        );
        ledger.record_order(&LETS_ENCRYPT, &set, OrderKind::New, now);
        ledger.record_failure(&LETS_ENCRYPT, &set, OrderKind::New, &failed, now);
        now += MINUTE;
    }
    let verdict = ledger.may_order(&LETS_ENCRYPT, &set, OrderKind::New, now);
    let Verdict::NotBefore(refusal) = verdict else {
        panic!("allowed")
    };
    assert_eq!(refusal.limit, LimitName::FailuresPerName);
    assert_eq!(
        refusal.sentence,
        "5 of 5 failed authorizations per name in 1 hour are used for bad.example.com; the next is \
         allowed at 2026-11-01 00:12 UTC, in 7 minutes"
    );
    // The wildcard's parent is the same identifier, another name is not.
    let may = |list| ledger.may_order(&LETS_ENCRYPT, &names(list), OrderKind::New, now);
    assert_eq!(
        refused(&may("bad.example.com")).0,
        LimitName::FailuresPerName
    );
    assert_eq!(may("good.example.com"), Verdict::Allowed);
    // The five certificates were given back, the five orders were not.
    let budget = |limit| {
        let budgets = ledger.remaining(&LETS_ENCRYPT, &set, OrderKind::New, now);
        budgets
            .into_iter()
            .find(|budget| budget.limit == limit)
            .unwrap()
            .left
    };
    assert_eq!(budget(LimitName::CertificatesPerSet), 5);
    assert_eq!(budget(LimitName::CertificatesPerDomain), 50);
    // 300 less 5, and four minutes have brought them back.
    assert_eq!(budget(LimitName::OrdersPerAccount), 300);
    assert_eq!(
        ledger
            .orders()
            .iter()
            .filter(|o| o.result == OrderResult::Failed)
            .count(),
        5
    );
}

#[test]
fn failures_in_a_row_end_with_a_success() {
    let set = names("a.example.com");
    let limits = Limits {
        failures_per_name: None,
        consecutive_failures_per_name: Some(Rate {
            burst: 3,
            period_seconds: 3 * 86_400,
        }),
        ..Limits::default()
    };
    let mut ledger = Ledger::default();
    for _ in 0..3 {
        ledger.record_order(&limits, &set, OrderKind::New, start());
        ledger.record_failure(&limits, &set, OrderKind::New, &set, start());
    }
    let verdict = ledger.may_order(&limits, &set, OrderKind::New, start());
    assert_eq!(
        refused(&verdict),
        (LimitName::ConsecutiveFailuresPerName, start() + DAY)
    );
    ledger.record_success(&set, start());
    assert_eq!(
        ledger.may_order(&limits, &set, OrderKind::New, start()),
        Verdict::Allowed
    );
}

#[test]
fn a_crash_between_order_and_outcome_counts() {
    let set = names("a.example.com");
    let mut ledger = Ledger::default();
    for _ in 0..5 {
        ledger.record_order(&LETS_ENCRYPT, &set, OrderKind::New, start());
        let stored = serde_json::to_string(&ledger).unwrap();
        ledger = serde_json::from_str(&stored).unwrap();
    }
    let verdict = ledger.may_order(&LETS_ENCRYPT, &set, OrderKind::New, start());
    assert_eq!(refused(&verdict).0, LimitName::CertificatesPerSet);
    assert!(
        ledger
            .orders()
            .iter()
            .all(|order| order.result == OrderResult::Pending)
    );
}

#[test]
fn the_words_of_a_refusal_are_understood() {
    use LimitName::*;
    let url = "see https://letsencrypt.org/docs/rate-limits/";
    for (detail, limit, subject, until, paused) in [
        (format!("too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, retry after 2026-11-02 03:04:05 UTC: {url}#new-certificates-per-exact-set-of-identifiers"), CertificatesPerSet, None, Some("2026-11-02T03:04:05Z"), false),
        (format!("too many certificates (50) already issued for \"example.co.uk\" in the last 168h0m0s, retry after 2026-11-03 00:00:00 UTC: {url}"), CertificatesPerDomain, Some("example.co.uk"), Some("2026-11-03T00:00:00Z"), false),
        ("Error creating new order :: too many certificates already issued for \"domain.tld\". Retry after 2026-11-01T19:00:00Z: see https://letsencrypt.org/docs/rate-limits/".to_owned(), CertificatesPerDomain, Some("domain.tld"), Some("2026-11-01T19:00:00Z"), false),
        (format!("too many new orders (300) from this account in the last 3h0m0s, retry after 2026-11-01 00:00:36 UTC: {url}"), OrdersPerAccount, None, Some("2026-11-01T00:00:36Z"), false),
        (format!("too many failed authorizations (5) for \"Bad.Example.com\" in the last 1h0m0s, retry after 2026-11-01 00:12:00 UTC: {url}"), FailuresPerName, Some("bad.example.com"), Some("2026-11-01T00:12:00Z"), false),
        (format!("too many new registrations (10) from this IP address in the last 3h0m0s, retry after 2026-11-01 00:18:00 UTC: {url}"), AccountsPerAddress, None, Some("2026-11-01T00:18:00Z"), false),
        ("Your account is temporarily prevented from requesting certificates for a.example.com, b.example.com and possibly others. Please visit: https://portal.example/unpause?jwt=x".to_owned(), ConsecutiveFailuresPerName, Some("a.example.com"), None, true),
        ("too many failed authorizations recently: see https://letsencrypt.org/docs/failed-validation-limit/".to_owned(), ConsecutiveFailuresPerName, None, None, true),
        ("Service busy; retry later.".to_owned(), Other, None, None, false),
        ("retry after soon, retry after 2026-99-99 99:99:99 UTC".to_owned(), Other, None, None, false),
        ("retry after 2026-11-0ä".to_owned(), Other, None, None, false),
        (String::new(), Other, None, None, false),
    ] {
        let read = parse_rate_limit_detail(&detail);
        assert_eq!(
            read,
            RateLimitDetail {
                limit,
                subject: subject.map(str::to_owned),
                until: until.map(|text| parse_rfc3339(text).unwrap()),
                paused,
            },
            "{detail}"
        );
    }
}

#[test]
fn a_refusal_holds_for_what_it_is_about() {
    type Case = (
        &'static str,
        OrderKind,
        Option<SystemTime>,
        Duration,
        &'static str,
        &'static str,
    );
    let order = names("a.example.com b.example.com");
    let header = Some(start() + 2 * HOUR);
    let cases: &[Case] = &[
        // detail, refused as, header, wait, refuses "list:kind", allows
        (
            "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, retry after 2026-11-01 05:00:00 UTC",
            OrderKind::New,
            header,
            5 * HOUR,
            "b.example.com a.example.com:new a.example.com b.example.com:new",
            "a.example.com:new a.example.com b.example.com:ari",
        ),
        (
            "too many certificates (50) already issued for \"example.com\" in the last 168h0m0s, retry after 2026-11-01 05:00:00 UTC",
            OrderKind::New,
            None,
            5 * HOUR,
            "z.example.com:new",
            "z.example.org:new z.example.com:renewal",
        ),
        (
            "too many failed authorizations (5) for \"b.example.com\" in the last 1h, retry after 2026-11-01 00:12:00 UTC",
            OrderKind::Renewal,
            None,
            12 * MINUTE,
            "b.example.com:new *.b.example.com:renewal",
            "a.example.com:new b.example.com:ari",
        ),
        (
            "too many new orders (300) from this account in the last 3h0m0s, retry after 2026-11-01 00:00:36 UTC",
            OrderKind::New,
            None,
            Duration::from_secs(36),
            "x.example:new",
            "x.example:renewal",
        ),
        (
            "Service busy; retry later.",
            OrderKind::New,
            header,
            2 * HOUR,
            "x.example:new x.example:ari",
            "",
        ),
        (
            "Service busy; retry later.",
            OrderKind::New,
            None,
            HOUR,
            "x.example:ari",
            "",
        ),
        (
            "something else, retry after 9999-01-01 00:00:00 UTC",
            OrderKind::New,
            None,
            7 * DAY,
            "x.example:ari",
            "",
        ),
        (
            "temporarily prevented from requesting certificates for b.example.com and possibly others.",
            OrderKind::AriRenewal,
            None,
            DAY,
            "b.example.com:ari",
            "a.example.com:new",
        ),
        (
            "retry after 2020-01-01 00:00:00 UTC",
            OrderKind::New,
            None,
            Duration::ZERO,
            "",
            "x.example:new",
        ),
    ];
    for (detail, kind, header, wait, refuses, allows) in cases {
        let mut ledger = Ledger::default();
        let until = ledger.rate_limited(&order, *kind, *header, detail, start());
        assert_eq!(between(start(), until), *wait, "{detail}");
        let verdicts = |list: &str| -> Vec<Verdict> {
            let mut verdicts = Vec::new();
            let mut set = Vec::new();
            for word in list.split_whitespace() {
                let (name, kind) = word
                    .rsplit_once(':')
                    .map_or((word, None), |(n, k)| (n, Some(k)));
                set.extend(names(name));
                let kind = match kind {
                    None => continue,
                    Some("new") => OrderKind::New,
                    Some("renewal") => OrderKind::Renewal,
                    Some("ari") => OrderKind::AriRenewal,
                    Some(other) => panic!("{other}"),
                };
                verdicts.push(ledger.may_order(&Limits::default(), &set, kind, start()));
                set.clear();
            }
            verdicts
        };
        for verdict in verdicts(refuses) {
            assert_eq!(refused(&verdict).1, until, "{detail}");
        }
        assert!(
            verdicts(allows).iter().all(|v| *v == Verdict::Allowed),
            "{detail}"
        );
        let over = ledger.may_order(&Limits::default(), &order, OrderKind::New, until);
        assert_eq!(over, Verdict::Allowed, "{detail}: over at {until:?}");
    }
}

#[test]
fn what_is_left_is_said_scarcest_first() {
    let set = names("a.example.com");
    let mut ledger = Ledger::default();
    for _ in 0..2 {
        ledger.record_order(&LETS_ENCRYPT, &set, OrderKind::New, start());
    }
    let budgets = ledger.remaining(&LETS_ENCRYPT, &set, OrderKind::New, start());
    let told: Vec<String> = budgets
        .iter()
        .map(|b| format!("{} {} {}/{}", b.limit.reason(), b.scope, b.left, b.of))
        .collect();
    assert_eq!(
        told,
        [
            "CertificatesPerSet a.example.com 3/5",
            "CertificatesPerDomain example.com 48/50",
            "OrdersPerAccount account 298/300",
            "FailuresPerName a.example.com 5/5",
            "ConsecutiveFailuresPerName a.example.com 1152/1152",
        ]
    );
    assert_eq!(budgets[0].next_at, Some(start() + 33 * HOUR + 36 * MINUTE));
    assert_eq!(budgets[3].next_at, None);
    let text = |kind| {
        let left = ledger.remaining(&LETS_ENCRYPT, &set, kind, start());
        let left: Vec<String> = left.iter().take(2).map(ToString::to_string).collect();
        left.join(", ")
    };
    assert_eq!(
        text(OrderKind::New),
        "3 of 5 certificates for the same set of names, \
         48 of 50 new certificates per registered domain for example.com"
    );
    assert_eq!(
        text(OrderKind::Renewal),
        "3 of 5 certificates for the same set of names, \
         5 of 5 failed authorizations per name for a.example.com"
    );
    assert_eq!(text(OrderKind::AriRenewal), "");
    assert!(
        ledger
            .remaining(&Limits::default(), &set, OrderKind::New, start())
            .is_empty()
    );
}

#[test]
fn accounts_are_limited_too() {
    let mut ledger = Ledger::default();
    for _ in 0..10 {
        assert_eq!(
            ledger.may_register(&LETS_ENCRYPT, start()),
            Verdict::Allowed
        );
        ledger.record_account(&LETS_ENCRYPT, start());
    }
    let verdict = ledger.may_register(&LETS_ENCRYPT, start());
    assert_eq!(
        refused(&verdict),
        (LimitName::AccountsPerAddress, start() + 18 * MINUTE)
    );
}

#[test]
fn the_directory_chooses_the_limits() {
    for (directory, limits) in [
        (
            "https://acme-v02.api.letsencrypt.org/directory",
            LETS_ENCRYPT,
        ),
        (
            "https://ACME-v02.api.letsencrypt.org:443/directory",
            LETS_ENCRYPT,
        ),
        (
            "https://acme-staging-v02.api.letsencrypt.org/directory",
            LETS_ENCRYPT_STAGING,
        ),
        (
            "https://acme-v02.api.letsencrypt.org.evil.example/directory",
            Limits::default(),
        ),
        ("https://acme.zerossl.com/v2/DV90", Limits::default()),
        ("not a URL", Limits::default()),
    ] {
        assert_eq!(Limits::for_directory(directory), limits, "{directory}");
    }
    assert_eq!(LETS_ENCRYPT.failures_per_hour(), Some(5));
    assert_eq!(Limits::default().failures_per_hour(), None);
    let own: Limits =
        serde_json::from_str(r#"{"ordersPerAccount":{"burst":5,"periodSeconds":60}}"#).unwrap();
    assert_eq!(
        own.orders_per_account.unwrap().refill(),
        Duration::from_secs(12)
    );
}

#[test]
fn a_ledger_stays_small_and_survives_its_json() {
    let mut ledger = Ledger::default();
    for n in 0..2000_u32 {
        let set = names(&format!("n{n}.example-{n}.com"));
        ledger.record_order(&LETS_ENCRYPT, &set, OrderKind::New, start());
        ledger.rate_limited(
            &set,
            OrderKind::New,
            None,
            &format!("too many certificates already issued for \"{n}.com\""),
            start(),
        );
    }
    assert_eq!(ledger.orders().len(), ORDERS_KEPT);
    assert_eq!(ledger.blocks(start()).count(), BLOCKS_KEPT);
    let json = serde_json::to_string(&ledger).unwrap();
    assert_eq!(serde_json::from_str::<Ledger>(&json).unwrap(), ledger);
    ledger.prune(start() + 8 * DAY);
    assert!(ledger.buckets.is_empty() && ledger.blocks.is_empty());
    let future = r#"{"version":1,"of the future":true,"blocks":[{"limit":"new one","kind":"new","until":"2026-11-02T00:00:00Z","detail":"x"}]}"#;
    let read: Ledger = serde_json::from_str(future).unwrap();
    assert_eq!(read.blocks[0].limit, LimitName::Other);
}

#[test]
fn merged_ledgers_count_the_fuller_bucket() {
    let set = names("a.example.com");
    let (mut one, mut two) = (Ledger::default(), Ledger::default());
    one.record_order(&LETS_ENCRYPT, &set, OrderKind::New, start());
    for _ in 0..5 {
        two.record_order(&LETS_ENCRYPT, &set, OrderKind::New, start());
    }
    two.rate_limited(&set, OrderKind::New, None, "busy", start());
    one.merge(&two, start());
    one.merge(&two, start());
    assert_eq!(one.blocks(start()).count(), 1);
    let left = one.remaining(&LETS_ENCRYPT, &set, OrderKind::New, start());
    assert_eq!(
        (left[0].limit, left[0].left),
        (LimitName::CertificatesPerSet, 0)
    );
}

/// A token bucket written the other way round: tokens that flow in, in milliseconds.
struct Tokens {
    level: u128,
    last: SystemTime,
}

impl Tokens {
    fn refill(&mut self, rate: Rate, now: SystemTime) {
        let full = u128::from(rate.burst) * rate.refill().as_millis();
        self.level = (self.level + between(self.last, now).as_millis()).min(full);
        self.last = now;
    }
}

#[test]
fn the_ledger_agrees_with_a_bucket_that_is_refilled() {
    let limits = Limits {
        certificates_per_set: Some(Rate {
            burst: 5,
            period_seconds: 700,
        }),
        ..Limits::default()
    };
    let rate = limits.certificates_per_set.unwrap();
    let (set, mut random) = (names("a.example.com"), fastrand::Rng::with_seed(7));
    let (mut ledger, mut now, mut refused) = (Ledger::default(), start(), 0);
    let mut tokens = Tokens {
        level: u128::from(rate.burst) * rate.refill().as_millis(),
        last: now,
    };
    for _ in 0..5000 {
        now += Duration::from_millis(random.u64(0..150_000));
        tokens.refill(rate, now);
        let allowed = tokens.level >= rate.refill().as_millis();
        let verdict = ledger.may_order(&limits, &set, OrderKind::New, now);
        assert_eq!(verdict == Verdict::Allowed, allowed, "at {now:?}");
        if let Verdict::NotBefore(refusal) = &verdict {
            refused += 1;
            let missing = rate.refill().as_millis() - tokens.level;
            assert_eq!(between(now, refusal.at).as_millis(), missing);
        } else {
            ledger.record_order(&limits, &set, OrderKind::New, now);
            tokens.level -= rate.refill().as_millis();
            if random.bool() {
                ledger.record_failure(&limits, &set, OrderKind::New, &[], now);
                tokens.level += rate.refill().as_millis();
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn orders_against_the_ledgers_advice_do_not_pile_up() {
    let set = names("a.example.com");
    let mut ledger = Ledger::default();
    for _ in 0..50 {
        ledger.record_order(&LETS_ENCRYPT, &set, OrderKind::New, start());
    }
    let verdict = ledger.may_order(&LETS_ENCRYPT, &set, OrderKind::New, start());
    let next = start() + 33 * HOUR + 36 * MINUTE;
    assert_eq!(refused(&verdict), (LimitName::CertificatesPerSet, next));
}
