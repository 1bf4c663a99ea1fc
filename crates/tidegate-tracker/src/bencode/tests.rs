//! Answers as real trackers send them, whole and in pieces, and bytes that are nothing of the kind.

use super::*;

fn scan_in_pieces(body: &[u8], size: usize) -> (Answer, Option<Text>) {
    let mut scanner = Scanner::default();
    for piece in body.chunks(size) {
        scanner.feed(piece);
    }
    scanner.finish()
}

/// The same finding however the body is cut.
#[track_caller]
fn check(body: &[u8], expected: &Answer) {
    for size in [1, 2, 3, 7, 64, body.len().max(1)] {
        let (found, warning) = scan_in_pieces(body, size);
        let shown = String::from_utf8_lossy(body);
        assert_eq!(found, *expected, "{shown} in pieces of {size}");
        assert_eq!(warning, None, "{shown}");
    }
}

fn failure(text: &str) -> Answer {
    Answer::Failure(Text(text.to_owned()))
}

#[test]
fn answers_of_trackers_are_told_apart() {
    let compact = [
        b"d8:completei1e10:incompletei0e8:intervali120e12:min intervali120e5:peers6:".as_slice(),
        &[0xC0, 0, 2, 7, 0x1A, 0xE1],
        b"6:peers60:e",
    ]
    .concat();
    check(&compact, &Answer::Announce);
    // Not compact, as with compact=0, and with an empty line behind, as aquatic sends it.
    check(
        b"d8:intervali1800e5:peersld2:ip9:192.0.2.77:peer id20:-qB4520-d(UfWmCdvZLH4:porti6881eeee\r\n",
        &Answer::Announce,
    );
    check(b"d5:peers0:e", &Answer::Announce);
    let scrape = [b"d5:filesd20:".as_slice(), &[0xFF; 20],
        b"d8:completei5e10:downloadedi50e10:incompletei10eee5:flagsd20:min_request_intervali3600eee"].concat();
    check(&scrape, &Answer::Scrape);
    check(b"d5:filesdee", &Answer::Scrape);
    check(
        b"d14:failure reason17:invalid info_hashe",
        &failure("invalid info_hash"),
    );
    check(b"d14:failure reason0:e", &failure(""));
    check(b"de", &Answer::OtherDictionary);
    check(b"d3:fooi-1e3:barlli0eed1:x1:yeee", &Answer::OtherDictionary);
}

#[test]
fn keys_count_in_any_order_but_only_outside() {
    check(
        b"d8:intervali60e5:peers0:14:failure reason4:goneX",
        &Answer::NotBencode,
    );
    check(
        b"d8:intervali60e5:peers0:14:failure reason4:gonee",
        &failure("gone"),
    );
    check(
        b"d8:intervali60e5:extrad14:failure reason4:gonee5:peers0:e",
        &Answer::Announce,
    );
    check(
        b"d3:onel14:failure reason4:goneee",
        &Answer::OtherDictionary,
    );
    // A value that reads like a key, a key that begins like one, and a reason that is no text.
    check(
        b"d3:foo14:failure reason4:name1:xe",
        &Answer::OtherDictionary,
    );
    check(b"d17:failure reason...1:xe", &Answer::OtherDictionary);
    check(b"d14:failure reasoni7ee", &Answer::OtherDictionary);
    check(b"d14:failure reason1:a14:failure reason1:be", &failure("a"));
}

#[test]
fn a_warning_is_no_failure() {
    let body = b"d8:intervali60e5:peers0:15:warning message9:slow downe";
    for size in [1, 5, body.len()] {
        let (answer, warning) = scan_in_pieces(body, size);
        assert_eq!(answer, Answer::Announce);
        assert_eq!(warning.unwrap().as_str(), "slow down");
    }
}

