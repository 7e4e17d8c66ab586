"""What comes when: prefixes are shared while they are in an engine's cache, and all engines end at the same time.

A post's tasks are asked together, posts in the order of the input: templates that begin with the post then share it
even in a small cache. Asking long posts first, or task by task, gains nothing (`python -m mentalglm.scoring.simulation`
has the figures), so there is no choice. What holds up the end of a run is the size of the last shards, when engines
that find none left wait for those that have just begun one. So the smallest shards come last; and the end of the
corpus is cut into ever smaller ones (guided self-scheduling: Polychronopoulos and Kuck, IEEE Transactions on Computers
36, 1987). A slow engine then takes fewer, and never a large one at the end.

No result depends on any of this but where `dedup: shard` looks for equal texts, which is within a shard.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mentalglm.config import EchoEngineConfig, OpenAIEngineConfig, ScoreConfig
from mentalglm.corpus import CorpusPlan
from mentalglm.tasks import Task

Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]

_SMALLEST_SHARD = 8
"""How many times smaller the last shards are."""
_SHARDS_LEFT = 2
"""A shard at the end is this many times smaller than an engine's share of the rows that are left."""
_SHARDS_HELD_BACK = 3
"""For each lane."""


def asking_order(picked: Mapping[str, Sequence[int]], tasks: Sequence[Task]) -> list[tuple[int, int]]:
    """(row, number of the task), in the order in which an engine is asked for a shard. `picked`: task -> rows."""
    return sorted((row, number) for number, task in enumerate(tasks) for row in picked.get(task.name, ()))


def handing_order(
    config: ScoreConfig, pending: Sequence[int], num_rows: Mapping[int, int] | Int64Array, num_tasks: int
) -> list[int]:
    """The shards in the order in which lanes get them. `pending` ascends; `num_rows`: of a shard, by its number.

    Ascending, which is cheapest to read, but for the smallest: those come last, the largest of them first. How many,
    the lanes decide: with so many, the end is as even as if all went by size (longest processing time first).
    """
    if not _is_by_size(config):
        return list(pending)
    num_last = _SHARDS_HELD_BACK * config.engine.num_engines * shards_in_flight(config, num_tasks)
    last = heapq.nsmallest(num_last, pending, key=lambda shard: (num_rows[shard], -shard))
    held_back = set(last)
    return [shard for shard in pending if shard not in held_back] + last[::-1]


def cut_for_engines(plan: CorpusPlan, config: ScoreConfig) -> CorpusPlan:
    """The plan with smaller shards at the end of the corpus, for as many engines as the job has.

    Parquet alone: a shard of text is a range of bytes, and where its rows begin is not known any more.
    """
    num_engines = config.engine.num_engines
    if not _is_by_size(config) or num_engines == 1:
        return plan
    share = _SHARDS_LEFT * num_engines
    num_left = plan.num_rows - np.concatenate([[0], np.cumsum(plan.shard_num_rows)[:-1]])
    wanted = np.clip(num_left // share, math.ceil(config.shard_rows / _SMALLEST_SHARD), None)
    is_parquet = np.array([file.format == "parquet" for file in plan.files])[plan.shard_file]
    num_pieces = np.where(is_parquet, -(-plan.shard_num_rows // wanted), 1)
    of = np.repeat(np.arange(plan.num_shards), num_pieces)  # of each new shard: the old one, and the piece of it
    piece = np.arange(len(of)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    starts, stops = plan.shard_start[of], plan.shard_stop[of]
    length, pieces = stops - starts, num_pieces[of]
    first, after = starts + length * piece // pieces, starts + length * (piece + 1) // pieces
    return replace(
        plan,
        shard_file=plan.shard_file[of],
        shard_start=first,
        shard_stop=after,
        shard_num_rows=np.where(is_parquet[of], after - first, plan.shard_num_rows[of]),
    )


def shards_in_flight(config: ScoreConfig, num_tasks: int) -> int:
    """Shards that one engine works on at once: enough that the next ones fill it while one drains."""
    if isinstance(config.engine, EchoEngineConfig):
        return 2
    slots = (
        config.engine.max_concurrency if isinstance(config.engine, OpenAIEngineConfig) else config.engine.max_num_seqs
    )
    return min(16, 1 + max(1, math.ceil(2 * slots / (config.shard_rows * num_tasks))))


def _is_by_size(config: ScoreConfig) -> bool:
    # Copies wait for shards before theirs, so those must be begun first.
    return config.order == "smallest_last" and config.dedup != "corpus"
