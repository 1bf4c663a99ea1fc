"""Clients and origins of the benchmark that no packaged tool covers.

Bounded in count and time, loopback only. Run by `cargo xtask bench`, which reads the one line a client
prints: requests=N failed=N seconds=S p50_us=N p99_us=N.

  sink PORT                          origin: reads a request body to its end, answers 204
  echo PORT                          origin: WebSocket echo
  handshakes PORT HOST PATH COUNT ALPN
                                     client: one request per new TLS connection, eight at a time; ALPN is a
                                     protocol to offer, or empty for none
  websocket PORT HOST CONNS COUNT    client: COUNT echoes of 128 bytes over CONNS connections
  idle PORT HOST PATH CONNS          client: opens CONNS connections, one request each, prints `open N`,
                                     holds them until its stdin is closed
  streams PORT HOST PATH CONNS       client: the same with WebSockets on which nothing is said
"""

import base64
import hashlib
import os
import socket
import ssl
import sys
import threading
import time

PARALLEL = 8
TIMEOUT = 60


def context(alpn="http/1.1"):
    """No verification: all proxies serve the same self-signed certificate, and no resumption."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if alpn:
        made.set_alpn_protocols([alpn])
    return made


def connect(tls, port, host, source="127.0.0.1"):
    plain = socket.create_connection(("127.0.0.1", port), TIMEOUT, (source, 0))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(plain, server_hostname=host)


def read_head(stream, pending=b""):
    while b"\r\n\r\n" not in pending:
        more = stream.recv(65536)
        if not more:
            raise ConnectionError("closed before the head was complete")
        pending += more
    head, rest = pending.split(b"\r\n\r\n", 1)
    return head, rest


def length_of(head):
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def fetch(stream, host, path, extra=""):
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode())
    head, rest = read_head(stream)
    if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        raise ConnectionError(head.split(b"\r\n", 1)[0])
    left = length_of(head) - len(rest)
    while left > 0:
        more = stream.recv(65536)
        if not more:
            raise ConnectionError("closed within the body")
        left -= len(more)


def report(times, failed, seconds):
    times.sort()
    pick = lambda share: int(1e6 * times[min(len(times) - 1, int(len(times) * share))]) if times else 0
    print(f"requests={len(times)} failed={failed} seconds={seconds:.6f} p50_us={pick(0.5)} p99_us={pick(0.99)}")


def spread(parallel, work):
    """Runs work(times) in threads; returns all times, failures and the seconds it took."""
    times, failures = [[] for _ in range(parallel)], []

    def one(mine):
        try:
            work(mine)
        except Exception as error:  # Any failure is counted, and the first is shown.
            failures.append(error)

    threads = [threading.Thread(target=one, args=(mine,)) for mine in times]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if failures:
        print(repr(failures[0]), file=sys.stderr)
    return [t for mine in times for t in mine], len(failures), seconds


def handshakes(port, host, path, count, alpn):
    tls = context(alpn)

    def work(mine):
        for _ in range(count // PARALLEL):
            start = time.perf_counter()
            with connect(tls, port, host) as stream:
                fetch(stream, host, path, "Connection: close\r\n")
            mine.append(time.perf_counter() - start)

    report(*spread(PARALLEL, work))


def upgrade(stream, host):
    key = base64.b64encode(os.urandom(16)).decode()
    stream.sendall((
        f"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode())
    head, _ = read_head(stream)
    if b" 101 " not in head:
        raise ConnectionError(head.split(b"\r\n", 1)[0])


def websocket(port, host, connections, count):
    tls = context()
    # An all-zero mask is a valid mask and leaves the payload as it is.
    frame = bytes([0x82, 0x80 | 126, 0, 128, 0, 0, 0, 0]) + bytes(128)
    expected = 4 + 128

    def work(mine):
        with connect(tls, port, host) as stream:
            upgrade(stream, host)
            for _ in range(count // connections):
                start = time.perf_counter()
                stream.sendall(frame)
                left = expected
                while left > 0:
                    more = stream.recv(left)
                    if not more:
                        raise ConnectionError("closed within an echo")
                    left -= len(more)
                mine.append(time.perf_counter() - start)

    report(*spread(connections, work))


def idle(port, host, connections, begin):
    tls = context()
    held = []
    for index in range(connections):
        # A few hundred per source address, as a limit per client address would have it.
        source = f"127.0.0.{1 + index // 200}"
        stream = connect(tls, port, host, source)
        begin(stream)
        held.append(stream)
    print(f"open {len(held)}", flush=True)
    sys.stdin.read()


def serve(port, handle):
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    while True:
        stream, _ = listener.accept()
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=handle, args=(stream,), daemon=True).start()


def sink(stream):
    buffer = bytearray(1 << 20)
    rest = b""
    try:
        while True:
            head, rest = read_head(stream, rest)
            left = length_of(head) - len(rest)
            chunked = b"transfer-encoding: chunked" in head.lower()
            tail = rest
            while left > 0 or (chunked and not tail.endswith(b"0\r\n\r\n")):
                count = stream.recv_into(buffer)
                if count == 0:
                    return
                left -= count
                if chunked:
                    tail = bytes(buffer[max(0, count - 5):count])
            rest = b""
            stream.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    except (ConnectionError, OSError):
        pass
    finally:
        stream.close()


def echo(stream):
    try:
        head, pending = read_head(stream)
        key = next(
            line.split(b":", 1)[1].strip()
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        )
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        stream.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        reply = bytes([0x82, 126, 0, 128])
        while True:
            # Every frame of this benchmark is 128 bytes behind an 8-byte header.
            while len(pending) < 136:
                more = stream.recv(65536)
                if not more:
                    return
                pending += more
            stream.sendall(reply + pending[8:136])
            pending = pending[136:]
    except (ConnectionError, OSError):
        pass
    finally:
        stream.close()


def main(command, *rest):
    if command == "sink":
        serve(int(rest[0]), sink)
    elif command == "echo":
        serve(int(rest[0]), echo)
    elif command == "handshakes":
        handshakes(int(rest[0]), rest[1], rest[2], int(rest[3]), rest[4])
    elif command == "websocket":
        websocket(int(rest[0]), rest[1], int(rest[2]), int(rest[3]))
    elif command == "idle":
        idle(int(rest[0]), rest[1], int(rest[3]), lambda stream: fetch(stream, rest[1], rest[2]))
    elif command == "streams":
        idle(int(rest[0]), rest[1], int(rest[3]), lambda stream: upgrade(stream, rest[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
