//! Targets as clients write them.

use super::*;

#[test]
fn announces_and_scrapes_are_told_from_other_requests() {
    let announce = |event| Some(Request::Announce(event));
    for (target, expected) in [
        ("/announce", announce(Event::None)),
        (
            "/announce?info_hash=%86zsL%94%0Et%D5B&event=started",
            announce(Event::Started),
        ),
        ("/announce?event=completed&x", announce(Event::Completed)),
        ("/announce?a=b&event=stopped", announce(Event::Stopped)),
        ("/announce?event=", announce(Event::None)),
        ("/announce?event=paused", announce(Event::None)),
        ("/announce?event=Started", announce(Event::None)),
        ("/announce?%65vent=st%61rted", announce(Event::Started)),
        // The first of two counts.
        (
            "/announce?event=stopped&event=started",
            announce(Event::Stopped),
        ),
        ("/announce?xevent=started", announce(Event::None)),
        (
            "/announce/YZSl4lMZupRu?event=started",
            announce(Event::Started),
        ),
        ("/YZSl4lMZupRu/announce", announce(Event::None)),
        (
            "/tracker1/announce.php?event=stopped",
            announce(Event::Stopped),
        ),
        ("/announce.php/KEY", announce(Event::None)),
        ("/scrape?info_hash=%00&info_hash=%01", Some(Request::Scrape)),
        ("/scrape/KEY", Some(Request::Scrape)),
        ("/a/b/scrape", Some(Request::Scrape)),
        ("/%61nnounce", announce(Event::None)),
        ("/", None),
        ("", None),
        ("*", None),
        ("/announces", None),
        ("/api/v1/stats?token=x", None),
        ("/announce/a/b", None),
        ("/health_check?x=/announce", None),
        ("/%zznounce", None),
        ("/announce%", None),
    ] {
        assert_eq!(classify(target), expected, "{target}");
    }
}

#[test]
fn address_parameters_are_cut_out_and_nothing_else_changes() {
    for (target, expected) in [
        (
            "/announce?info_hash=%0e%0E'(~&ip=1.2.3.4&port=1",
            Some("/announce?info_hash=%0e%0E'(~&port=1"),
        ),
        ("/announce?ip=1.2.3.4&port=1", Some("/announce?port=1")),
        (
            "/announce?port=1&ipv6=2001:db8::1",
            Some("/announce?port=1"),
        ),
        (
            "/announce?port=1&ipv4=1.2.3.4&ipv6=%3A%3A1&ip=x&&a&",
            Some("/announce?port=1&&a&"),
        ),
        ("/announce?ip=1", Some("/announce")),
        ("/announce?ip&port=1", Some("/announce?port=1")),
        ("/announce?%69p=1&i%70v4=2&port=1", Some("/announce?port=1")),
        ("/a?info_hash=x&ip=1", Some("/a?info_hash=x")),
        ("/a?inf%6F_hash=x&ip=1", Some("/a?inf%6F_hash=x")),
        ("/announce?x=a?ip=1&ip=2", Some("/announce?x=a?ip=1")),
        ("/announce?port=1&xip=1&ipx=2&IP=3", None),
        ("/announce?port=1", None),
        ("/announce", None),
        ("/api/v1/bans?ip=1.2.3.4", None),
    ] {
        assert_eq!(strip_addresses(target).as_deref(), expected, "{target}");
    }
}

#[test]
fn keys_beside_the_verb_are_hidden() {
    for (path, expected) in [
        ("/announce/YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ", "/announce/#"),
        ("/YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ/announce", "/#/announce"),
        ("/announce/short", "/announce/#"),
        ("/scrape/1a2b-3c", "/scrape/#"),
        (
            "/announce/9b2e0c4e-51b3-4d0e-8d3e-0f6f7f1a2b3c",
            "/announce/#",
        ),
        ("/1a2b3c4d/announce.php", "/#/announce.php"),
        ("/announce/caf%C3%A9", "/announce/#"),
        ("/torrust/announce", "/torrust/announce"),
        ("/http1/announce", "/http1/announce"),
        ("/announce/", "/announce/"),
        ("/announce", "/announce"),
        (
            "/api/v1/torrent/3b245504cf5f11bbdbe1201cea6a6bf45aee1bc0",
            "/api/v1/torrent/#",
        ),
        ("", ""),
        ("*", "*"),
    ] {
        assert_eq!(hide_keys(path, "#"), expected, "{path}");
    }
}

#[test]
fn keys_in_a_failure_are_hidden() {
    for (text, expected) in [
        ("invalid info_hash", "invalid info_hash"),
        (
            "The supplied key: Key(\"YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ\"), is not valid",
            "The supplied key: Key(\"#\"), is not valid",
        ),
        (
            "invalid action in HTTP request: /announce/YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ?x",
            "invalid action in HTTP request: /announce/#?x",
        ),
        ("internationalisation", "internationalisation"),
        ("a1b2c3d4e5f6a7b8", "#"),
        ("ä 9b2e0c4e-51b3-4d0e ö 9b2e0c4e-51b3-4d0e", "ä # ö #"),
        (
            "in src/servers/http/v1/services/peer_ip_resolver.rs:131:23",
            "in src/servers/http/v1/services/peer_ip_resolver.rs:131:23",
        ),
        ("", ""),
    ] {
        assert_eq!(hide_keys_in_text(text, "#"), expected, "{text}");
    }
}

/// Whatever a target looks like, taking out addresses takes out whole parameters and keeps the order of the
/// rest, and nothing is left to take out afterwards.
#[test]
fn any_target_loses_address_parameters_only() {
    let mut rng = fastrand::Rng::with_seed(6);
    let parts = [
        "ip=1",
        "ipv4=",
        "ipv6=::1",
        "%69p=2",
        "i%7",
        "ip",
        "info_hash=%0e",
        "a=ip=1",
        "",
        "?ip=3",
        "port=1",
        "\u{e4}=%",
        "event=started",
    ];
    for _ in 0..20_000 {
        let pairs: Vec<&str> = (0..rng.usize(0..7))
            .map(|_| parts[rng.usize(..parts.len())])
            .collect();
        let path = ["/announce", "/announce/K", "/x", "", "/scrape"][rng.usize(..5)];
        let target = format!("{path}?{}", pairs.join("&"));
        let _ = classify(&target);
        let _ = hide_keys(&target, "#");
        let _ = hide_keys_in_text(&target, "#");
        let Some(left) = strip_addresses(&target) else {
            continue;
        };
        let stays = |pair: &&str| !["ip=1", "ipv4=", "ipv6=::1", "%69p=2", "ip"].contains(pair);
        let expected: Vec<&str> = pairs.iter().copied().filter(|pair| stays(pair)).collect();
        let expected = match expected[..] {
            [] => path.to_owned(),
            _ => format!("{path}?{}", expected.join("&")),
        };
        assert_eq!(left, expected, "{target}");
        assert_eq!(strip_addresses(&left), None, "{target}");
    }
}