#[test]
fn what_is_not_bencoded_is_told() {
    for body in [
        b"".as_slice(),
        b"<html><body>502 Bad Gateway</body></html>",
        b"{\"status\":\"Ok\"}",
        b"i1e",
        b"4:spam",
        b"le",
        b"di1ei2ee",
        b"d3:fooe",
        b"d3:fooiee",
        b"d3:fooi--1ee",
        b"d3:foo99999999999:x",
        b"d-1:fooi1ee",
        b"d3:fooxe",
        // A gzip stream: the proxy says so from the header, the bytes say nothing.
        b"\x1F\x8B\x08\x00\x00\x00\x00\x00\x00\x03",
        b"dlllllllllllllllllllllll",
    ] {
        check(body, &Answer::NotBencode);
    }
    let deep = [b"d1:x".as_slice(), &[b'l'; 300]].concat();
    check(&deep, &Answer::NotBencode);
}

#[test]
fn what_ends_early_is_cut_unless_it_said_why() {
    check(b"d8:intervali60e5:peers60:abc", &Answer::Cut);
    check(b"d", &Answer::Cut);
    check(b"d14:failure reas", &Answer::Cut);
    check(b"d14:failure reason4:gone", &failure("gone"));
}

#[test]
fn a_reason_is_bounded_and_fit_for_a_log() {
    let long = format!("d14:failure reason1000:{}e", "x".repeat(1000));
    check(long.as_bytes(), &failure(&"x".repeat(MAX_TEXT)));
    let umlauts = format!("d14:failure reason601:x{}e", "ä".repeat(300));
    check(
        umlauts.as_bytes(),
        &failure(&format!("x{}", "ä".repeat(127))),
    );
    check(b"d14:failure reason7:a\r\nb\0\x1b[e", &failure("a  b  ["));
    check(b"d14:failure reason3:a\xFFbe", &failure("a\u{FFFD}b"));
}

#[test]
fn a_long_scrape_is_not_read_to_its_end() {
    let mut body = b"d5:filesd".to_vec();
    for index in (0..=u8::MAX).cycle().take(900) {
        body.extend_from_slice(b"20:");
        body.extend_from_slice(&[index; 20]);
        body.extend_from_slice(b"d8:completei1e10:downloadedi0e10:incompletei0ee");
    }
    body.extend_from_slice(b"ee");
    let mut scanner = Scanner::default();
    scanner.feed(&body[..body.len() / 2]);
    assert!(scanner.is_done());
    scanner.feed(&body[body.len() / 2..]);
    assert_eq!(scanner.finish().0, Answer::Scrape);
    // Peers are skipped, so that a failure behind them is still found.
    let mut body = b"d5:peers600000:".to_vec();
    body.resize(body.len() + 600_000, b'p');
    body.extend_from_slice(b"14:failure reason1:xe");
    assert_eq!(scan_in_pieces(&body, 16_384).0, failure("x"));
}

/// Answers with bytes changed, put in and taken out at random: never a panic, never another finding for
/// another cut, never more text than agreed.
#[test]
fn any_bytes_in_any_pieces_give_one_finding() {
    let seeds: [&[u8]; 4] = [
        b"d8:completei1e8:intervali120e5:peers12:abcdefghijkle",
        b"d14:failure reason40:Error resolving peer IP: missing or invale",
        b"d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei5eee5:flagsd1:xi1eee",
        b"d15:warning message9:slow down8:intervali60e5:peersld2:ip1:x4:porti1eeee",
    ];
    let mut rng = fastrand::Rng::with_seed(6);
    let alphabet = b"deil0123456789:-failure reasonpeersXYZ\xFF\x00";
    for _ in 0..40_000 {
        let mut body = seeds[rng.usize(..seeds.len())].to_vec();
        for _ in 0..rng.usize(0..6) {
            let at = rng.usize(..body.len().max(1)).min(body.len());
            let byte = alphabet[rng.usize(..alphabet.len())];
            match rng.u8(0..4) {
                0 if at < body.len() => body[at] = byte,
                1 => body.insert(at, byte),
                2 if at < body.len() => drop(body.remove(at)),
                _ => body.truncate(at.max(1)),
            }
        }
        let whole = scan_in_pieces(&body, body.len().max(1));
        let size = rng.usize(1..9);
        assert_eq!(
            whole,
            scan_in_pieces(&body, size),
            "{:?} in pieces of {size}",
            String::from_utf8_lossy(&body)
        );
        if let (Answer::Failure(text), _) = whole {
            assert!(text.as_str().chars().count() <= MAX_TEXT);
        }
    }
}
