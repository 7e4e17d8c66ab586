"""Engine for any endpoint that speaks the OpenAI chat API: GLM-4-plus, GPT-4, a vLLM server.

The `openai` package retries and backs off (time-outs, connection errors, 408, 409, 429, 5xx; `Retry-After` up to two
minutes); what is left here is to turn every outcome into one `Completion`, and to tell a row that failed from an
endpoint that will fail them all.
"""

import asyncio
import logging
import math
import os
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from aiolimiter import AsyncLimiter
from openai.types.chat.chat_completion import ChatCompletion, Choice

from mentalglm.config.score import GenerationConfig, OpenAIEngineConfig
from mentalglm.engine.occupancy import Occupancy
from mentalglm.engine.protocol import Completion, FinishReason, FollowUp, Request
from mentalglm.errors import ConfigError, InterruptedRunError, UserError
from mentalglm.tasks import find_marker, with_thought_opened

logger = logging.getLogger(__name__)

_MAX_STOPS = 4  # OpenAI's limit for `stop`

# Parameters that an endpoint may refuse and that are left out from then on, since no label hangs on them: without
# `logprobs` there is no confidence, without `stop` the answer is cut here, and `seed` is best effort everywhere.
_OPTIONAL_PARAMETERS = ("logprobs", "stop", "seed")

_DECODING_PARAMETERS = ("max_tokens", "max_completion_tokens", "temperature", "top_p")  # the same for every row

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "model_context_window_exceeded": "length",  # Zhipu
    "content_filter": "refused",
    "sensitive": "refused",  # Zhipu
}

# Error codes of Zhipu are numbers: https://docs.z.ai/api-reference/api-code
_TOO_LONG_CODES = {"context_length_exceeded", "string_above_max_length", "1261"}
_TOO_LONG_WORDS = re.compile(
    r"context[_ ](length|window)|(longer than|exceeds?) (the )?max(imum)?|too[_ ]long|input length", re.IGNORECASE
)
_REFUSED_CODES = {"content_filter", "content_policy_violation", "data_inspection_failed", "1301"}
_REFUSED_WORDS = re.compile(
    r"content (management )?policy|content exists risk|(unsafe|sensitive)[_ ](or|content|words?|chat|check)"
    r"|flagged|moderation",
    re.IGNORECASE,
)
_NO_MODEL_CODES = {"model_not_found", "1211"}
_NO_CREDIT_CODES = {"insufficient_quota", "insufficient_user_quota", "1113"}

# A chat server reads these inside a message as what they stand for, so a post could end its own turn.
_SPECIAL_TOKEN = re.compile(
    r"<[|｜][^<>\n]{1,80}[|｜]>"  # <|user|> of GLM, Qwen, Llama 3; <｜User｜> of DeepSeek
    r"|\[[gs]?MASK\]|<[se]op>"  # ChatGLM, GLM-4
    r"|</?s>|\[/?INST\]|<</?SYS>>"  # Llama 2, Mistral
    r"|<(?:start|end)_of_turn>|</?think>"  # Gemma; reasoning models
)


def neutralise_special_tokens(text: str) -> str:
    """`text` with a zero-width space after the first character of whatever looks like a special token of a chat format.

    Reads the same to a person and to the model, but is no longer one token. Emoji of Weibo, such as [泪], are kept.
    """
    while (broken := _SPECIAL_TOKEN.sub(lambda match: match[0][0] + "\u200b" + match[0][1:], text)) != text:
        text = broken  # one token may have stood inside another
    return text


