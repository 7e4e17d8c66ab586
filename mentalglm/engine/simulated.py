"""An engine in virtual time: how long requests take when vLLM batches them, without a GPU and the same each time.

What is simulated is vLLM's scheduler as far as the order of requests can matter to it: continuous batching with a
number of slots and a token budget for each step, prefill in chunks, KV blocks shared by equal prefixes, least recently
used ones evicted. A step takes as long as the slower of reading the weights and computing, and the reading of the KV
cache (roofline model; Williams et al., CACM 2009). Not simulated: preemption (a request starts when the blocks of its
whole answer are free), speculative decoding, several GPUs.
"""

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

BLOCK_TOKENS = 16
"""Tokens of a KV block: vLLM's default, and the grain of its prefix cache."""


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What decides the time of a step. The defaults: GLM-4-9B in BF16 on an H100 SXM with 80 GB.

    Sizes of the model: 9.4 G parameters, of which 8.8 G take part in a token's product (the embedding does not); 40
    layers with 2 KV heads of 128 (its config.json). Of the card: NVIDIA's data sheet, 989 TFLOPS dense BF16 and 3.35
    TB/s. The two efficiencies and the overhead are assumed, not measured: common values of tuned kernels.
    """

    weight_bytes: float = 18.8e9
    flops_per_token: float = 2 * 8.8e9
    kv_bytes_per_token: float = 40 * 2 * 2 * 128 * 2
    peak_flops: float = 989e12
    bandwidth: float = 3.35e12
    """Bytes/s."""
    compute_efficiency: float = 0.5
    bandwidth_efficiency: float = 0.8
    overhead_s: float = 0.002
    """Of a step: scheduling, launching, sampling."""
    speed: float = 1.0
    """0.5: everything takes twice as long."""
    max_num_seqs: int = 256
    """Slots."""
    max_num_batched_tokens: int = 8192
    """Most tokens of a step."""
    num_blocks: int = 76_000
    """KV blocks: what 0.9 of the card's 80 GB leave beside weights and 3 GB of activations."""

    def step_s(self, num_tokens: int, num_context_tokens: int) -> float:
        """Seconds of a step that computes `num_tokens` and reads the KV cache of `num_context_tokens`."""
        read_s = self.weight_bytes / (self.bandwidth * self.bandwidth_efficiency)
        compute_s = num_tokens * self.flops_per_token / (self.peak_flops * self.compute_efficiency)
        kv_s = num_context_tokens * self.kv_bytes_per_token / (self.bandwidth * self.bandwidth_efficiency)
        return (max(read_s, compute_s) + kv_s + self.overhead_s) / self.speed


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedRequest:
    """A prompt and how long its answer will be."""

    num_prompt_tokens: int
    num_output_tokens: int
    blocks: tuple[Hashable, ...] = ()
    """For each full block of the prompt, what names it and all before it: equal where prefixes are."""
    owner: tuple[int, int] = (0, 0)
    """Who asks, in the caller's own numbers."""


