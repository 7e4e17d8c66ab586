"""What comes when: prefixes are shared while they are in an engine's cache, and all engines end at the same time.

A post's tasks are asked together, posts in the order of the input: templates that begin with the post then share it
even in a small cache. There is no other choice, since none is worth it (`python -m mentalglm.measure.simulation`):
long posts first spare about a second at the end of a run, and are no faster or slower before it; task by task, the
prefixes are gone from a small cache.

What holds up the end of a run is the size of the last shards: engines that find none left wait for those that have
just begun one. So the smallest shards come last, and the end of the corpus is cut into ever smaller ones (guided
self-scheduling: Polychronopoulos and Kuck, IEEE Transactions on Computers C-36, 1987). Shards are pulled, so a slow
engine takes fewer, and none that is large at the end.

No result depends on any of this.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mentalglm.config import (
    EchoEngineConfig,
    EncoderEngineConfig,
    EngineConfig,
    OpenAIEngineConfig,
    ScoreConfig,
    TfidfEngineConfig,
)
from mentalglm.corpus import CorpusPlan
from mentalglm.scoring.questions import Question

Int64Array = np.ndarray[tuple[int], np.dtype[np.int64]]

# Chosen by simulation: finer evens out the end better, but an engine must stay full.
_SMALLEST_PART = 8
"""The last shards have about this part of `shard_rows`, or more."""
_PART_OF_SHARE = 3
"""What is cut finer has about this part of an engine's share of the rows that are left."""
_HELD_BACK = 3
"""Shards for each lane that come last."""


def asking_order(picked: Mapping[str, Sequence[int]], questions: Sequence[Question]) -> list[tuple[int, int]]:
    """(row, number of the question), in the order in which an engine is asked for a shard: one adapter after the other,
    since nothing is shared between them, and a post's tasks together. `picked`: key of a question -> rows."""
    adapters = list(dict.fromkeys(question.adapter for question in questions))
    keys = sorted(
        (adapters.index(question.adapter), row, number)
        for number, question in enumerate(questions)
        for row in picked.get(question.key, ())
    )
    return [(row, number) for _, row, number in keys]


def handing_order(
    config: ScoreConfig, pending: Sequence[int], num_rows: Mapping[int, int] | Int64Array, num_questions: int
) -> list[int]:
    """The shards in the order in which lanes get them. `pending` ascends; `num_rows`: of a shard, by its number.

    Ascending, which is cheapest to read, but for the smallest: those come last, the largest of them first. How many,
    the lanes decide: with so many, the end is as even as if all went by size (longest processing time first).
    """
    if config.order == "input" or config.dedup == "corpus":  # copies wait for earlier shards, so those come first
        return list(pending)
    num_last = _HELD_BACK * config.engine.num_engines * shards_in_flight(config, num_questions)
    last = heapq.nsmallest(num_last, pending, key=lambda shard: (num_rows[shard], -shard))
    held_back = set(last)
    return [shard for shard in pending if shard not in held_back] + last[::-1]


def cut_for_engines(plan: CorpusPlan, config: ScoreConfig) -> CorpusPlan:
    """The plan with smaller shards at the end of the corpus, for as many engines as the job has.

    Parquet alone: a shard of text is a range of bytes, and where its rows begin is not known any more. Not with
    `dedup`: which rows are copies must not depend on the number of engines.
    """
    num_engines = config.engine.num_engines
    if config.order == "input" or config.dedup != "off" or num_engines == 1:
        return plan
    num_left = plan.num_rows - np.cumsum(plan.shard_num_rows) + plan.shard_num_rows
    num_wanted = np.maximum(num_left // (_PART_OF_SHARE * num_engines), _smallest_shard(config))
    is_parquet = np.array([file.format == "parquet" for file in plan.files])[plan.shard_file]
    rounded = (plan.shard_num_rows + num_wanted // 2) // num_wanted
    num_pieces = np.where(is_parquet, np.maximum(rounded, 1), 1)
    # Of each new shard: the old one, in how many pieces that is cut, and which of them it is.
    old = np.repeat(np.arange(plan.num_shards), num_pieces)
    pieces = num_pieces[old]
    piece = np.arange(len(old)) - (np.cumsum(num_pieces) - num_pieces)[old]
    start, length = plan.shard_start[old], (plan.shard_stop - plan.shard_start)[old]
    first, after = start + length * piece // pieces, start + length * (piece + 1) // pieces
    return replace(
        plan,
        shard_file=plan.shard_file[old],
        shard_start=first,
        shard_stop=after,
        shard_num_rows=np.where(is_parquet[old], after - first, plan.shard_num_rows[old]),
    )


def shards_in_flight(config: ScoreConfig, num_questions: int) -> int:
    """Shards that one engine works on at once: enough that the next ones fill it while one drains."""
    return min(16, 1 + max(1, math.ceil(2 * num_slots(config.engine) / (config.shard_rows * num_questions))))


def _smallest_shard(config: ScoreConfig) -> int:
    """Rows of the last shards. While one drains, the others of its engine still fill it."""
    num_questions = len(config.tasks) * len(config.model.adapters or [None])
    num_others = shards_in_flight(config, num_questions) - 1
    return max(
        math.ceil(config.shard_rows / _SMALLEST_PART),
        math.ceil(num_slots(config.engine) / (num_questions * num_others)),
    )


def num_slots(engine: EngineConfig) -> int:
    """Requests that an engine works on at once."""
    if isinstance(engine, EchoEngineConfig | TfidfEngineConfig):
        return 1  # one after the other, at hardly any cost
    if isinstance(engine, EncoderEngineConfig):
        return engine.batch_size
    return engine.max_concurrency if isinstance(engine, OpenAIEngineConfig) else engine.max_num_seqs
