"""HTTP/2 requests that must not become two requests or a false one when sent on as HTTP/1.1.

  h2_cases.py PORT CA HOST

Each case goes over a connection of its own, with every check of the library off. Prints one line per case:
NAME FATE OUTCOME, where FATE is what must become of it (refused, forwarded, either) and OUTCOME is the status,
`reset`, `closed` or `silent`.
"""

import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events

SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: raw.test\r\n\r\n"


def cases(host):
    def base(name, method="GET", scheme="https", authority=host, path=None):
        return [
            (":method", method),
            (":scheme", scheme),
            (":authority", authority),
            (":path", path if path is not None else f"/{name}"),
        ]

    def get(name, fate, *headers, **pseudo):
        return name, fate, base(name, **pseudo) + list(headers), None

    def post(name, fate, *headers, body=b"hello", **pseudo):
        return name, fate, base(name, method="POST", **pseudo) + list(headers), body

    yield get("plain", "forwarded")
    yield post("plain-body", "forwarded", ("content-length", "5"))
    yield post("no-length", "forwarded")
    yield get("trailers-te", "forwarded", ("te", "trailers"))
    # Framing that HTTP/2 does not have.
    yield post("te-chunked", "refused", ("transfer-encoding", "chunked"), body=b"0\r\n\r\n" + SMUGGLED.encode())
    yield post("te-identity", "refused", ("transfer-encoding", "identity"))
    yield post("cl-short", "refused", ("content-length", "3"), body=b"hello" + SMUGGLED.encode())
    yield post("cl-zero", "refused", ("content-length", "0"), body=SMUGGLED.encode())
    yield post("cl-long", "refused", ("content-length", "50"))
    yield post("cl-twice", "refused", ("content-length", "5"), ("content-length", "6"))
    yield post("cl-text", "refused", ("content-length", "five"))
    yield post("cl-plus", "refused", ("content-length", "+5"))
    yield get("cl-on-get", "refused", ("content-length", "5"))
    # Line ends where HTTP/1.1 would see the next line.
    for label, text in (("crlf", "\r\n"), ("lf", "\n"), ("cr", "\r"), ("nul", "\0")):
        yield get(f"value-{label}", "refused", ("x-a", f"b{text}{SMUGGLED}"))
        yield get(f"name-{label}", "refused", (f"x-a: b{text}x-c", "d"))
        yield get(f"path-{label}", "refused", path=f"/path-{label}{text}x-a: b")
        yield get(f"method-{label}", "refused", method=f"GET /method-{label} HTTP/1.1{text}x-a:")
        yield get(f"authority-{label}", "refused", authority=f"{host}{text}x-a: b")
    yield get("path-space", "refused", path="/path-space HTTP/1.1 x")
    yield get("method-space", "refused", method="GET /smuggled HTTP/1.1")
    yield get("name-colon", "refused", ("x-a:b", "c"))
    yield get("name-space", "refused", ("x-a ", "c"))
    yield get("name-upper-case", "refused", ("X-A", "c"))
    yield get("name-empty", "refused", ("", "c"))
    # Whom it is for.
    yield get("host-same", "forwarded", ("host", host))
    yield get("host-other", "refused", ("host", "other.test"))
    yield get("host-twice", "refused", ("host", host), ("host", host))
    yield get("authority-userinfo", "refused", authority=f"user@{host}")
    yield get("authority-path", "refused", authority=f"{host}/smuggled")
    yield get("authority-list", "refused", authority=f"{host},other.test")
    yield get("authority-empty", "refused", authority="")
    yield get("authority-other", "refused", authority="other.test")
    yield get("scheme-odd", "refused", scheme="https://x")
    yield get("path-empty", "refused", path="")
    yield get("path-absolute", "refused", path="https://other.test/")
    yield get("path-no-slash", "refused", path="smuggled")
    yield get("path-fragment", "either", path="/path-fragment#x")
    yield "no-authority", "refused", [(":method", "GET"), (":scheme", "https"), (":path", "/no-authority")], None
    yield "no-method", "refused", [(":scheme", "https"), (":authority", host), (":path", "/no-method")], None
    yield "path-twice", "refused", base("path-twice") + [(":path", "/smuggled")], None
    yield "pseudo-late", "refused", base("pseudo-late")[:3] + [("x-a", "b"), (":path", "/pseudo-late")], None
    yield "pseudo-unknown", "refused", base("pseudo-unknown") + [(":x", "y")], None
    yield get("connect", "refused", method="CONNECT")
    # Headers of one connection, and of the edge.
    yield get("connection", "refused", ("connection", "x-hop"), ("x-hop", "a"))
    yield get("keep-alive", "refused", ("keep-alive", "timeout=5"))
    yield get("proxy-connection", "refused", ("proxy-connection", "keep-alive"))
    yield get("upgrade", "refused", ("upgrade", "h2c"))
    yield get("te-gzip", "refused", ("te", "gzip"))
    yield get(
        "spoofed", "forwarded",
        ("x-forwarded-for", "6.6.6.6"), ("x-real-ip", "6.6.6.6"), ("forwarded", "for=6.6.6.6"),
        ("x-forwarded-host", "6.6.6.6"), ("x-forwarded-proto", "6.6.6.6"), ("x-forwarded-port", "6.6.6.6"),
    )
    yield get("underscore", "either", ("x_forwarded_for", "6.6.6.6"))
    yield get("query", "forwarded", path="/query?h=%86zsL%0et+'~!|(&&a=%2F")


def run(port, tls, host, headers, body):
    config = h2.config.H2Configuration(
        client_side=True, header_encoding=None, validate_outbound_headers=False,
        normalize_outbound_headers=False, validate_inbound_headers=False,
        split_outbound_cookies=False,
    )
    plain = socket.create_connection(("127.0.0.1", port), 20)
    with tls.wrap_socket(plain, server_hostname=host) as stream:
        stream.settimeout(10)
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        try:
            connection.send_headers(1, raw, end_stream=body is None)
            if body is not None:
                connection.send_data(1, body, end_stream=True)
            stream.sendall(connection.data_to_send())
            while True:
                data = stream.recv(65536)
                if not data:
                    return "closed"
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        return dict(event.headers)[b":status"].decode()
                    if isinstance(event, h2.events.StreamReset):
                        return "reset"
                    if isinstance(event, h2.events.ConnectionTerminated):
                        return "closed"
                stream.sendall(connection.data_to_send())
        except TimeoutError:
            return "silent"
        except (ConnectionError, ssl.SSLError):
            return "closed"


def main(port, ca, host):
    tls = ssl.create_default_context(cafile=ca)
    tls.set_alpn_protocols(["h2"])
    for name, fate, headers, body in cases(host):
        print(name, fate, run(int(port), tls, host, headers, body), flush=True)


main(*sys.argv[1:])
