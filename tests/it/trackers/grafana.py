"""What Grafana Live is to the edge: Grafana's rule for origins, its cookie, its WebSocket protocol.

  grafana.py PORT PING     PING: seconds between the pings of an open connection

Grafana itself cannot be had as a package. The rules are those of its documentation: the WebSocket of
/api/live/ws needs a session, and an Origin whose host is the request's Host. Centrifuge's protocol, version 2 as
JSON: commands and replies are lines of text frames, `{}` is a ping and its answer.
"""

import asyncio
import json
import sys
from urllib.parse import urlsplit

from websockets.asyncio.server import serve

PING = float(sys.argv[2])
CHANNEL = "1/grafana/dashboard/uid/stack"


def say(*words):
    print(*words, flush=True)


def admit(connection, request):
    # With GF_SERVER_SERVE_FROM_SUB_PATH it is at home below /grafana too.
    path = urlsplit(request.path).path.removeprefix("/grafana")
    if path != "/api/live/ws":
        if path == "/api/health":
            return connection.respond(200, '{"database": "ok"}\n')
        return connection.respond(200, f"Grafana at {request.path}\n")
    if "grafana_session=" not in request.headers.get("Cookie", ""):
        return connection.respond(401, '{"message": "Unauthorized"}\n')
    origin, host = request.headers.get("Origin"), request.headers["Host"]
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        say("origin not allowed", origin, host)
        return connection.respond(403, "Request Origin is not authorized\n")
    return None


def answer(command):
    if "connect" in command:
        ping = {"ping": PING, "pong": True}
        return {"connect": {"client": "0b7c4b2e", "version": "stand-in", **ping}}
    if "subscribe" in command:
        say("subscribed", command["subscribe"]["channel"])
        return {"subscribe": {}}
    if "rpc" in command:
        say("rpc", len(json.dumps(command["rpc"]["data"])))
        return {"rpc": {"data": command["rpc"]["data"]}}
    return {"error": {"code": 108, "message": "method not found"}}


async def pings(socket):
    count = 0
    while True:
        await asyncio.sleep(PING)
        await socket.send("{}")
        count += 1
        published = {"channel": CHANNEL, "pub": {"data": {"pings": count}}}
        await socket.send(json.dumps({"push": published}))


async def live(socket):
    say("opened for", socket.request.headers.get("X-Forwarded-For"))
    pinging = asyncio.create_task(pings(socket))
    pongs = 0
    try:
        async for frame in socket:
            for line in frame.splitlines():
                command = json.loads(line)
                if command == {}:
                    pongs += 1
                    say(f"pong {pongs}.")
                elif "id" in command:
                    reply = {"id": command["id"], **answer(command)}
                    await socket.send(json.dumps(reply))
    finally:
        pinging.cancel()
        say("closed")


async def main():
    # No pings of the WebSocket itself: an idle connection is idle.
    async with serve(live, "127.0.0.1", int(sys.argv[1]), process_request=admit, ping_interval=None):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