class SimulatedEngine:
    """First come, first served. `submit` and `step` in turns; `now` is virtual time."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.now = 0.0
        """Seconds; the end of the last step."""
        self.busy_s = 0.0
        """Of all steps."""
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        """Of the prompts' tokens, those that were not computed."""
        self._cache = _BlockCache(model.num_blocks)
        self._waiting: deque[SimulatedRequest] = deque()
        self._prefilling: deque[tuple[SimulatedRequest, int]] = deque()
        """With the tokens that are left to compute."""
        self._ends: list[tuple[int, int, SimulatedRequest]] = []
        """Heap of what decodes: (the step of its last token, a number, request)."""
        self._num_steps = 0
        self._num_started = 0
        self._num_context_tokens = 0
        """Of what decodes."""

    @property
    def is_idle(self) -> bool:
        """Nothing runs or waits."""
        return not (self._waiting or self._prefilling or self._ends)

    def submit(self, requests: Iterable[SimulatedRequest], at: float) -> None:
        """Puts requests behind those that wait. They are seen at the next step, which is not before `at`.

        Raises: ValueError for one that can never run.
        """
        for request in requests:
            if min(request.num_prompt_tokens, request.num_output_tokens) < 1:
                raise ValueError("a request has a prompt and an answer of at least one token")
            if _num_blocks(request) > self.model.num_blocks:
                raise ValueError(f"num_blocks = {self.model.num_blocks}: a request needs {_num_blocks(request)}")
            self._waiting.append(request)
        if not self._prefilling and not self._ends:
            self.now = max(self.now, at)

    def step(self) -> list[SimulatedRequest]:
        """Computes one step. Returns what has finished with it, in order of starting."""
        num_decoded = len(self._ends)
        budget = self.model.max_num_batched_tokens - num_decoded
        num_tokens = num_decoded
        prefilled: list[SimulatedRequest] = []
        self._admit(budget)
        while self._prefilling and budget > 0:
            request, num_left = self._prefilling.popleft()
            chunk = min(num_left, budget)
            budget -= chunk
            num_tokens += chunk
            if chunk < num_left:
                self._prefilling.appendleft((request, num_left - chunk))
            else:
                prefilled.append(request)
        seconds = self.model.step_s(num_tokens, self._num_context_tokens)
        self.now += seconds
        self.busy_s += seconds
        self._num_steps += 1
        self._num_context_tokens += num_decoded
        for request in prefilled:  # the step that ends a prompt gives the first token of the answer
            self._num_started += 1
            self._num_context_tokens += request.num_prompt_tokens + 1
            heapq.heappush(self._ends, (self._num_steps + request.num_output_tokens - 1, self._num_started, request))
        finished: list[SimulatedRequest] = []
        while self._ends and self._ends[0][0] <= self._num_steps:
            request = heapq.heappop(self._ends)[2]
            self._num_context_tokens -= request.num_prompt_tokens + request.num_output_tokens
            self._cache.release(request)
            finished.append(request)
        return finished

    def _admit(self, budget: int) -> None:
        """Starts what fits into slots, blocks and, with what is being prefilled, into the step's tokens."""
        budget -= sum(num_left for _, num_left in self._prefilling)
        while self._waiting and budget > 0 and len(self._ends) + len(self._prefilling) < self.model.max_num_seqs:
            request = self._waiting[0]
            num_cached = self._cache.take(request)
            if num_cached is None:
                return
            self._waiting.popleft()
            self._prefilling.append((request, request.num_prompt_tokens - num_cached))
            self.num_prompt_tokens += request.num_prompt_tokens
            self.num_cached_tokens += num_cached
            budget -= request.num_prompt_tokens - num_cached


class _BlockCache:
    """KV blocks: in use, or free and still known by their content until they are needed, the oldest first.

    As in vLLM: a block is known from the step that computes it, at least one token of a prompt is computed anew, full
    blocks of answers stay too, and the blocks of a request go from the last to the first.
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._uses: Counter[Hashable] = Counter()
        """Of the known blocks that are in use, by how many requests."""
        self._free: OrderedDict[Hashable, None] = OrderedDict()
        """Known and not in use, the one to go first in front."""
        self._num_unknown = 0
        """In use, of one request alone."""
        self._num_answers = 0

    def take(self, request: SimulatedRequest) -> int | None:
        """Tokens of the prompt that need not be computed; None: not enough blocks are free."""
        known = _known(request)
        hits = 0
        while hits < len(known) and (known[hits] in self._uses or known[hits] in self._free):
            hits += 1
        num_free_hits = sum(key in self._free for key in known[:hits])
        num_new = _num_blocks(request) - hits
        if len(self._uses) + num_free_hits + self._num_unknown + num_new > self._num_blocks:
            return None
        for key in known:
            self._uses[key] += 1
            self._free.pop(key, None)
        self._num_unknown += _num_blocks(request) - len(known)
        self._evict()
        return hits * BLOCK_TOKENS

    def release(self, request: SimulatedRequest) -> None:
        """The request has finished."""
        num_unknown = _num_blocks(request) - len(known := _known(request))
        self._num_unknown -= num_unknown
        num_full = (request.num_prompt_tokens + request.num_output_tokens) // BLOCK_TOKENS
        for _ in range(num_full - len(known)):
            self._num_answers += 1
            self._free[("answer", self._num_answers)] = None
        for key in reversed(known):
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key]
                self._free[key] = None
        self._evict()

    def _evict(self) -> None:
        while len(self._uses) + self._num_unknown + len(self._free) > self._num_blocks:
            self._free.popitem(last=False)


def _known(request: SimulatedRequest) -> Sequence[Hashable]:
    """The prompt's blocks that another request may share: the last token is always computed."""
    return request.blocks[: (request.num_prompt_tokens - 1) // BLOCK_TOKENS]


def _num_blocks(request: SimulatedRequest) -> int:
    return -(-(request.num_prompt_tokens + request.num_output_tokens) // BLOCK_TOKENS)
