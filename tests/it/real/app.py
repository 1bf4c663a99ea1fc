"""A FastAPI application as self-hosted programs are: WebSocket under /ws/, server-sent events, an API.

Run by uvicorn with --forwarded-allow-ips, as its documentation tells for a proxy in front.
"""

import asyncio

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.websockets import WebSocketDisconnect

app = FastAPI()


@app.get("/whoami")
async def whoami(request: Request):
    return {
        "client": request.client.host,
        "scheme": request.url.scheme,
        "host": request.headers.get("host"),
        "forwarded_for": request.headers.getlist("x-forwarded-for"),
        "query": request.url.query,
    }


@app.post("/size")
async def size(request: Request):
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
    return {"bytes": total}


@app.get("/events")
async def events(count: int = 5, pause: float = 0.2):
    async def stream():
        for index in range(count):
            yield f"data: {index}\n\n"
            await asyncio.sleep(pause)

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.websocket("/ws/")
async def ws(socket: WebSocket, token: str = ""):
    # Closing before accept is what uvicorn turns into 403 on the upgrade.
    if token != "right":
        await socket.close(code=4003)
        return
    await socket.accept()
    try:
        while True:
            text = await socket.receive_text()
            await socket.send_text(f"echo {text}" if len(text) < 100 else text)
    except WebSocketDisconnect:
        pass
