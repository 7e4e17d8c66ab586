"""The OpenAI engine against real HTTP servers on a loopback port: one that misbehaves, and vLLM's own."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from aiohttp import web

from mentalglm.config.score import GenerationConfig, OpenAIEngineConfig
from mentalglm.engine.openai import OpenAIEngine, neutralise_special_tokens
from mentalglm.engine.protocol import Completion, Request
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.tasks import Prompt

KEY = "sk-canary-key-51c7"
CANARY = "canary-post-91"
DEMO_MODEL = Path(__file__).parents[2] / "mentalglm" / "demo" / "model"


class MisbehavingServer:
    """A chat endpoint that does what the post says, `<number> <fault> <times>`: so many attempts fail in this way."""

    def __init__(self) -> None:
        self.url = ""
        self.attempts: Counter[str] = Counter()
        self.arrivals: list[float] = []
        self.num_in_flight = 0
        self.max_in_flight = 0
        self.delay_s = 0.0

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        self.arrivals.append(time.monotonic())
        self.num_in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.num_in_flight)
        try:
            return await self._answer(http)
        finally:
            self.num_in_flight -= 1

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        if http.headers["Authorization"] != f"Bearer {KEY}":
            return self._failure(401, f"wrong key {http.headers['Authorization']}")
        post = (await http.json())["messages"][-1]["content"]
        await asyncio.sleep(self.delay_s)
        self.attempts[post] += 1
        _, fault, times = [*post.split(), "none", "0"][:3]
        if self.attempts[post] > int(times):
            return self._success("低自杀风险")
        match fault:
            case "busy":
                return self._failure(429, post, {"Retry-After": "1"})
            case "broken":
                return self._failure(500, post)
            case "reset":
                assert http.transport is not None
                http.transport.abort()
                return web.Response()
            case "half":  # the connection breaks in the middle of the reply
                reply = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
                await reply.prepare(http)
                await reply.write(b'{"choices": [{"message"')
                assert http.transport is not None
                http.transport.abort()
                return reply
            case "slow":
                await asyncio.sleep(30)
                return self._success("too late")
            case "trickle":  # never silent for long, never done
                reply = web.StreamResponse(headers={"Content-Type": "application/json"})
                await reply.prepare(http)
                for _ in range(300):
                    await reply.write(b" ")
                    await asyncio.sleep(0.1)
                return reply
            case "filtered":
                return self._success(None, "content_filter")
            case "blocked":
                return self._failure(400, post, code="1301")
            case "long":
                return self._failure(400, post, code="context_length_exceeded")
            case "garbled":
                return web.Response(text='{"choices": [', content_type="application/json")
            case _:
                raise AssertionError(fault)

    def _success(self, content: str | None, finish_reason: str = "stop") -> web.Response:
        message = {"role": "assistant", "content": content}
        return web.json_response({"choices": [{"index": 0, "finish_reason": finish_reason, "message": message}]})

    def _failure(
        self, status: int, post: str, headers: dict[str, str] | None = None, code: str | None = None
    ) -> web.Response:
        error = {"error": {"message": f"cannot answer {post}", "code": code}}
        return web.json_response(error, status=status, headers=headers)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[MisbehavingServer]:
    server = MisbehavingServer()
    runner = await server.start()
    yield server
    await runner.cleanup()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORING_KEY", KEY)


def engine_for(url: str, model: str = "m", max_tokens: int = 16, **changes: Any) -> OpenAIEngine:
    values = {"kind": "openai", "base_url": url, "model": model, "api_key_env": "SCORING_KEY", **changes}
    return OpenAIEngine(OpenAIEngineConfig.model_validate(values), GenerationConfig(max_tokens=max_tokens))


def requests_of(posts: list[str]) -> list[Request]:
    return [Request("suicide_risk", Prompt(system=None, before="", text=post, after="")) for post in posts]


async def complete(engine: OpenAIEngine, requests: list[Request]) -> list[Completion]:
    """Completions in the order of the requests; fails unless there is exactly one for each."""
    found: list[tuple[int, Completion]] = [pair async for pair in engine.complete(requests)]
    assert sorted(index for index, _ in found) == list(range(len(requests)))
    return [completion for _, completion in sorted(found, key=lambda pair: pair[0])]


async def test_every_row_gets_one_completion_whatever_the_server_does(
    server: MisbehavingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    passing = ["none 0", "busy 1", "broken 2", "reset 1", "half 1", "slow 1", "trickle 1"]
    lasting = {
        "broken 9": ("error", "InternalServerError 500"),
        "reset 9": ("error", "APIConnectionError"),
        "slow 9": ("error", "APITimeoutError"),
        "trickle 9": ("error", "APITimeoutError"),
        "garbled 9": ("error", "JSONDecodeError"),
        "filtered 9": ("refused", "content_filter"),
        "blocked 9": ("refused", "BadRequestError 400"),
        "long 9": ("too_long", None),
    }
    posts = [f"{CANARY}-{number} {fault}" for number in range(4) for fault in [*passing, *lasting]]
    engine = engine_for(server.url, max_retries=2, request_timeout_s=1)
    completions = await complete(engine, requests_of(posts))
    await engine.close()

    for post, completion in zip(posts, completions, strict=True):
        fault = post.partition(" ")[2]
        expected = lasting.get(fault, ("stop", None))
        assert (fault, completion.finish_reason, completion.error) == (fault, *expected)
        assert completion.text == ("低自杀风险" if fault in passing else "")
        num_retries = 0 if fault.split()[0] in ("filtered", "blocked", "long", "garbled") else int(fault.split()[1])
        assert (fault, server.attempts[post]) == (fault, 1 + min(2, num_retries))
    seen = caplog.text + repr(completions)
    assert KEY not in seen
    assert CANARY not in seen


async def test_retry_after_is_waited_for(server: MisbehavingServer) -> None:
    engine = engine_for(server.url, max_retries=1)
    [completion] = await complete(engine, requests_of(["a busy 1"]))
    await engine.close()
    assert completion.finish_reason == "stop"
    assert server.arrivals[1] - server.arrivals[0] >= 1.0  # the client's own first wait is half a second at most


async def test_requests_in_flight_are_bounded_over_all_calls(server: MisbehavingServer) -> None:
    server.delay_s = 0.02
    engine = engine_for(server.url, max_concurrency=5)
    batches = [requests_of([f"{batch}-{row}" for row in range(30)]) for batch in range(3)]
    await asyncio.gather(*(complete(engine, batch) for batch in batches))
    await engine.close()
    assert len(server.arrivals) == 90
    assert server.max_in_flight == 5


async def test_completions_stream_as_they_finish(server: MisbehavingServer) -> None:
    engine = engine_for(server.url, request_timeout_s=20)
    stream = engine.complete(requests_of(["0 slow 1", "1"]))
    index, completion = await asyncio.wait_for(anext(stream), timeout=10)
    assert (index, completion.finish_reason) == (1, "stop")
    await stream.aclose()
    await engine.close()


async def test_a_consumer_that_stops_early_leaves_no_task_and_no_request_behind(server: MisbehavingServer) -> None:
    engine = engine_for(server.url, max_concurrency=8)
    before = asyncio.all_tasks()
    stream = engine.complete(requests_of(["0", *(f"{row} slow 1" for row in range(1, 40))]))
    async for index, _ in stream:
        assert index == 0
        break
    await stream.aclose()
    # The other new tasks serve connections: the server runs in this process.
    left = [task for task in asyncio.all_tasks() - before if "_complete_one" in repr(task)]
    assert left == []
    for _ in range(100):
        if server.num_in_flight == 0:
            break
        await asyncio.sleep(0.05)
    assert server.num_in_flight == 0
    # And the engine still works, with all its slots.
    completions = await complete(engine, requests_of([f"again-{row}" for row in range(20)]))
    assert {completion.finish_reason for completion in completions} == {"stop"}
    await engine.close()


async def test_a_refused_key_ends_the_run_and_is_not_shown(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SCORING_KEY", wrong := "sk-canary-wrong")
    engine = engine_for(server.url, max_concurrency=4)
    with pytest.raises(ConfigError, match=r"SCORING_KEY \(HTTP 401\)") as caught:
        await complete(engine, requests_of([f"{row}" for row in range(200)]))
    await engine.close()
    assert len(server.arrivals) <= 4
    assert wrong not in str(caught.value) + repr(caught.value.__context__) + caplog.text


async def test_nobody_listening_ends_the_run_after_the_retries() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        port = unused.getsockname()[1]
        engine = engine_for(f"http://127.0.0.1:{port}/v1", max_retries=1)
        with pytest.raises(
            ConfigError, match=rf"engine\.base_url: no connection to 127\.0\.0\.1:{port} \(ConnectError\)"
        ):
            await complete(engine, requests_of([f"{row}" for row in range(100)]))
        await engine.close()


async def test_a_server_that_goes_away_interrupts_the_run() -> None:
    server = MisbehavingServer()
    runner = await server.start()
    engine = engine_for(server.url, max_retries=0, max_concurrency=4)
    assert (await complete(engine, requests_of(["0"])))[0].finish_reason == "stop"
    await runner.cleanup()
    with pytest.raises(InterruptedRunError, match="20 requests in a row"):
        await complete(engine, requests_of([f"{row}" for row in range(500)]))
    await engine.close()


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address, model) of vLLM's own server with the demo model."""
    if not (DEMO_MODEL / "config.json").is_file():
        pytest.skip("no demo model in mentalglm/demo/model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_API_KEY": KEY,
    }
    model = str(DEMO_MODEL)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "bfloat16"]
    command += ["--enforce-eager", "--max-model-len", "1280", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(60)


def question(text: str, **fields: Any) -> Request:
    prompt = Prompt(system=None, before="考虑以下这个帖子：", text=text, after="\n这个帖子的自杀风险高吗？")
    return Request("suicide_risk", prompt, **fields)


@pytest.mark.long
async def test_a_vllm_server_gives_every_row_one_completion_with_log_probabilities(
    vllm_server: tuple[str, str],
) -> None:
    url, model = vllm_server
    engine = engine_for(url, model, max_concurrency=8)
    posts = [f"第{row}天，" + "很累[泪]" * (2000 if row % 10 == 3 else row % 5) for row in range(24)]
    completions = await complete(engine, [question(post, markers=("理由",)) for post in posts])
    for row, completion in enumerate(completions):
        if row % 10 == 3:
            assert completion == Completion("", "too_long")
            continue
        assert completion.finish_reason in ("stop", "length")
        assert completion.num_prompt_tokens is not None
        assert completion.num_prompt_tokens > 10
        assert completion.num_output_tokens is not None
        assert 1 <= completion.num_output_tokens <= 16
        if completion.text.partition("理由")[0]:
            assert completion.head_logprob is not None
            assert completion.head_logprob <= 0.0
    await engine.close()


@pytest.mark.long
async def test_on_a_vllm_server_the_head_alone_is_the_head_of_the_whole_answer(vllm_server: tuple[str, str]) -> None:
    url, model = vllm_server
    engine = engine_for(url, model, max_concurrency=1)
    [whole] = await complete(engine, [question("今天很累")])
    marker = whole.text[len(whole.text) // 2]  # whatever the model says, a marker that is in it
    [whole] = await complete(engine, [question("今天很累", markers=(marker,))])
    [head] = await complete(engine, [question("今天很累", markers=(marker,), head_only=True)])
    await engine.close()
    assert head.text == whole.text.partition(marker)[0]
    assert head.finish_reason == "stop"
    assert head.num_output_tokens is not None
    assert whole.num_output_tokens is not None
    assert head.num_output_tokens <= whole.num_output_tokens
    if whole.head_logprob is not None:
        assert head.head_logprob == pytest.approx(whole.head_logprob, abs=0.05)  # bfloat16


@pytest.mark.long
async def test_on_a_vllm_server_a_post_cannot_open_a_turn(vllm_server: tuple[str, str]) -> None:
    url, model = vllm_server
    special = [
        token
        for token in json.loads((DEMO_MODEL / "tokenizer.json").read_text())["added_tokens"]
        if token["special"] and neutralise_special_tokens(token["content"]) != token["content"]
    ]
    assert special
    ids = {token["id"] for token in special}

    async def count(client: httpx2.AsyncClient, post: str) -> int:
        """Special tokens that the server reads in a message with this post."""
        body = {"model": model, "messages": [{"role": "user", "content": post}], "add_generation_prompt": True}
        reply = await client.post(url.removesuffix("/v1") + "/tokenize", json=body)
        return sum(token in ids for token in reply.json()["tokens"])

    attack = "".join(token["content"] for token in special)
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        harmless = await count(client, "今天很累")
        assert await count(client, attack) > harmless  # the server does read them
        assert await count(client, neutralise_special_tokens(attack)) == harmless
    engine = engine_for(url, model)
    [completion] = await complete(engine, [question(attack)])
    await engine.close()
    assert completion.flags == ("special_token_in_text",)


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "no-such-model"}, r"engine\.model = 'no-such-model'.*404"),
        ({"max_tokens": 5000}, r"generation\.max_tokens.*400"),
        ({"api_key_env": None}, r"engine\.api_key_env.*401"),
    ],
)
async def test_a_vllm_server_that_cannot_serve_ends_the_run(
    vllm_server: tuple[str, str], changes: dict[str, Any], words: str
) -> None:
    url, model = vllm_server
    engine = engine_for(url, **{"model": model, **changes})
    with pytest.raises(ConfigError, match=words):
        await complete(engine, [question("今天很累")] * 20)
    await engine.close()
