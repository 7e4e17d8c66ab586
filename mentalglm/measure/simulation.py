"""How evenly a run's engines end, and what they share, by the order of the work: simulated, the same each time.

    python -m mentalglm.measure.simulation --num-engines 1 4 16 64

The tasks' own templates, the job's own orders (`scoring.order`) and its board hand work to engines in virtual time
(`engine.simulated`). Invented are the posts: a token is a character, lengths are log-normal with median 45 and cut at
1,000 tokens, files have 1 to 16 shards of rows. Answers are as long as in IMHI's training data (residual deviation of
the logarithm 0.2, exponent of the post's length 0.12; measured on its DR, SAD and dreaddit parts).
"""

import argparse
import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pyarrow as pa

from mentalglm.config import ScoreConfig
from mentalglm.corpus import CorpusPlan, InputFile
from mentalglm.corpus.parquet import plan_ranges
from mentalglm.corpus.synthetic import COMMON_CHARACTERS
from mentalglm.engine.simulated import BLOCK_TOKENS, EngineModel, SimulatedEngine, SimulatedRequest
from mentalglm.scoring.board import RunBoard
from mentalglm.scoring.order import asking_order, cut_for_engines, handing_order, shards_in_flight
from mentalglm.scoring.questions import Question
from mentalglm.tasks import Task, load_task, render_prompt

TASKS = ("suicide_risk", "cognitive_distortion", "cognitive_pathway")
_MEDIAN_POST, _POST_DEVIATION, _LONGEST_POST = 45, 0.9, 1000
_MEDIAN_ANSWER, _ANSWER_DEVIATION, _ANSWER_EXPONENT = 150, 0.2, 0.12
_TURNAROUND_S = 0.5
"""From a shard's last answer to the next one's requests: committing and reading."""

Key = tuple[int, int]
Sorter = Callable[[list[Key], Sequence[int]], list[Key]]
"""Puts the (row, task) of a shard into another order, given the lengths of its posts."""


def _as_asked(keys: list[Key], lengths: Sequence[int]) -> list[Key]:
    return keys


def _longest_first(keys: list[Key], lengths: Sequence[int]) -> list[Key]:
    return sorted(keys, key=lambda key: (-lengths[key[0]], key))


def _task_by_task(keys: list[Key], lengths: Sequence[int]) -> list[Key]:
    return sorted(keys, key=lambda key: (key[1], -lengths[key[0]], key))


VARIANTS: dict[str, tuple[str, Sorter]] = {
    "input": ("input", _as_asked),
    "input, longest posts of a shard first": ("input", _longest_first),
    "input, a shard task by task, longest first": ("input", _task_by_task),
    "smallest_last": ("smallest_last", _as_asked),
    "smallest_last, longest posts of a shard first": ("smallest_last", _longest_first),
}
"""Name -> (`order` of the config, order within a shard)."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of a run; times are virtual."""

    seconds: float
    rows_per_s: float
    idle_share: float
    """Of all engines' time to the end of the run, that in which they computed nothing."""
    tail_s: float
    """From the first engine without work to the end."""
    hit_rate: float
    """Share of the prompts' tokens that were in the prefix cache."""
    rows_by_engine: list[int]


class SimulatedCorpus:
    """Invented posts in files, and the requests that they become."""

    def __init__(self, num_rows: int, shard_rows: int, seed: int = 0, tasks: Sequence[str] = TASKS) -> None:
        rng = random.Random(seed)  # noqa: S311
        self.tasks: tuple[Task, ...] = tuple(map(load_task, tasks))
        self.num_rows = num_rows
        self.shard_rows = shard_rows
        self.file_rows: list[int] = []
        while num_rows:
            self.file_rows.append(min(num_rows, int(shard_rows * 16 ** rng.random())))
            num_rows -= self.file_rows[-1]
        self.lengths: list[int] = []
        self.requests: list[list[SimulatedRequest]] = []
        """Of each row, by task."""
        for _ in range(self.num_rows):
            length = int(_MEDIAN_POST * math.exp(_POST_DEVIATION * rng.gauss(0, 1)))
            length = min(max(length, 4), _LONGEST_POST)
            text = "".join(rng.choices(COMMON_CHARACTERS, k=4)).ljust(length, "。")  # its beginning is like no other's
            self.lengths.append(length)
            self.requests.append([_request(task, text, rng) for task in self.tasks])

    def plan(self, config: ScoreConfig) -> CorpusPlan:
        """As the job plans Parquet files of these rows, in row groups of 16 shards."""
        files = [
            InputFile(f"{number:05d}.parquet", "parquet", 1, 0, num_rows, "")
            for number, num_rows in enumerate(self.file_rows)
        ]
        ranges = [
            (number, *each)
            for number, rows in enumerate(self.file_rows)
            for each in plan_ranges([rows], self.shard_rows)
        ]
        file, start, stop = np.array(ranges, np.int64).T
        none = np.empty(0, np.int64)
        plan = CorpusPlan(tuple(files), (), pa.schema([]), "", file, start, stop, stop - start, none, none)
        return cut_for_engines(plan, config)


