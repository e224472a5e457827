"""A proxy in front of the real S3 server: it tells what passes, holds it for as long as a watcher needs, and fails.

Requests are passed on as they were signed (the Host header, too), so the store checks the clients' signatures itself.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from yarl import URL

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length", "upgrade"}
MAX_BODY = 1 << 30
SLOW_SECONDS = 3.0
ERRORS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "429": (429, "TooManyRequests", "Please reduce your request rate."),
    "500 after": (500, "InternalError", "We encountered an internal error. Please try again."),
}
FAULTS = (*ERRORS, "reset", "reset after", "slow", "truncated")
"""`… after`: the store has done what was asked, but the client is not told so."""


@dataclass(frozen=True)
class Call:
    """One request to the store."""

    method: str
    key: str
    """`bucket/key`, or the bucket alone."""
    prefix: str | None
    """What is listed, for a listing."""


Watcher = Callable[[Call, str], None]
"""Called with each call `before` it is passed on and `after` the store has done it; may block."""


class Faults:
    """Which calls fail, and how: drawn from a seed."""

    def __init__(self, rate: float, seed: int) -> None:
        self.rate = rate
        self.counts: Counter[str] = Counter()
        self._rng = random.Random(seed)

    def draw(self) -> str | None:
        """The next call's fault."""
        if self._rng.random() >= self.rate:
            return None
        fault = self._rng.choice(FAULTS)
        self.counts[fault] += 1
        return fault


class Proxy:
    """Serves `endpoint` from a thread of its own until `stop`.

    Args:
        upstream: the store's address.
        faults: what goes wrong; nothing by default. May be replaced at any time, like `watcher`.
    """

    def __init__(self, upstream: str, faults: Faults | None = None) -> None:
        self.faults = faults
        self.watcher: Watcher | None = None
        self.calls = 0
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(ready)), daemon=True)
        self._thread.start()
        if not ready.wait(30):
            raise RuntimeError("the proxy did not start")

    def stop(self) -> None:
        """Closes all connections."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _serve(self, ready: threading.Event) -> None:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{key:.*}", self._handle)
        runner = web.AppRunner(app, auto_decompress=False, handle_signals=False, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as self._session:
            ready.set()
            await self._stopping.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        listing = request.method == "GET" and "list-type" in request.query
        call = Call(request.method, request.match_info["key"], request.query.get("prefix") if listing else None)
        self.calls += 1
        body = await request.read()
        fault = self.faults.draw() if self.faults else None
        if fault in ("503", "429"):
            return _error(fault)
        if fault == "reset":
            return _hang_up(request)
        await self._tell(call, "before")
        try:
            answer = await self._pass_on(request, body)
        except aiohttp.ClientError:  # the store is away: so are its connections
            return _hang_up(request)
        await self._tell(call, "after")
        if fault == "500 after":
            return _error(fault)
        if fault == "reset after":
            return _hang_up(request)
        if fault in ("slow", "truncated") and isinstance(answer.body, bytes) and answer.body:
            return await _part(request, answer, fault)
        return answer

    async def _tell(self, call: Call, when: str) -> None:
        if self.watcher is not None:
            await self._loop.run_in_executor(None, self.watcher, call, when)

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        skip = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        url = URL(self._upstream + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body, skip_auto_headers=skip, allow_redirects=False
        ) as answer:
            content = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
                return web.Response(status=answer.status, headers=kept)
            return web.Response(status=answer.status, headers=kept, body=content)


def _error(fault: str) -> web.Response:
    status, code, message = ERRORS[fault]
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:  # the client may have hung up first
        request.transport.abort()
    return web.Response()


async def _part(request: web.Request, answer: web.Response, fault: str) -> web.StreamResponse:
    """Half of a body, and the rest seconds later or never."""
    assert isinstance(answer.body, bytes)
    half = len(answer.body) // 2
    stream = web.StreamResponse(status=answer.status, headers=answer.headers)
    stream.content_length = len(answer.body)
    await stream.prepare(request)
    await stream.write(answer.body[:half])
    if fault == "truncated":
        return _hang_up(request)
    await asyncio.sleep(SLOW_SECONDS)
    await stream.write(answer.body[half:])
    await stream.write_eof()
    return stream
