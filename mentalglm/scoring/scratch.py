"""Rows that are scored outside any run: a sample of the input, or rows that are each for a task of their own.

They are planned, scored and committed as in a run, by the same workers, in a folder that is gone at the end.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from mentalglm import storage
from mentalglm.config import OutputConfig, ScoreConfig
from mentalglm.corpus import CorpusPlan
from mentalglm.errors import InputError, StorageError
from mentalglm.scoring.job import Job
from mentalglm.scoring.pool import score_shards
from mentalglm.scoring.run.commit import ShardCommit, Totals
from mentalglm.scoring.run.lease import Lease
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import read_staged
from mentalglm.scoring.worker import Rows, RunSpec, ShardScorer


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Predictions that are in no run."""

    tables: Mapping[str, pa.Table]
    """Key of a question -> its rows, as `data/` of a run has them, in the order of the input."""
    totals: Totals


def score_rows(config: ScoreConfig, rows: Mapping[str, Sequence[int]]) -> ScoredRows:
    """Asks each question about some rows of the input alone.

    `rows`: key of a question (a task's name) -> numbers of rows, ascending, counted from 0 through the whole input.
    `config.output.uri` names a folder that is used meanwhile; nothing stays in it.
    Raises: as `score`, but for the error budget; InputError where one of the rows cannot be read.
    """
    job = Job.resolve(config)
    plan = job.plan()
    with scratch_folder(job.config.output.uri, "rows") as uri:
        job = replace(job, config=job.config.model_copy(update={"output": OutputConfig(uri=uri)}))
        ledger = Ledger(uri)
        totals = Totals.of(score_picked(job, plan, ledger, _by_shard(plan, rows)))
        job.check_input(plan)
        for key, each in rows.items():
            if num_missing := len(each) - sum(totals.statuses.get(key, {}).values()):
                reasons = ", ".join(sorted({shard.reason for shard in totals.unreadable})) or "not in the input"
                raise InputError(
                    f"input.uri: {num_missing} of {len(each)} rows for {key} cannot be read ({reasons}); mend the file "
                    "and run the same command again"
                )
        return ScoredRows({key: _read(ledger, key) for key, each in rows.items() if each}, totals)


def score_picked(
    job: Job,
    plan: CorpusPlan,
    ledger: Ledger,
    rows: Mapping[int, Rows],
    *,
    scorer: type[ShardScorer] = ShardScorer,
    on_start: Callable[[], None] = lambda: None,
) -> Iterator[ShardCommit]:
    """Scores rows of some shards in the empty folder of the ledger, which is the job's output, and yields each commit.

    `rows`: shard -> key of a question -> rows of the shard. The others: as in `score_shards`.
    """
    ledger.create(job.fingerprint(plan), plan, {})
    num_predictions = sum(len(each) for picked in rows.values() for each in picked.values())
    totals = Totals()
    with Lease.acquire(ledger.uri) as lease:
        spec = RunSpec(job.config, job.tasks, job.model, job.footer(ledger.record.run_id), lease.epoch, rows=rows)
        for commit in score_shards(
            spec, list(rows), num_predictions, totals, lease, lambda: None, scorer=scorer, on_start=on_start
        ):
            totals.add(commit)
            yield commit


@contextmanager
def scratch_folder(parent: str, name: str) -> Iterator[str]:
    """A new folder below `parent`, which every worker can reach; it is gone at the end."""
    uri = storage.join(parent, f"{name}-{secrets.token_hex(8)}")
    try:
        yield uri
    finally:
        with suppress(StorageError):
            for file in list(storage.list_files(uri)):
                storage.delete(storage.join(uri, file.path))
        if not storage.is_s3(uri):
            shutil.rmtree(storage.local_path(uri), ignore_errors=True)


def _by_shard(plan: CorpusPlan, rows: Mapping[str, Sequence[int]]) -> dict[int, dict[str, list[int]]]:
    found: dict[int, dict[str, list[int]]] = {}
    for number in range(plan.num_shards):
        shard = plan.shard(number)
        for key, each in rows.items():
            first, last = np.searchsorted(each, [shard.first_row, shard.first_row + shard.num_rows])
            if first < last:
                found.setdefault(number, {})[key] = [row - shard.first_row for row in each[first:last]]
    return found


def _read(ledger: Ledger, key: str) -> pa.Table:
    kind = f"task={key}"
    commits = [commit for commit in ledger.read_commits() if kind in commit.files]
    return pa.concat_tables(read_staged(ledger, kind, commits))