class OpenAIEngine:
    """Sends each request as one chat completion, at most `max_concurrency` at once.

    It cannot go on from tokens: `Request.head` is answered by a whole answer, which may be another one.

    Prompts are not cut to `generation.max_prompt_tokens`, since only the endpoint knows its tokens: a prompt beyond its
    context is `too_long`.

    `complete` raises (once, and at once on every later call) when the endpoint cannot serve the run. ConfigError: the
    key is refused, the account has no credit, there is no such model or path; and, while nothing has succeeded yet, no
    connection, a value of `generation` refused, or too many failures in a row. InterruptedRunError: an endpoint that
    did answer fails 2 * `max_concurrency` (at least 20) requests in a row.
    """

    def __init__(
        self,
        config: OpenAIEngineConfig,
        generation: GenerationConfig,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Opens no connection. `transport` replaces the network.

        Raises: ConfigError, when the key is missing or cannot be one.
        """
        self._host = urlsplit(config.base_url).netloc
        # Else a line with the address for every request; and what they write at DEBUG is not ours to vouch for.
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._config = config
        self._generation = generation
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=_read_key(config.api_key_env),
            max_retries=config.max_retries,
            http_client=_HttpClient(config, transport),
        )
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._occupancy = Occupancy(config.max_concurrency)
        self._num_asked = 0
        self._refused_parameters: set[str] = set()
        self._max_tokens_parameter = "max_tokens"
        self._has_succeeded = False
        self._num_failures_in_a_row = 0
        self._verdict: UserError | None = None

    @property
    def description(self) -> dict[str, str]:
        """What answers, for the manifest. The key is no part of it."""
        return {
            "engine": "openai",
            "version": openai.__version__,
            "model": self._config.model,
            "device": "remote",
            "endpoint": self._host,
        }

    @property
    def num_restarts(self) -> int:
        """See `Engine.num_restarts`."""
        return 0

    @property
    def seconds(self) -> dict[str, float]:
        """See `Engine.seconds`."""
        return self._occupancy.seconds()

    async def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncGenerator[tuple[int, Completion], None]:
        """See `Engine.complete`.

        Raises: ConfigError, InterruptedRunError, when the endpoint cannot serve the run (see the class).
        """
        tasks = [
            asyncio.create_task(self._complete_one(index, request, follow_up)) for index, request in enumerate(requests)
        ]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:  # also when the consumer stops early, or one task condemned the endpoint
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _complete_one(self, index: int, request: Request, follow_up: FollowUp | None) -> tuple[int, Completion]:
        text = neutralise_special_tokens(request.prompt.text)
        prompt = replace(request.prompt, text=text, preamble=neutralise_special_tokens(request.prompt.preamble))
        messages = [{"role": "user", "content": prompt.user}]
        if request.prompt.system is not None:
            messages.insert(0, {"role": "system", "content": request.prompt.system})
        flags = ("special_token_in_text",) if text != request.prompt.text else ()
        async with self._slots:
            with self._counted():
                completion = replace(await self._ask(request, messages), flags=flags)
                while follow_up is not None and (following := follow_up(index, completion)) is not None:
                    completion = replace(await self._ask(following, messages), flags=flags)
        return index, completion

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._num_asked += 1
        self._occupancy.note(self._num_asked)
        try:
            yield
        finally:
            self._num_asked -= 1
            self._occupancy.note(self._num_asked)

    async def _ask(self, request: Request, messages: list[dict[str, str]]) -> Completion:
        completion: Completion | None = None
        while completion is None:  # ends: each round without a completion gives up one parameter
            if self._verdict is not None:
                raise self._verdict
            parameters = self._parameters(request, messages)
            # Nothing is raised inside `except`: the client's error holds the request, so the key and the post.
            try:
                answer = await self._client.chat.completions.create(**parameters)
            except Exception as error:
                completion = self._failed_completion(error, parameters)
                if completion is not None and completion.finish_reason == "error":
                    self._verdict = self._verdict or self._condemnation(error)
            else:
                completion = _read_answer(answer, request)
        if completion.finish_reason == "error":
            self._num_failures_in_a_row += 1
            self._verdict = self._verdict or self._outage(completion)
        else:
            self._num_failures_in_a_row = 0
            self._has_succeeded = self._has_succeeded or completion.finish_reason in ("stop", "length")
        if self._verdict is not None:
            raise self._verdict
        return completion

    def _parameters(self, request: Request, messages: list[dict[str, str]]) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "model": self._config.model,
            "messages": messages,
            self._max_tokens_parameter: request.max_tokens or self._generation.max_tokens,
            "temperature": self._generation.temperature,
            "top_p": self._generation.top_p,
            "seed": self._generation.seed,
        }
        if self._config.logprobs:
            parameters["logprobs"] = True
        if request.head_only and request.markers:
            parameters["stop"] = list(request.markers[:_MAX_STOPS])
        return {name: value for name, value in parameters.items() if name not in self._refused_parameters}

    def _condemnation(self, error: Exception) -> UserError | None:
        """The error that ends the run, when `error` says that no row will do better; else None."""
        config = self._config
        key = f"the key in {config.api_key_env}" if config.api_key_env else "a request without a key"
        if isinstance(error, openai.APIConnectionError):
            # A time-out or a reset after connecting may be the row's doing; no connection at all is not.
            if self._has_succeeded or not isinstance(
                error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError
            ):
                return None
            return ConfigError(
                f"engine.base_url: no connection to {self._host} ({type(error.__cause__).__name__}); "
                "check the address and that the server runs"
            )
        if not isinstance(error, openai.APIStatusError):
            return None
        status = error.status_code
        if status == 401:
            return ConfigError(
                f"engine.api_key_env: {self._host} refuses {key} (HTTP 401); set engine.api_key_env to the "
                "environment variable that holds a valid key"
            )
        if status == 402 or error.code in _NO_CREDIT_CODES:
            return ConfigError(
                f"engine.api_key_env: {self._host} says that the account of {key} has no credit left (HTTP {status}); "
                "top it up and run the same command again"
            )
        # A 403 in HTML comes from a firewall that dislikes this one post, not from the API.
        if status == 403 and isinstance(error.body, dict):
            return ConfigError(
                f"engine.model = {config.model!r}: {self._host} forbids it to {key} (HTTP 403); "
                "ask for access or name another model"
            )
        if status in (404, 405) or 300 <= status < 400 or error.code in _NO_MODEL_CODES:
            return ConfigError(
                f"engine.model = {config.model!r}: {self._host} has no such model or path (HTTP {status}); "
                "check engine.model, and that engine.base_url ends where /chat/completions follows"
            )
        if status in (400, 422) and error.param in _DECODING_PARAMETERS and not self._has_succeeded:
            return ConfigError(
                f"generation.{error.param.replace('_completion', '')}: {self._host} refuses this value "
                f"for {config.model!r} (HTTP {status}); change it to one that the model allows"
            )
        return None

    def _failed_completion(self, error: Exception, parameters: dict[str, Any]) -> Completion | None:
        """The row's completion after `error`; None when it is worth asking again without a refused parameter."""
        if not isinstance(error, openai.APIStatusError):
            return Completion("", "error", error=type(error).__name__)
        if _is_refused(error):
            return Completion("", "refused", error=f"{type(error).__name__} {error.status_code}")
        if _is_too_long(error):
            return Completion("", "too_long")
        if error.status_code in (400, 422) and self._adapt(error, parameters):
            return None
        return Completion("", "error", error=f"{type(error).__name__} {error.status_code}")

    def _adapt(self, error: openai.APIStatusError, parameters: dict[str, Any]) -> bool:
        """Whether `error` names a parameter of this request that later requests do without."""
        # Reasoning models of OpenAI: "Unsupported parameter: 'max_tokens' ... Use 'max_completion_tokens' instead."
        if "max_completion_tokens" in error.message and "max_tokens" in parameters:
            self._max_tokens_parameter = "max_completion_tokens"
            return True
        for name in _OPTIONAL_PARAMETERS:
            if name in parameters and (
                error.param == name or re.search(rf"(?<![a-z]){name}(?![a-z])", error.message, re.IGNORECASE)
            ):
                if name not in self._refused_parameters:
                    logger.warning("%s refuses the parameter %s; going on without it", self._host, name)
                self._refused_parameters.add(name)
                return True
        return False

    def _outage(self, completion: Completion) -> UserError | None:
        num_failures = self._num_failures_in_a_row
        if num_failures < max(20, 2 * self._config.max_concurrency):
            return None
        problem = f"engine.base_url: {self._host} failed {num_failures} requests in a row ({completion.error})"
        if self._has_succeeded:
            return InterruptedRunError(f"{problem}; when it is well again, run the same command to go on")
        return ConfigError(f"{problem} and answered none; check the endpoint and engine.model")


class _HttpClient(openai.DefaultAsyncHttpxClient):
    """Counts every attempt, also the client's retries, against the rate limit, and bounds its whole time."""

    def __init__(self, config: OpenAIEngineConfig, transport: httpx2.AsyncBaseTransport | None) -> None:
        super().__init__(
            transport=transport,
            limits=httpx2.Limits(max_connections=config.max_concurrency),
            timeout=config.request_timeout_s,
            follow_redirects=False,  # posts go to the host in the config and nowhere else
        )
        self._timeout_s = config.request_timeout_s
        self._limiter: AsyncLimiter | None = None
        if config.requests_per_minute is not None:
            # One request per interval, rather than a minute's worth at once: no window of a minute is over the limit.
            self._limiter = AsyncLimiter(1, 60 * config.num_engines / config.requests_per_minute)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if self._limiter is not None:
            await self._limiter.acquire()
        # The time-outs of httpx2 bound a single read, so a reply that trickles in would never end.
        try:
            async with asyncio.timeout(self._timeout_s):
                return await super().send(request, **options)
        except TimeoutError:
            raise httpx2.ReadTimeout("no whole reply in time", request=request) from None


def _read_key(variable: str | None) -> str:
    if variable is None:
        return "EMPTY"  # else the client would take OPENAI_API_KEY and send it to an endpoint it is not meant for
    key = os.environ.get(variable, "").strip()  # a key read from a file often ends in a newline
    if not key:
        raise ConfigError(
            f"engine.api_key_env = {variable}: this environment variable is not set; set it to the key, "
            "or engine.api_key_env to null for an endpoint without keys"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"engine.api_key_env = {variable}: its value holds characters that a key cannot have; copy the key anew"
        )
    return key


def _is_too_long(error: openai.APIStatusError) -> bool:
    if error.status_code == 413 or error.code in _TOO_LONG_CODES:
        return True
    return error.status_code in (400, 422) and _TOO_LONG_WORDS.search(error.message) is not None


def _is_refused(error: openai.APIStatusError) -> bool:
    if error.code in _REFUSED_CODES:
        return True
    return error.status_code in (400, 403, 451) and _REFUSED_WORDS.search(error.message) is not None


def _read_answer(answer: object, request: Request) -> Completion:
    """The completion in a 200 reply. The client does not validate replies, so any field may be missing or odd."""
    if not isinstance(answer, ChatCompletion):
        return Completion("", "error", error="reply is not JSON")
    try:
        if not answer.choices:
            return Completion("", "error", error="reply without choices")
        return _read_choice(answer.choices[0], answer, request)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError):
        return Completion("", "error", error="reply of unknown form")


