//! The corpus: raw HTTP/1.1 requests and what must become of each.
//!
//! Every rule of the normaliser has its cases here; a bug report becomes one more line.

/// What must become of a case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    /// A 4xx or 5xx, the connection ends, the origin sees nothing of it.
    Refused,
    /// The origin sees it once, and only once.
    Forwarded,
    /// As RFC 9112 §6.3 lets a proxy: read by its chunks alone, forwarded so, and the connection ends;
    /// or refused. Nothing behind it is ever read as a request.
    Closed,
    /// Both are right, as long as what the origin sees is clean.
    Either,
}
use Fate::{Closed, Either, Forwarded, Refused};

pub(super) struct Case {
    pub(super) name: String,
    pub(super) fate: Fate,
    pub(super) bytes: Vec<u8>,
}

/// A case from header lines and a body; `{P}` in the text is the case's own path.
fn case(name: &str, fate: Fate, text: &str) -> Case {
    let path = format!("/{name}");
    Case {
        name: name.to_owned(),
        fate,
        bytes: text.replace("{P}", &path).into_bytes(),
    }
}

/// A POST with these header lines and this body, one request smuggled behind it.
fn framed(name: &str, fate: Fate, headers: &str, body: &str) -> Case {
    case(
        name,
        fate,
        &format!("POST {{P}} HTTP/1.1\r\nHost: raw.test\r\n{headers}\r\n\r\n{body}"),
    )
}

/// The same with the header of a chunked body alone.
fn chunked(name: &str, fate: Fate, body: &str) -> Case {
    framed(name, fate, "Transfer-Encoding: chunked", body)
}

/// A GET with these further header lines.
fn get(name: &str, fate: Fate, headers: &str) -> Case {
    case(
        name,
        fate,
        &format!("GET {{P}} HTTP/1.1\r\nHost: raw.test\r\n{headers}\r\n\r\n"),
    )
}

/// A GET of this target.
fn target(name: &str, fate: Fate, target: &str) -> Case {
    line(
        name,
        fate,
        &format!("GET {target} HTTP/1.1\r\nHost: raw.test"),
    )
}

