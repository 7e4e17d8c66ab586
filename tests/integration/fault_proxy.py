"""A proxy in front of an S3 server that does what networks and servers do on a bad day, on request and counted.

The Host header is kept, so the server still verifies signatures. Requests are read whole before anything is done.
"""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, Literal, TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

FaultKind = Literal[
    "slow_down",  # 503
    "internal_error",  # 500
    "late_error",  # 500 as S3 tells it when the reply has begun: in the body of a 200
    "reset",  # the connection breaks before the server hears of the request
    "lost_reply",  # the server did it; the connection breaks before the client hears of it
    "truncated",  # half the body of the reply, then the connection breaks
    "delay",  # the reply comes `seconds` late
    "expired_token",  # 400, as AWS does
    "conflict",  # 409
    "no_bucket",  # 404
    "no_encryption",  # the reply does not say that the object is encrypted
    "other_clock",  # the reply is dated `seconds` later
]
ResultT = TypeVar("ResultT")

_ANSWERS: dict[str, tuple[int, str]] = {
    "slow_down": (503, "SlowDown"),
    "internal_error": (500, "InternalError"),
    "late_error": (200, "InternalError"),
    "expired_token": (400, "ExpiredToken"),
    "conflict": (409, "ConditionalRequestConflict"),
    "no_bucket": (404, "NoSuchBucket"),
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass
class Fault:
    """What happens to the next `times` requests of an operation whose key matches."""

    kind: FaultKind
    operation: str = ""
    """As in the S3 API, like `PutObject`; empty: any."""
    key: str = ""
    """Regular expression that is searched for in the key, or in the prefix of a listing."""
    times: int = 1
    seconds: float = 0.0
    num_done: int = 0

    def matches(self, operation: str, key: str) -> bool:
        """Whether it is still to happen, and to this request."""
        return self.num_done < self.times and self.operation in ("", operation) and re.search(self.key, key) is not None


class FaultProxy:
    """A proxy on a loopback port, in a thread of its own. Use as a context manager."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._faults: list[Fault] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._connections: set[asyncio.Transport] = set()
        self._is_down = False
        self._port = 0
        self.num_requests: Counter[str] = Counter()
        """By operation, those that met a fault included."""
        self.reads: list[tuple[str, int]] = []
        """(key, bytes of the body) of each object, or range of one, in the order in which clients got them."""

    @property
    def url(self) -> str:
        """The endpoint for clients."""
        return f"http://127.0.0.1:{self._port}"

    def inject(
        self, kind: FaultKind, operation: str = "", key: str = "", times: int = 1, seconds: float = 0.0
    ) -> Fault:
        """The fault, to look at `num_done` later: a test whose fault did not happen proves nothing."""
        fault = Fault(kind, operation, key, times, seconds)
        self._faults.append(fault)
        return fault

    def reset(self) -> None:
        """Forgets faults and counts."""
        self._faults = []
        self.num_requests.clear()
        self.reads.clear()

    def go_down(self, seconds: float) -> None:
        """From now on connections break and new ones are refused; `seconds` later all is as before."""

        async def start_again() -> None:
            await asyncio.sleep(seconds)
            self._is_down = False
            await self._listen()

        self._run(self._stop_listening())
        asyncio.run_coroutine_threadsafe(start_again(), self._loop)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        self._client = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=120))
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await self._listen()

    async def _stop(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await self._runner.cleanup()
        await self._client.close()

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await self._site.start()
        self._port = self._runner.addresses[0][1]

    async def _stop_listening(self) -> None:
        self._is_down = True
        await self._site.stop()
        for transport in self._connections:
            transport.abort()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self._connections.add(request.transport)
        try:
            return await self._answer(request)
        finally:
            self._connections.discard(request.transport)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        operation, key = _operation(request), _key(request)
        self.num_requests[operation] += 1
        fault = next((fault for fault in self._faults if fault.matches(operation, key)), None)
        if fault is not None:
            fault.num_done += 1
        kind = fault.kind if fault else None
        body = await request.read()
        if self._is_down or kind == "reset":
            return _break(request)
        if kind in _ANSWERS:
            status, code = _ANSWERS[kind]
            message = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told to</Message></Error>"
            return web.Response(status=status, body=message.encode(), content_type="application/xml")
        reply = await self._forward(request, body)
        if self._is_down or kind == "lost_reply":
            return _break(request)
        if fault is not None and kind == "delay":
            await asyncio.sleep(fault.seconds)
        if fault is not None and kind == "other_clock":
            date = parsedate_to_datetime(reply.headers["Date"]) + timedelta(seconds=fault.seconds)
            reply.headers["Date"] = format_datetime(date, usegmt=True)
        if kind == "no_encryption":
            for name in [name for name in reply.headers if name.lower().startswith("x-amz-server-side-encryption")]:
                del reply.headers[name]
        assert isinstance(reply.body, bytes)
        if operation == "GetObject" and reply.status in (200, 206):
            self.reads.append((key, len(reply.body) // 2 if kind == "truncated" else len(reply.body)))
        if kind == "truncated":
            return await self._send_half(request, reply)
        return reply

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        url = URL(self._target + request.raw_path, encoded=True)
        async with self._client.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as reply:  # fmt: skip
            data = await reply.read()
            kept = [(name, value) for name, value in reply.headers.items() if name.lower() not in _HOP_BY_HOP]
            response = web.Response(status=reply.status, body=data)
            response.headers.clear()
            response.headers.extend(kept)
            if request.method == "HEAD":
                response.headers["Content-Length"] = reply.headers.get("Content-Length", "0")
            return response

    async def _send_half(self, request: web.Request, reply: web.Response) -> web.StreamResponse:
        assert isinstance(reply.body, bytes)
        assert request.transport is not None
        half = web.StreamResponse(status=reply.status, headers=reply.headers)
        half.content_length = len(reply.body)
        await half.prepare(request)
        await half.write(reply.body[: len(reply.body) // 2])
        request.transport.close()  # and not abort(): what was written is to arrive
        return half


def _break(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def _key(request: web.Request) -> str:
    """Of addresses with the bucket in the path."""
    return request.query.get("prefix") or request.path.lstrip("/").partition("/")[2]


def _operation(request: web.Request) -> str:
    query, has_key = request.query, bool(request.path.lstrip("/").partition("/")[2])
    match request.method:
        case "HEAD":
            return "HeadObject" if has_key else "HeadBucket"
        case "GET" if "uploads" in query:
            return "ListMultipartUploads"
        case "GET":
            return "GetObject" if has_key else "ListObjectsV2"
        case "PUT":
            return "UploadPart" if "partNumber" in query else "PutObject"
        case "POST" if "uploads" in query:
            return "CreateMultipartUpload"
        case "POST" if "uploadId" in query:
            return "CompleteMultipartUpload"
        case "DELETE":
            return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    return request.method
