"""The OpenAI engine against a server inside the process: what each reply becomes, and what each request holds."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentalglm.config.score import GenerationConfig, OpenAIEngineConfig
from mentalglm.engine.openai import OpenAIEngine, neutralise_special_tokens
from mentalglm.engine.protocol import Completion, Request
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.tasks import Prompt
from tests.virtual_time import run

KEY = "sk-canary-key-8f2d"
POST = "canary post text"
Reply = httpx2.Response | Exception
Server = Callable[[dict[str, Any]], Reply]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORING_KEY", KEY)


def config(**changes: Any) -> OpenAIEngineConfig:
    values = {"kind": "openai", "base_url": "http://llm.test/v1", "model": "m", "api_key_env": "SCORING_KEY"}
    return OpenAIEngineConfig.model_validate({**values, "max_retries": 0, **changes})


def engine_of(server: Server, generation: GenerationConfig | None = None, **changes: Any) -> OpenAIEngine:
    def handle(request: httpx2.Request) -> httpx2.Response:
        reply = server(json.loads(request.content))
        if isinstance(reply, Exception):
            raise reply
        return reply

    return OpenAIEngine(config(**changes), generation or GenerationConfig(), transport=httpx2.MockTransport(handle))


def recording(bodies: list[dict[str, Any]], reply: Reply) -> Server:
    """A server that keeps what it was sent and always gives the same reply."""

    def server(body: dict[str, Any]) -> Reply:
        bodies.append(body)
        return reply

    return server


def request(text: str = POST, **fields: Any) -> Request:
    return Request(
        "suicide_risk", Prompt(system=None, before="考虑以下这个帖子：“", text=text, after="”问题？"), **fields
    )


def answer(content: str | None = "低自杀风险", finish_reason: str | None = "stop", **message: Any) -> httpx2.Response:
    return chat([{"index": 0, "finish_reason": finish_reason, "message": {"content": content, **message}}])


def chat(choices: Any, **fields: Any) -> httpx2.Response:
    usage = {"prompt_tokens": 21, "completion_tokens": 7, "total_tokens": 28}
    return httpx2.Response(
        200, json={"id": "1", "object": "chat.completion", "choices": choices, "usage": usage, **fields}
    )


def failure(status: int, message: str = "no", **fields: Any) -> httpx2.Response:
    return httpx2.Response(status, json={"error": {"message": message, **fields}})


def with_logprobs(
    content: str, tokens: list[tuple[str | bytes, float]], finish_reason: str = "stop"
) -> httpx2.Response:
    """Tokens given as bytes are as OpenAI sends them, tokens given as text are without bytes."""
    entries: list[dict[str, Any]] = [
        {"token": token, "bytes": None, "logprob": logprob, "top_logprobs": []}
        if isinstance(token, str)
        else {"token": token.decode("utf-8", "replace"), "bytes": list(token), "logprob": logprob, "top_logprobs": []}
        for token, logprob in tokens
    ]
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message, "logprobs": {"content": entries}}
    return chat([choice])


async def complete(engine: OpenAIEngine, requests: list[Request]) -> list[Completion]:
    """Completions in the order of the requests; fails unless there is exactly one for each."""
    found: dict[int, Completion] = {}
    try:
        async for index, completion in engine.complete(requests):
            assert index not in found
            found[index] = completion
    finally:
        await engine.close()
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


async def complete_one(server: Server, asked: Request | None = None, **changes: Any) -> Completion:
    [completion] = await complete(engine_of(server, **changes), [asked or request()])
    return completion


# What is sent


async def test_a_request_carries_the_prompt_and_the_decoding() -> None:
    sent: list[dict[str, Any]] = []
    generation = GenerationConfig(max_tokens=33, temperature=0.5, top_p=0.9, seed=4)
    prompt = Prompt(system="你是心理学家", before="帖子：", text="今天很累[泪]", after="？")
    engine = engine_of(recording(sent, answer()), generation)
    await complete(engine, [Request("suicide_risk", prompt)])
    assert sent == [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "你是心理学家"},
                {"role": "user", "content": "帖子：今天很累[泪]？"},
            ],
            "max_tokens": 33,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 4,
            "logprobs": True,
        }
    ]


async def test_instruction_and_examples_stand_first_and_open_no_turn() -> None:
    sent: list[dict[str, Any]] = []
    prompt = Prompt(None, "帖子：", "今天很累", "？", preamble="例：<|user|>好\n")
    await complete(engine_of(recording(sent, answer())), [Request("suicide_risk", prompt)])
    [message] = sent[0]["messages"]
    assert message["content"].startswith("例：")
    assert message["content"].endswith("好\n帖子：今天很累？")
    assert "<|user|>" not in message["content"]


async def test_head_only_sends_the_first_four_markers_as_stops_and_cuts_at_the_others() -> None:
    sent: list[dict[str, Any]] = []
    asked = request(markers=("a:", "b:", "c:", "d:", "理由"), head_only=True)
    completion = await complete_one(recording(sent, answer("低自杀风险。理由：因为", "length")), asked)
    assert sent[0]["stop"] == ["a:", "b:", "c:", "d:"]
    assert (completion.text, completion.is_head) == ("低自杀风险。理由", True)
    assert completion.finish_reason == "stop"  # the head is whole, though the answer is not


async def test_without_head_only_nothing_is_cut_or_stopped() -> None:
    sent: list[dict[str, Any]] = []
    completion = await complete_one(recording(sent, answer("低。理由：因为")), request(markers=("理由",)))
    assert "stop" not in sent[0]
    assert completion.text == "低。理由：因为"


async def test_an_endpoint_without_keys_is_not_sent_the_key_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    seen: list[str] = []

    def handle(incoming: httpx2.Request) -> httpx2.Response:
        seen.append(incoming.headers["authorization"])
        return answer()

    engine = OpenAIEngine(config(api_key_env=None), GenerationConfig(), transport=httpx2.MockTransport(handle))
    await complete(engine, [request()])
    assert seen == ["Bearer EMPTY"]


async def test_a_redirect_is_not_followed_to_another_host() -> None:
    hosts: list[str] = []

    def handle(incoming: httpx2.Request) -> httpx2.Response:
        hosts.append(incoming.url.host)
        return httpx2.Response(307, headers={"location": "http://elsewhere.test/v1/chat/completions"})

    engine = OpenAIEngine(config(), GenerationConfig(), transport=httpx2.MockTransport(handle))
    with pytest.raises(ConfigError, match=r"base_url"):
        await complete(engine, [request()])
    assert hosts == ["llm.test"]


# What comes back


@pytest.mark.parametrize(
    ("finish_reason", "expected", "error"),
    [
        ("stop", "stop", None),
        ("length", "length", None),
        ("model_context_window_exceeded", "length", None),
        ("content_filter", "refused", "content_filter"),
        ("sensitive", "refused", "sensitive"),
        ("network_error", "error", "finish_reason network_error"),
        ("tool_calls", "error", "finish_reason tool_calls"),
        (None, "error", "unknown finish_reason"),
        (POST, "error", "unknown finish_reason"),
    ],
)
async def test_finish_reasons_map(finish_reason: str | None, expected: str, error: str | None) -> None:
    completion = await complete_one(lambda _: answer("低自杀风险", finish_reason))
    assert (completion.finish_reason, completion.error) == (expected, error)
    assert completion.text == ("低自杀风险" if error is None else "")
    assert (completion.num_prompt_tokens, completion.num_output_tokens) == (21, 7)
    assert completion.positive_probability is None


async def test_a_refusal_field_is_a_refusal_and_its_words_are_not_the_answer() -> None:
    completion = await complete_one(lambda _: answer(None, refusal="I cannot help with that"))
    assert completion == Completion("", "refused", 21, 7, error="refusal")


@pytest.mark.parametrize(
    "reply",
    [
        failure(400, "Your prompt was filtered by our content management policy", code="content_filter"),
        failure(400, "系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301"),
        failure(400, "Content Exists Risk", type="invalid_request_error"),
        failure(400, "Input data may contain inappropriate content", code="data_inspection_failed"),
        failure(403, "Your chosen model requires moderation and your input was flagged", code=403),
    ],
)
async def test_content_filters_that_answer_with_an_error_are_refusals(reply: httpx2.Response) -> None:
    completion = await complete_one(lambda _: reply)
    assert completion.finish_reason == "refused"
    assert re.fullmatch(r"\w+ 40[03]", completion.error or "")


@pytest.mark.parametrize(
    "reply",
    [
        failure(400, "too much", code="context_length_exceeded"),
        failure(400, "Prompt 超长", code="1261"),
        failure(
            400, "This model's maximum context length is 1280 tokens. However, your prompt contains 9000", code=400
        ),
        failure(400, "'max_tokens' or 'max_completion_tokens' is too large. This model's maximum context length is 9"),
        failure(400, "The decoder prompt (length 9) is longer than the maximum model length of 8."),
        failure(413, "Request Entity Too Large"),
    ],
)
async def test_prompts_beyond_the_context_are_too_long_and_not_asked_again(reply: httpx2.Response) -> None:
    bodies: list[dict[str, Any]] = []
    completion = await complete_one(recording(bodies, reply))
    assert completion == Completion("", "too_long")
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (httpx2.Response(200, json={"error": {"message": POST}}), "reply without choices"),
        (chat([]), "reply without choices"),
        (chat(None), "reply without choices"),
        (chat([{"index": 0, "finish_reason": "stop"}]), "reply of unknown form"),
        (chat([{"index": 0, "finish_reason": "stop", "message": None}]), "reply of unknown form"),
        (chat("text"), "reply of unknown form"),
        (httpx2.Response(200, text="<html>busy</html>"), "reply is not JSON"),
        (httpx2.Response(200, json=[1]), "reply is not JSON"),
        (
            httpx2.Response(200, content=b'{"choices": [', headers={"content-type": "application/json"}),
            "JSONDecodeError",
        ),
        (failure(500, POST), "InternalServerError 500"),
        (failure(429, POST), "RateLimitError 429"),
        (failure(400, POST), "BadRequestError 400"),
        (failure(418, POST), "APIStatusError 418"),
        (httpx2.Response(403, text="<html>blocked by firewall</html>"), "PermissionDeniedError 403"),
        (httpx2.ReadError(POST), "APIConnectionError"),
        (httpx2.ReadTimeout(POST), "APITimeoutError"),
        (RuntimeError(POST), "RuntimeError"),
    ],
)
async def test_any_other_trouble_is_an_error_of_the_row_without_the_words_of_the_reply(
    reply: Reply, error: str
) -> None:
    completion = await complete_one(lambda _: reply)
    assert (completion.finish_reason, completion.text, completion.error) == ("error", "", error)


async def test_one_bad_row_does_not_fail_the_others() -> None:
    texts = [f"post {number}" for number in range(12)]

    def server(body: dict[str, Any]) -> Reply:
        return failure(500) if "post 5”" in body["messages"][0]["content"] else answer()

    completions = await complete(engine_of(server), [request(text) for text in texts])
    assert [completion.finish_reason for completion in completions] == ["stop"] * 5 + ["error"] + ["stop"] * 6


async def test_a_prompt_that_utf8_cannot_hold_fails_alone() -> None:
    completions = await complete(engine_of(lambda _: answer()), [request("bad \ud83d"), request()])
    assert [completion.finish_reason for completion in completions] == ["error", "stop"]
    assert completions[0].error == "UnicodeEncodeError"


async def test_half_a_surrogate_pair_in_an_answer_becomes_storable() -> None:
    raw = json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": "低\ud83d"}}]})
    reply = httpx2.Response(200, content=raw.encode(), headers={"content-type": "application/json"})
    completion = await complete_one(lambda _: reply)
    assert completion.text == "低?"
    assert completion.num_prompt_tokens is None


async def test_an_answer_without_content_is_empty_and_keeps_its_reason() -> None:
    assert (await complete_one(lambda _: answer(None))).text == ""
    assert (await complete_one(lambda _: answer(None, "length"))).finish_reason == "length"


# Log-probabilities


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # A marker of two tokens.
        (
            [("高自杀".encode(), -0.1), ("风险。".encode(), -0.2), ("理".encode(), -4.0), ("由：因为".encode(), -4.0)],
            -0.3,
        ),
        # Texts instead of bytes.
        ([("高自杀", -0.1), ("风险。", -0.2), ("理由", -4.0), ("：因为", -4.0)], -0.3),
        # A character split over two tokens inside the head.
        (
            [
                ("高自杀风".encode() + "险".encode()[:1], -0.1),
                ("险".encode()[1:] + "。".encode(), -0.2),
                ("理由：因为".encode(), -4),
            ],
            -0.3,
        ),
        # A token that straddles the start of the marker is outside.
        (
            [("高自杀".encode(), -0.1), ("风险".encode(), -0.2), ("。理由".encode(), -4.0), ("：因为".encode(), -4.0)],
            -0.3,
        ),
        # A straddling token cut inside a character.
        (
            [
                ("高自杀风险。".encode(), -0.3),
                ("理".encode()[:2], -4.0),
                ("理".encode()[2:] + "由：因为".encode(), -4.0),
            ],
            -0.3,
        ),
        # Tokens that are not the answer's: nothing can be told.
        ([("别的".encode(), -0.1)], None),
        ([], None),
    ],
)
async def test_head_logprob_sums_the_tokens_before_the_marker(
    tokens: list[tuple[str | bytes, float]], expected: float | None
) -> None:
    asked = request(markers=("Reasoning", "理由"))
    completion = await complete_one(lambda _: with_logprobs("高自杀风险。理由：因为", tokens), asked)
    assert completion.head_logprob == (None if expected is None else pytest.approx(expected))


async def test_a_log_probability_of_minus_infinity_is_none() -> None:
    finite = with_logprobs("低。", [("低。", -12345.5)])  # Python servers write -Infinity, though it is not JSON
    reply = httpx2.Response(200, content=finite.content.replace(b"-12345.5", b"-Infinity"))
    assert (await complete_one(lambda _: reply)).head_logprob is None


async def test_head_logprob_of_a_head_leaves_out_the_marker_and_the_end_of_turn() -> None:
    asked = request(markers=("理由",), head_only=True)
    stopped = with_logprobs("低。", [("低".encode(), -0.5), ("。".encode(), -0.25), ("理由".encode(), -4.0)])
    assert (await complete_one(lambda _: stopped, asked)).head_logprob == -0.75
    ended = with_logprobs("低。", [("低".encode(), -0.5), ("。".encode(), -0.25), (b"<|im_end|>", -4.0), (b"", -4.0)])
    assert (await complete_one(lambda _: ended, asked)).head_logprob == -0.75


async def test_head_logprob_is_none_where_the_endpoint_gives_none_or_the_head_is_empty() -> None:
    assert (await complete_one(lambda _: answer())).head_logprob is None
    empty = with_logprobs("理由：", [("理由：".encode(), -0.5)])
    assert (await complete_one(lambda _: empty, request(markers=("理由",)))).head_logprob is None


# Parameters that an endpoint does not take


@pytest.mark.parametrize(
    ("parameter", "message", "param"),
    [
        ("logprobs", "You are not allowed to request logprobs from this model", None),
        ("logprobs", "no", "logprobs"),
        ("stop", "Unsupported parameter: 'stop' is not supported with this model.", "stop"),
        ("seed", "Extra inputs are not permitted: seed", None),
    ],
)
async def test_a_refused_optional_parameter_is_left_out_from_then_on(
    parameter: str, message: str, param: str | None
) -> None:
    bodies: list[dict[str, Any]] = []

    def server(body: dict[str, Any]) -> Reply:
        bodies.append(body)
        return failure(400, message, param=param) if parameter in body else answer("低。理由：因为")

    asked = request(markers=("理由",), head_only=True)
    engine = engine_of(server, max_concurrency=1)
    completions = await complete(engine, [asked] * 3)
    assert [completion.text for completion in completions] == ["低。理由"] * 3
    assert [parameter in body for body in bodies] == [True, False, False, False]


async def test_a_model_that_wants_max_completion_tokens_gets_it() -> None:
    bodies: list[dict[str, Any]] = []

    def server(body: dict[str, Any]) -> Reply:
        bodies.append(body)
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return failure(400, message, param="max_tokens", code="unsupported_parameter")
        if "logprobs" in body:
            return failure(400, "logprobs are not supported with reasoning models", param="logprobs")
        return answer()

    completions = await complete(engine_of(server), [request()] * 30)
    assert {completion.finish_reason for completion in completions} == {"stop"}
    assert bodies[-1]["max_completion_tokens"] == 256
    assert "max_tokens" not in bodies[-1]


async def test_a_400_that_always_names_a_parameter_ends_as_an_error() -> None:
    completion = await complete_one(lambda _: failure(400, "bad logprobs, seed, stop, max_completion_tokens"))
    assert completion.error == "BadRequestError 400"


# Endpoints that fail the whole run


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (failure(401, f"Incorrect API key provided: {KEY}"), ["api_key_env", "SCORING_KEY", "llm.test", "401"]),
        (failure(403, "no access"), ["engine.model", "llm.test", "403"]),
        (failure(404, f"{POST} not found"), ["engine.model = 'm'", "llm.test", "404"]),
        (httpx2.Response(404, text="<html>nginx</html>"), ["engine.base_url", "llm.test", "404"]),
        (failure(400, "Model does not exist", code="1211"), ["engine.model = 'm'", "llm.test"]),
        (failure(429, "You exceeded your current quota", code="insufficient_quota"), ["credit", "SCORING_KEY"]),
        (failure(429, "您的账户已欠费", code="1113"), ["credit", "SCORING_KEY"]),
        (
            failure(400, "max_tokens=5000 cannot be greater than", param="max_tokens"),
            ["generation.max_tokens", "llm.test"],
        ),
        (failure(400, "Only the default (1) value", param="temperature"), ["generation.temperature", "llm.test"]),
        (httpx2.ConnectError(POST), ["engine.base_url", "llm.test", "ConnectError"]),
        (httpx2.ConnectTimeout(POST), ["engine.base_url", "llm.test", "ConnectTimeout"]),
    ],
)
async def test_an_endpoint_that_cannot_serve_is_reported_once_with_the_fix(reply: Reply, words: list[str]) -> None:
    calls: list[dict[str, Any]] = []
    engine = engine_of(recording(calls, reply), max_concurrency=2)
    with pytest.raises(ConfigError) as caught:
        await complete(engine, [request()] * 50)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "\n" not in message
    assert KEY not in message
    assert POST not in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert len(calls) <= 2
    with pytest.raises(ConfigError):  # and is not asked again
        await complete(engine, [request()])
    assert len(calls) <= 2


async def test_a_lost_connection_after_a_success_is_an_error_of_the_row() -> None:
    replies: Iterator[Reply] = iter([answer(), httpx2.ConnectError("x"), answer()])
    completions = await complete(engine_of(lambda _: next(replies), max_concurrency=1), [request()] * 3)
    assert sorted(completion.finish_reason for completion in completions) == ["error", "stop", "stop"]


async def test_an_endpoint_that_dies_stops_the_run_rather_than_failing_every_row() -> None:
    calls: list[dict[str, Any]] = []

    def server(body: dict[str, Any]) -> Reply:
        calls.append(body)
        return answer() if len(calls) <= 5 else failure(503, POST)

    engine = engine_of(server, max_concurrency=4)
    with pytest.raises(InterruptedRunError, match=r"llm\.test failed 20 requests in a row \(InternalServerError 503\)"):
        await complete(engine, [request()] * 1000)
    assert len(calls) <= 5 + 20 + 4


async def test_an_endpoint_that_never_answers_well_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"failed 20 requests in a row \(BadRequestError 400\)"):
        await complete(engine_of(lambda _: failure(400, "no chat template"), max_concurrency=4), [request()] * 1000)


async def test_failures_between_successes_are_no_outage() -> None:
    replies: Iterator[Reply] = iter([answer(), failure(500)] * 50)
    completions = await complete(engine_of(lambda _: next(replies), max_concurrency=1), [request()] * 100)
    assert sum(completion.finish_reason == "error" for completion in completions) == 50


async def test_refusals_are_no_outage() -> None:
    engine = engine_of(lambda _: failure(400, "x", code="content_filter"), max_concurrency=4)
    completions = await complete(engine, [request()] * 100)
    assert {completion.finish_reason for completion in completions} == {"refused"}


# Rate limit


def test_the_rate_limit_is_shared_by_the_engines_and_counts_retries() -> None:
    # 960 a minute over two engines: each sends one per 0.125 s, first attempts and retries alike.
    arrivals: list[float] = []
    failing = {f"{row}" for row in range(3)}

    def server(body: dict[str, Any]) -> Reply:
        arrivals.append(asyncio.get_running_loop().time())
        [post] = re.findall(r"\d+", body["messages"][-1]["content"])
        if post in failing:
            failing.remove(post)
            return httpx2.Response(500, headers={"Retry-After": "0.25"}, json={"error": {"message": "no"}})
        return answer()

    async def main() -> None:
        engine = engine_of(server, requests_per_minute=960, num_engines=2, max_retries=3)
        completions = await complete(engine, [request(f"{row}") for row in range(10)])
        assert {completion.finish_reason for completion in completions} == {"stop"}

    run(main())
    assert failing == set()
    assert [at - arrivals[0] for at in arrivals] == [0.125 * n for n in range(13)]


# Key and address


@pytest.mark.parametrize("value", [None, "", " \n", f"{KEY}\u200b", f"{KEY}\x07"])
def test_a_missing_or_broken_key_names_the_variable_and_not_the_value(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCORING_KEY")
    if value is not None:
        monkeypatch.setenv("SCORING_KEY", value)
    with pytest.raises(ConfigError, match="SCORING_KEY") as caught:
        engine_of(lambda _: answer())
    assert KEY not in str(caught.value)


async def test_a_newline_after_the_key_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORING_KEY", f"{KEY}\n")
    assert (await complete_one(lambda _: answer())).finish_reason == "stop"


async def test_the_key_and_the_post_appear_in_no_log_and_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.DEBUG)  # as OPENAI_LOG=debug does
    replies: Iterator[Reply] = iter(
        [failure(500, POST), answer(), failure(400, f"logprobs {POST}"), answer(), RuntimeError(POST)]
    )
    engine = engine_of(lambda _: next(replies), max_concurrency=1)
    completions = await complete(engine, [request()] * 4)
    seen = caplog.text + repr(engine) + repr(vars(engine)) + repr(completions) + repr(engine.description)
    assert "going on without it" in caplog.text
    assert KEY not in seen
    assert POST not in seen
    assert engine.description["endpoint"] == "llm.test"


# Special tokens in a post

SPECIAL = [
    "<|user|>", "<|im_start|>", "<|endoftext|>", "<|begin_of_image|>", "<|reserved_special_token_7|>", "<｜User｜>",
    "<｜end▁of▁sentence｜>", "[gMASK]", "[sMASK]", "[MASK]", "<sop>", "<eop>", "<s>", "</s>", "[INST]", "[/INST]",
    "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>",
]  # fmt: skip
ORDINARY = [
    "[泪]",
    "[微笑]",
    "[doge]",
    "<3",
    "a < b > c",
    "<|",
    "|>",
    ">_<|||",
    "【图片】",
    "<br>",
    "[MASKS]",
    "<<《书》>>",
]


@pytest.mark.parametrize("token", SPECIAL)
async def test_special_tokens_are_broken_up_in_the_post_alone(token: str) -> None:
    sent: list[dict[str, Any]] = []
    prompt = Prompt(system=None, before="<|user|>", text=f"我{token}累", after="[MASK]")
    engine = engine_of(recording(sent, answer()))
    [completion] = await complete(engine, [Request("suicide_risk", prompt)])
    broken = f"{token[0]}\u200b{token[1:]}"
    assert sent[0]["messages"][0]["content"] == f"<|user|>我{broken}累[MASK]"
    assert completion.flags == ("special_token_in_text",)


async def test_a_row_that_fails_keeps_its_flag() -> None:
    assert (await complete_one(lambda _: failure(500), request("<s>"))).flags == ("special_token_in_text",)


@pytest.mark.parametrize("text", ORDINARY)
async def test_ordinary_text_and_weibo_emoji_are_sent_as_they_are(text: str) -> None:
    assert neutralise_special_tokens(text) == text
    assert (await complete_one(lambda _: answer(), request(text))).flags == ()


@given(st.lists(st.sampled_from([*SPECIAL, *ORDINARY, "<", "|", "｜", ">", "[", "s", "<|<"]), max_size=8).map("".join))
def test_no_special_token_survives_and_nothing_else_changes(text: str) -> None:
    neutral = neutralise_special_tokens(text)
    assert not any(token in neutral for token in SPECIAL)
    assert neutralise_special_tokens(neutral) == neutral
    assert neutral.replace("\u200b", "") == text