def _read_choice(choice: Choice, answer: ChatCompletion, request: Request) -> Completion:
    num_prompt_tokens = answer.usage.prompt_tokens if answer.usage else None
    num_output_tokens = answer.usage.completion_tokens if answer.usage else None

    def failed(finish_reason: FinishReason, error: str) -> Completion:
        return Completion("", finish_reason, num_prompt_tokens, num_output_tokens, error=error)

    if choice.message.refusal:
        return failed("refused", "refusal")
    finish_reason = _FINISH_REASONS.get(choice.finish_reason)
    if finish_reason is None:  # tool_calls, network_error, abort ...
        known = re.fullmatch(r"[a-z_]{1,40}", str(choice.finish_reason))
        return failed("error", f"finish_reason {choice.finish_reason}" if known else "unknown finish_reason")
    if finish_reason == "refused":
        return failed("refused", choice.finish_reason)

    # JSON can hold half of a surrogate pair, which Parquet cannot.
    text = (choice.message.content or "").encode("utf-8", "replace").decode("utf-8")
    marker = find_marker(request.markers, text)
    head_logprob = _head_logprob(choice, text[: marker[0]] if marker else text)
    is_head = request.head_only and bool(request.markers) and (marker is not None or finish_reason == "stop")
    if is_head and marker is not None:  # the endpoint did not stop at this marker
        text, finish_reason = text[: marker[1]], "stop"
    elif is_head:
        # Endpoints leave the marker out, and few say whether it was one that they stopped at.
        text += request.markers[0]
    return Completion(
        with_thought_opened(text),
        finish_reason,
        num_prompt_tokens,
        num_output_tokens,
        head_logprob=head_logprob,
        is_head=is_head,
    )


def _head_logprob(choice: Choice, head: str) -> float | None:
    """Sum of the log-probabilities of the tokens that lie wholly in `head`; None when they cannot be told.

    Counted in bytes, since a token may be part of a character. The end-of-turn token lies behind the head.
    """
    if not head or choice.logprobs is None or not choice.logprobs.content:
        return None
    tokens = choice.logprobs.content
    token_bytes = [
        token.token.encode("utf-8", "replace") if token.bytes is None else bytes(token.bytes) for token in tokens
    ]
    head_bytes = head.encode("utf-8")
    if not b"".join(token_bytes).startswith(head_bytes):
        return None
    total = 0.0
    start = 0
    for token, piece in zip(tokens, token_bytes, strict=True):
        if start == len(head_bytes) or start + len(piece) > len(head_bytes):
            break
        total += token.logprob
        start += len(piece)
    return total if math.isfinite(total) else None
