"""A WebSocket client: prints one line per step, so that the test can say where it stopped.

  ws_client.py URL CA [idle SECONDS | hold | refused]
"""

import asyncio
import ssl
import sys

import websockets


async def echo(socket, text):
    await socket.send(text)
    answer = await asyncio.wait_for(socket.recv(), 20)
    expected = f"echo {text}" if len(text) < 100 else text
    if answer != expected:
        raise SystemExit(f"sent {len(text)} characters, got {answer[:80]!r}")


async def main(url, ca, mode, seconds=None):
    tls = ssl.create_default_context(cafile=ca)
    # Pings come from here every 20 s: the library's default, and what browsers' servers do.
    options = dict(host="127.0.0.1", ssl=tls, max_size=None, ping_interval=20, open_timeout=20, compression=None)
    if mode == "refused":
        try:
            async with websockets.connect(url, **options):
                raise SystemExit("connected, but a refusal was expected")
        except websockets.exceptions.InvalidStatus as error:
            print("refused with", error.response.status_code, flush=True)
        return
    async with websockets.connect(url, **options) as socket:
        await echo(socket, "hello")
        await echo(socket, "x" * 300_000)
        print("open", flush=True)
        if mode == "idle":
            await asyncio.sleep(float(seconds))
            await echo(socket, "still here")
            print("alive after", seconds, flush=True)
        elif mode == "hold":
            # Echoes until stdin says that the edits are over.
            loop = asyncio.get_running_loop()
            over = loop.run_in_executor(None, sys.stdin.read)
            rounds = 0
            while not over.done():
                await echo(socket, f"round {rounds}")
                rounds += 1
                await asyncio.sleep(0.02)
            print("held for", rounds, "rounds", flush=True)


asyncio.run(main(*sys.argv[1:]))
