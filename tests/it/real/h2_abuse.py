"""HTTP/2 frames that cost a server more than the client, bounded in count; and honest small frames.

  h2_abuse.py PORT CA HOST

Prints one line per probe: NAME ended|endured FRAMES. `ended` is what a server should do long before the bound.
"""

import socket
import ssl
import sys
import time

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
BOUND = 20_000


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Connection:
    def __init__(self, port, tls, host):
        plain = socket.create_connection(("127.0.0.1", port), 20)
        self.stream = tls.wrap_socket(plain, server_hostname=host)
        self.stream.settimeout(20)
        self.host = host
        self.encoder = hpack.Encoder()
        self.stream.sendall(PREFACE + frame(SETTINGS, 0, 0))

    def head(self, path, method="GET"):
        return self.encoder.encode([
            (":method", method), (":scheme", "https"), (":authority", self.host), (":path", path),
        ])

    def flood(self, name, make, reading=True):
        """Sends frames until the server ends the connection or the bound is reached."""
        sent, batch = 0, 100
        try:
            while sent < BOUND:
                self.stream.sendall(b"".join(make(sent + index) for index in range(batch)))
                sent += batch
                if reading and self.goaway():
                    break
            else:
                # What was accepted last may still be answered by the end of the connection.
                deadline = time.monotonic() + 5
                while time.monotonic() < deadline:
                    if self.goaway(wait=0.5):
                        break
                else:
                    print(name, "endured", sent, flush=True)
                    return
        except (OSError, ssl.SSLError):
            pass
        print(name, "ended", sent, flush=True)

    def goaway(self, wait=0.001):
        """Whether the server said goodbye; reads what is there."""
        self.stream.settimeout(wait)
        try:
            data = self.stream.recv(1 << 16)
            if not data:
                return True
            # Frame type 7 on stream 0; good enough, since nothing else here carries such bytes.
            return b"\x07\x00\x00\x00\x00\x00" in data
        except (TimeoutError, ssl.SSLWantReadError):
            return False
        finally:
            self.stream.settimeout(20)


def probes(connect):
    c = connect()
    c.flood("rapid-reset", lambda n: frame(HEADERS, 5, 2 * n + 1, c.head("/"))
            + frame(RST, 0, 2 * n + 1, (8).to_bytes(4, "big")))
    c = connect()
    c.flood("ping", lambda n: frame(PING, 0, 0, bytes(8)))
    c = connect()
    c.flood("settings", lambda n: frame(SETTINGS, 0, 0))
    c = connect()
    c.stream.sendall(frame(HEADERS, 4, 1, c.head("/", "POST")))
    c.flood("empty-data", lambda n: frame(DATA, 0, 1))
    c = connect()
    c.stream.sendall(frame(HEADERS, 1, 1, c.head("/")))
    c.flood("continuation", lambda n: frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 10))
    c = connect()
    c.flood("made-you-reset", lambda n: frame(HEADERS, 4, 2 * n + 1, c.head("/", "POST"))
            + frame(WINDOW, 0, 2 * n + 1, bytes(4)))
    c = connect()
    c.flood("priority", lambda n: frame(PRIORITY, 0, 2 * n + 1, bytes(4) + b"\x10"))


def honest(connect):
    """20,000 frames of 20 bytes, as event streams and tunnels send them: all must arrive.

    In bursts of 500, each acknowledged before the next: a client that runs thousands of tiny frames ahead
    of its backend is cut, because each costs the server more memory than flow control counts.
    """
    import h2.config
    import h2.connection
    import h2.events

    c = connect()
    # The library knows windows; the raw connection above is only its socket.
    c.stream.close()
    plain = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
    with c.tls.wrap_socket(plain, server_hostname=c.host) as stream:
        stream.settimeout(60)
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        connection.send_headers(1, [
            (":method", "POST"), (":scheme", "https"), (":authority", c.host), (":path", "/honest"),
        ])
        left, status, body, ready = 20_000, None, b"", True
        while True:
            burst = 500 if ready else 0
            while burst and left and connection.local_flow_control_window(1) >= 20:
                connection.send_data(1, b"x" * 20)
                burst, left = burst - 1, left - 1
                if left == 0:
                    connection.end_stream(1)
            if ready:
                connection.ping(b"12345678")
                ready = False
            stream.sendall(connection.data_to_send())
            data = stream.recv(65536)
            if not data:
                print("honest cut", 20_000 - left)
                return
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[":status"]
                elif isinstance(event, h2.events.PingAckReceived):
                    ready = True
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    print("honest cut", 20_000 - left)
                    return
                elif isinstance(event, h2.events.StreamEnded):
                    arrived = f'"body_bytes":{20_000 * 20}'.encode() in body
                    print("honest", "delivered" if status == "200" and arrived else f"{status}", 20_000)
                    return


def main(port, ca, host):
    tls = ssl.create_default_context(cafile=ca)
    tls.set_alpn_protocols(["h2"])

    def connect():
        made = Connection(int(port), tls, host)
        made.tls = tls
        return made

    honest(connect)
    probes(connect)


main(*sys.argv[1:])