/// A GET whose head is exactly this.
fn line(name: &str, fate: Fate, head: &str) -> Case {
    case(name, fate, &format!("{head}\r\n\r\n"))
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: raw.test\r\n\r\n";

pub(super) fn cases() -> Vec<Case> {
    let zero = format!("0\r\n\r\n{SMUGGLED}");
    let mut all = vec![
        // Two lengths.
        framed(
            "cl-te",
            Closed,
            "Content-Length: 6\r\nTransfer-Encoding: chunked",
            &zero,
        ),
        framed(
            "te-cl",
            Closed,
            "Transfer-Encoding: chunked\r\nContent-Length: 6",
            &zero,
        ),
        framed(
            "cl-twice-same",
            Either,
            "Content-Length: 5\r\nContent-Length: 5",
            "hello",
        ),
        framed(
            "cl-twice-other",
            Refused,
            "Content-Length: 5\r\nContent-Length: 6",
            "hello!",
        ),
        framed("cl-list", Refused, "Content-Length: 5, 5", "hello"),
        framed("cl-list-other", Refused, "Content-Length: 5, 6", "hello!"),
        framed(
            "te-twice",
            Refused,
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            &zero,
        ),
        framed(
            "te-twice-other",
            Refused,
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            &zero,
        ),
        // No number.
        framed("cl-plus", Refused, "Content-Length: +5", "hello"),
        framed("cl-minus", Refused, "Content-Length: -5", "hello"),
        framed("cl-hex", Refused, "Content-Length: 0x5", "hello"),
        framed("cl-empty", Refused, "Content-Length:", ""),
        framed("cl-text", Refused, "Content-Length: five", "hello"),
        framed("cl-space", Refused, "Content-Length: 5 5", "hello"),
        framed("cl-fraction", Refused, "Content-Length: 5.0", "hello"),
        framed("cl-underscore", Refused, "Content-Length: 1_0", "hello"),
        framed(
            "cl-huge",
            Refused,
            "Content-Length: 18446744073709551621",
            "hello",
        ),
        framed(
            "cl-over-i64",
            Refused,
            "Content-Length: 9223372036854775808",
            "hello",
        ),
        // A plain case, to know that the others do not fail for want of a way through.
        framed("cl-plain", Forwarded, "Content-Length: 5", "hello"),
        framed("cl-leading-zero", Either, "Content-Length: 05", "hello"),
        chunked("te-plain", Forwarded, "5\r\nhello\r\n0\r\n\r\n"),
        framed(
            "te-upper-case",
            Forwarded,
            "Transfer-Encoding: CHUNKED",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        // A line end or space where none may be.
        line(
            "space-before-colon",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test\r\nX-A : 1",
        ),
        line(
            "te-space-before-colon",
            Refused,
            "POST {P} HTTP/1.1\r\nHost: raw.test\r\nTransfer-Encoding : chunked",
        ),
        line(
            "cl-space-before-colon",
            Refused,
            "POST {P} HTTP/1.1\r\nHost: raw.test\r\nContent-Length : 0",
        ),
        line(
            "space-first",
            Refused,
            "GET {P} HTTP/1.1\r\n Host: raw.test",
        ),
        get("obs-fold", Refused, "X-A: 1\r\n 2"),
        get(
            "obs-fold-te",
            Refused,
            "X-A: 1\r\n Transfer-Encoding: chunked",
        ),
        get("nul-in-value", Refused, "X-A: a\0b"),
        get("cr-in-value", Refused, "X-A: a\rb"),
        get("control-in-value", Refused, "X-A: a\x01b"),
        get("nul-in-name", Refused, "X\0A: b"),
        get("no-colon", Refused, "X-A"),
        get("empty-name", Refused, ": b"),
        get("name-with-brackets", Refused, "X(A): b"),
        // Chunks.
        chunked("chunk-plus", Refused, &format!("+5\r\nhello\r\n{zero}")),
        chunked("chunk-0x", Refused, &format!("0x5\r\nhello\r\n{zero}")),
        chunked(
            "chunk-underscore",
            Refused,
            &format!("1_0\r\nhello\r\n{zero}"),
        ),
        chunked("chunk-minus", Refused, &format!("-1\r\nhello\r\n{zero}")),
        chunked(
            "chunk-huge",
            Refused,
            &format!("10000000000000005\r\nhello\r\n{zero}"),
        ),
        chunked("chunk-empty-size", Refused, &format!("\r\nhello\r\n{zero}")),
        chunked("chunk-text", Refused, &format!("xyz\r\nhello\r\n{zero}")),
        chunked(
            "chunk-too-long",
            Refused,
            &format!("5\r\nhello!!\r\n{zero}"),
        ),
        chunked("chunk-bare-lf", Refused, "5\nhello\n0\n\n"),
        chunked(
            "chunk-lf-in-extension",
            Refused,
            &format!("5;a\nb\r\nhello\r\n{zero}"),
        ),
        chunked("chunk-bare-cr", Refused, &format!("5\rX\nhello\r\n{zero}")),
        chunked("chunk-extension", Either, "5;a=b\r\nhello\r\n0\r\n\r\n"),
        chunked(
            "trailer-is-no-header",
            Either,
            "5\r\nhello\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
        ),
        // Hosts.
        line("host-missing", Refused, "GET {P} HTTP/1.1\r\nX-A: b"),
        line("host-empty", Refused, "GET {P} HTTP/1.1\r\nHost:"),
        line(
            "host-twice",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test\r\nHost: raw.test",
        ),
        line(
            "host-twice-other",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test\r\nHost: other.test",
        ),
        line(
            "host-list",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test, other.test",
        ),
        line(
            "host-path",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test/smuggled",
        ),
        line(
            "host-userinfo",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: user@raw.test",
        ),
        line(
            "host-space",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test other.test",
        ),
        line(
            "host-query",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test?x",
        ),
        line(
            "host-fragment",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test#x",
        ),
        line(
            "host-port-text",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test:abc",
        ),
        line(
            "host-port-huge",
            Refused,
            "GET {P} HTTP/1.1\r\nHost: raw.test:99999",
        ),
        line(
            "host-upper-case",
            Forwarded,
            "GET {P} HTTP/1.1\r\nHost: RAW.test",
        ),
        target("absolute-form", Forwarded, "https://raw.test{P}"),
        target("absolute-form-other", Refused, "https://other.test{P}"),
        target("absolute-form-userinfo", Refused, "https://a@raw.test{P}"),
        // Methods, targets, versions.
        line(
            "connect",
            Refused,
            "CONNECT raw.test:443 HTTP/1.1\r\nHost: raw.test",
        ),
        line(
            "connect-path",
            Refused,
            "CONNECT {P} HTTP/1.1\r\nHost: raw.test",
        ),
        target("fragment", Either, "{P}#x"),
        line(
            "space-in-target",
            Refused,
            "GET {P} x HTTP/1.1\r\nHost: raw.test",
        ),
        target("no-slash", Refused, "smuggled"),
        line("version-2.0", Refused, "GET {P} HTTP/2.0\r\nHost: raw.test"),
        line("version-1.2", Either, "GET {P} HTTP/1.2\r\nHost: raw.test"),
        line("version-09", Refused, "GET {P}"),
        line(
            "version-lower-case",
            Refused,
            "GET {P} http/1.1\r\nHost: raw.test",
        ),
        line(
            "method-with-brackets",
            Refused,
            "GE(T {P} HTTP/1.1\r\nHost: raw.test",
        ),
        line(
            "tab-for-space",
            Refused,
            "GET\t{P}\tHTTP/1.1\r\nHost: raw.test",
        ),
        case(
            "te-on-http-1.0",
            Refused,
            &format!(
                "POST {{P}} HTTP/1.0\r\nHost: raw.test\r\nTransfer-Encoding: chunked\r\n\r\n{zero}"
            ),
        ),
        // What belongs to one hop, or is said by the edge.
        get(
            "hop-by-hop",
            Forwarded,
            "Connection: close, X-Hop\r\nX-Hop: a\r\nKeep-Alive: timeout=5\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: keep-alive\r\nTE: gzip, trailers",
        ),
        get(
            "connection-names-host",
            Either,
            "Connection: Host, X-Forwarded-For, Authorization\r\nAuthorization: Basic eDp5",
        ),
        get(
            "h2c-upgrade",
            Forwarded,
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        ),
        get(
            "spoofed-client",
            Forwarded,
            "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Host: 6.6.6.6\r\nX-Forwarded-Proto: 6.6.6.6\r\nX-Forwarded-Port: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\nCF-Connecting-IP: 6.6.6.6",
        ),
        get("underscore-client", Either, "X_Forwarded_For: 6.6.6.6"),
        get("underscore-te", Either, "Transfer_Encoding: chunked"),
        get("underscore-cl", Either, "Content_Length: 5"),
        get("expect-unknown", Either, "Expect: 200-maybe"),
        // Paths that lead out of a prefix in one reading.
        target("dot-segments", Either, "{P}/../x"),
        target("percent-nul", Either, "{P}/%00"),
        target("bad-percent", Either, "{P}/%zz"),
        target("query-verbatim", Forwarded, "{P}?h=%86zsL%0et+'~!|(&&a=%2F"),
    ];
    // Codings that a lenient reader may take for chunked and a strict one not.
    let codings = [
        "gzip, chunked",
        "identity, chunked",
        "chunked, chunked",
        ",chunked",
        "chunked,",
        "chunked, identity",
        "identity",
        "gzip",
        "xchunked",
        "chunkedx",
        "chunked;a=b",
        "\"chunked\"",
        "'chunked'",
        "chunked\x0b",
        "\x0bchunked",
        "chunked\0",
        "chu nked",
        "cow",
        "\u{ff}chunked",
        "chunked, cow",
    ];
    for (index, coding) in codings.iter().enumerate() {
        all.push(framed(
            &format!("te-{index}"),
            Refused,
            &format!("Transfer-Encoding: {coding}"),
            &zero,
        ));
        let both = format!("Content-Length: 6\r\nTransfer-Encoding: {coding}");
        all.push(framed(&format!("te-cl-{index}"), Refused, &both, &zero));
    }
    for (index, name) in [
        "Transfer-Encoding\x0b",
        "Transfer-Encoding\t",
        "\"Transfer-Encoding\"",
        "Transfer\u{ad}-Encoding",
    ]
    .iter()
    .enumerate()
    {
        all.push(framed(
            &format!("te-name-{index}"),
            Refused,
            &format!("{name}: chunked"),
            &zero,
        ));
    }
    all
}