def _request(task: Task, text: str, rng: random.Random) -> SimulatedRequest:
    prompt = f"\0{render_prompt(task, text).user}\0"  # the chat template's tokens around it
    blocks: list[int] = []
    for start in range(0, len(prompt) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        blocks.append(hash((*blocks[-1:], prompt[start : start + BLOCK_TOKENS])))
    scale = (len(text) / _MEDIAN_POST) ** _ANSWER_EXPONENT * math.exp(_ANSWER_DEVIATION * rng.gauss(0, 1))
    return SimulatedRequest(len(prompt), min(256, round(_MEDIAN_ANSWER * scale)), tuple(blocks))


def simulate(
    corpus: SimulatedCorpus, engines: Sequence[EngineModel], order: str, sorter: Sorter = _as_asked
) -> Simulated:
    """Scores the corpus on these engines, which all start at once."""
    config = ScoreConfig.model_validate(
        {
            "input": {"uri": "posts"},
            "output": {"uri": "scored"},
            "tasks": [task.name for task in corpus.tasks],
            "engine": {"num_engines": len(engines), "max_num_seqs": engines[0].max_num_seqs},
            "shard_rows": corpus.shard_rows,
            "order": order,
        }
    )
    plan = corpus.plan(config)
    lanes_each = shards_in_flight(config, len(corpus.tasks))
    pending = handing_order(config, range(plan.num_shards), plan.shard_num_rows, len(corpus.tasks))
    board = RunBoard(pending, silence_s=math.inf)
    running = [SimulatedEngine(model) for model in engines]
    rows_by_engine = [0] * len(engines)
    is_stepping = [False] * len(engines)
    num_left: dict[Key, int] = {}  # of a lane's shard, requests
    # What happens next: (time, number, engine, its lane that asks for a shard; None: it computes a step).
    number = count()
    events: list[tuple[float, int, int, int | None]] = [
        (0.0, next(number), at, at * lanes_each + lane) for lane in range(lanes_each) for at in range(len(engines))
    ]
    while events:
        now, _, at, lane = heapq.heappop(events)
        engine = running[at]
        if lane is not None:
            assigned = board.next(lane)
            if assigned is None or assigned[0] is None:
                continue
            shard = plan.shard(assigned[0])
            rows = range(shard.first_row, shard.first_row + shard.num_rows)
            questions = [Question(task) for task in corpus.tasks]
            keys = asking_order({each.key: range(len(rows)) for each in questions}, questions)
            keys = sorter(keys, corpus.lengths[rows.start : rows.stop])
            requests = [replace(corpus.requests[rows[row]][task], owner=(lane, shard.index)) for row, task in keys]
            num_left[lane, shard.index] = len(requests)
            rows_by_engine[at] += len(rows)
            engine.submit(requests, now)
        else:
            for request in engine.step():
                num_left[request.owner] -= 1
                if not num_left[request.owner]:
                    lane, done = request.owner
                    board.commit(lane, done, "")
                    heapq.heappush(events, (engine.now + _TURNAROUND_S, next(number), at, lane))
            is_stepping[at] = False
        if not engine.is_idle and not is_stepping[at]:
            is_stepping[at] = True
            heapq.heappush(events, (engine.now, next(number), at, None))
    end = max(engine.now for engine in running)
    return Simulated(
        seconds=end,
        rows_per_s=corpus.num_rows / end,
        idle_share=1 - sum(engine.busy_s for engine in running) / (end * len(running)),
        tail_s=end - min(engine.now for engine in running),
        hit_rate=sum(each.num_cached_tokens for each in running) / sum(each.num_prompt_tokens for each in running),
        rows_by_engine=rows_by_engine,
    )


def table(num_engines: Sequence[int], rows_per_engine: int, shard_rows: int, model: EngineModel) -> Iterator[str]:
    """Lines of Markdown: each variant for each number of engines, all alike and with every second one at half speed."""
    yield "| engines | order | rows/s | idle | tail | prefix hits | rows of an engine, full / half speed |"
    yield "|---|---|---|---|---|---|---|"
    for each in num_engines:
        corpus = SimulatedCorpus(each * rows_per_engine, shard_rows)
        for is_mixed in (False, True) if each > 1 else (False,):
            engines = [replace(model, speed=0.5 if is_mixed and at % 2 else 1.0) for at in range(each)]
            for name, (order, sorter) in VARIANTS.items():
                run = simulate(corpus, engines, order, sorter)
                fast = run.rows_by_engine[:: 2 if is_mixed else 1]
                taken = f"{sum(fast) / len(fast):,.0f}"
                if is_mixed:
                    slow = run.rows_by_engine[1::2]
                    taken += f" / {sum(slow) / len(slow):,.0f}"
                yield (
                    f"| {each}{', half of them at half speed' if is_mixed else ''} | {name} | {run.rows_per_s:,.1f} "
                    f"| {run.idle_share:.1%} | {run.tail_s:.1f} s | {run.hit_rate:.1%} | {taken} |"
                )


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m mentalglm.measure.simulation", description="Idle engines and prefix hits, by order of the work."
    )
    parser.add_argument("--num-engines", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rows-per-engine", type=int, default=2048)
    parser.add_argument("--shard-rows", type=int, default=256)
    parser.add_argument("--max-num-seqs", type=int, default=EngineModel().max_num_seqs)
    parser.add_argument("--num-blocks", type=int, default=EngineModel().num_blocks, help="KV blocks of 16 tokens")
    arguments = parser.parse_args()
    model = EngineModel(max_num_seqs=arguments.max_num_seqs, num_blocks=arguments.num_blocks)
    for line in table(arguments.num_engines, arguments.rows_per_engine, arguments.shard_rows, model):
        print(line, flush=True)


if __name__ == "__main__":
    main()
