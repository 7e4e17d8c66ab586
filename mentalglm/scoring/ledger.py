"""What is done of a run, kept in its own folder: any process, on any machine, can go on from it.

A shard's results go to keys that its number alone decides, each written by whoever comes first; the commit record is
written last. A shard without a record is scored again, and what a dead attempt had written stands. Nothing is renamed
and no order of a listing matters.

    data/task=<task>/shard-<number>.parquet    errors/shard-<number>.parquet
    _run/run.json    _run/plan-<digest>.parquet    _run/commits/<number>.json
    manifest.json    README.md    _SUCCESS         (in this order, when all shards are committed)
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from mentalglm import storage
from mentalglm.corpus import CorpusPlan
from mentalglm.errors import ConfigError, InputError
from mentalglm.scoring.predictions import (
    ERROR_SCHEMA,
    INPUT_STATUSES,
    Outcome,
    count_labels,
    count_statuses,
    error_rows,
    to_parquet,
)


class ShardCommit(BaseModel):
    """What is known of a shard whose rows are all in the output."""

    model_config = ConfigDict(frozen=True)

    shard: int
    num_rows: int
    """Rows of the input that the shard could read."""
    statuses: dict[str, dict[str, int]]
    """task -> status -> number of predictions."""
    labels: dict[str, dict[str, int]]
    """task -> label -> number of predictions with it."""
    files: dict[str, str]
    """Path below the run -> sha256 of the content."""
    engine: dict[str, str]
    """What answered: engine, version, model, device."""
    num_prompt_tokens: int
    num_output_tokens: int
    seconds: float
    quarantined: str | None = None
    """Why the rows of the shard could not be read, when they could not."""
    num_quarantined: int = 0

    @property
    def num_predictions(self) -> int:
        """Rows of the output."""
        return sum(sum(counts.values()) for counts in self.statuses.values())


class Ledger:
    """The run in the folder `uri`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._staging = storage.join(self.uri, "_run", "tmp")
        self._record: dict[str, Any] | None = None

    def is_complete(self) -> bool:
        """Whether `_SUCCESS` is there."""
        return storage.exists(self._path("_SUCCESS"))

    def read_fingerprint(self) -> dict[str, Any] | None:
        """What defines the numbers of the run, or None where there is no run yet.

        Raises: ConfigError when the folder holds something else, or cannot be used.
        """
        try:
            data = storage.read_bytes(self._path("_run", "run.json"))
            if data is None:
                if self.is_complete() or any(storage.has_files(self._path(name)) for name in ("data", "errors")):
                    raise ConfigError(
                        f"output.uri = {self.uri}: holds results that belong to no run (was _run/ deleted?); "
                        "name an empty folder, or delete the whole folder"
                    )
                return None
        except OSError as error:
            raise self._unusable(error) from None
        self._record = json.loads(data)
        fingerprint: dict[str, Any] = self._record["fingerprint"]
        return fingerprint

    def create(self, fingerprint: Mapping[str, Any], plan: CorpusPlan) -> bool:
        """Lays down the plan, then the record that names it: from then on the run exists.

        False where another process was first: its run stands. Raises: ConfigError when the folder cannot be written.
        """
        sink = io.BytesIO()
        pq.write_table(plan.to_table(), sink, compression="zstd")
        name = f"plan-{hashlib.sha256(sink.getvalue()).hexdigest()[:16]}.parquet"
        record = {"run_id": run_id(fingerprint), "plan": name, "fingerprint": dict(fingerprint)}
        try:
            storage.put(self._path("_run", name), sink.getvalue())
            path = self._path("_run", "run.json")
            if not storage.put_if_absent(path, _json_bytes(record), self._staging):
                return False
        except OSError as error:
            raise self._unusable(error) from None
        self._record = record
        return True

    def read_plan(self) -> CorpusPlan:
        """The plan as it was made when the run began."""
        if self._record is None:
            self.read_fingerprint()
        assert self._record is not None, "a run has a record before it has workers"
        data = storage.read_bytes(self._path("_run", self._record["plan"]))
        if data is None:
            raise InputError(f"{self.uri}: _run/{self._record['plan']} is missing; the run is damaged, begin a new one")
        return CorpusPlan.from_table(pq.read_table(pa.BufferReader(data)))

    def read_commits(self) -> list[ShardCommit]:
        """Every committed shard, by number. Costs one small read for each."""
        names = [name for name in storage.list_names(self._path("_run", "commits")) if name.endswith(".json")]
        with ThreadPoolExecutor(32) as pool:
            records = pool.map(lambda name: storage.read_bytes(self._path("_run", "commits", name)), names)
            return [ShardCommit.model_validate_json(record) for record in records if record is not None]

    def commit(
        self,
        shard: int,
        tables: Mapping[str, pa.Table],
        outcomes: Mapping[str, Sequence[Outcome]],
        provenance: dict[str, Any],
        *,
        engine: dict[str, str],
        seconds: float,
    ) -> ShardCommit:
        """Writes the predictions of a shard, its failed rows and its record, and returns the record that stands."""
        name = f"shard-{shard:08d}.parquet"
        files: dict[str, str] = {}
        statuses: dict[str, dict[str, int]] = {}
        labels: dict[str, dict[str, int]] = {}
        failed: list[dict[str, Any]] = []
        for task, table in tables.items():
            winner = self._put_table(("data", f"task={task}", name), table, {**provenance, "task": task}, files)
            # Where an earlier attempt was first, its rows are the ones that stand.
            standing = winner.column("status").to_pylist()
            reasons = [
                outcome.reason if outcome.status == status else None
                for outcome, status in zip(outcomes[task], standing, strict=True)
            ]
            statuses[task] = count_statuses(winner)
            labels[task] = count_labels(winner)
            failed += error_rows(task, winner, reasons)
        if failed:
            self._put_table(("errors", name), pa.Table.from_pylist(failed, ERROR_SCHEMA), provenance, files)
        every = [outcome for each in outcomes.values() for outcome in each]
        return self._put_commit(
            ShardCommit(
                shard=shard,
                num_rows=next(iter(tables.values())).num_rows,
                statuses=statuses,
                labels=labels,
                files=files,
                engine=engine,
                num_prompt_tokens=sum(outcome.num_prompt_tokens or 0 for outcome in every),
                num_output_tokens=sum(outcome.num_output_tokens or 0 for outcome in every),
                seconds=seconds,
            )
        )

    def commit_quarantined(self, shard: int, num_rows: int, reason: str) -> ShardCommit:
        """Records that the rows of a shard cannot be read. They have no row in the output; the manifest counts them."""
        return self._put_commit(
            ShardCommit(
                shard=shard,
                num_rows=0,
                statuses={},
                labels={},
                files={},
                engine={},
                num_prompt_tokens=0,
                num_output_tokens=0,
                seconds=0.0,
                quarantined=reason,
                num_quarantined=num_rows,
            )
        )

    def publish(self, manifest: Mapping[str, Any], readme: str) -> None:
        """Ends the run: manifest, README, and last `_SUCCESS`."""
        self._put_json(("manifest.json",), manifest)
        storage.put(self._path("README.md"), readme.encode())
        storage.put(self._path("_SUCCESS"), b"")

    def _put_commit(self, commit: ShardCommit) -> ShardCommit:
        path = self._path("_run", "commits", f"{commit.shard:08d}.json")
        if storage.put_if_absent(path, commit.model_dump_json().encode(), self._staging):
            return commit
        standing = storage.read_bytes(path)
        assert standing is not None
        return ShardCommit.model_validate_json(standing)

    def _put_table(
        self, parts: tuple[str, ...], table: pa.Table, provenance: dict[str, Any], files: dict[str, str]
    ) -> pa.Table:
        """Writes the table unless there is one; returns the one that stands and notes its digest in `files`."""
        data = to_parquet(table, provenance)
        path = self._path(*parts)
        if not storage.put_if_absent(path, data, self._staging):
            standing = storage.read_bytes(path)
            assert standing is not None
            data, table = standing, pq.ParquetFile(pa.BufferReader(standing)).read()
            footer = json.loads((table.schema.metadata or {}).get(b"mentalglm", b"{}"))
            if footer.get("run_id") != provenance.get("run_id"):
                raise ConfigError(f"output.uri = {self.uri}: {'/'.join(parts)} is of another run; name an empty folder")
        files["/".join(parts)] = hashlib.sha256(data).hexdigest()
        return table

    def _put_json(self, parts: tuple[str, ...], value: Mapping[str, Any]) -> None:
        storage.put(self._path(*parts), _json_bytes(value))

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"output.uri = {self.uri}: cannot be used as a folder ({type(error).__name__}); "
            "name a folder that this user, on every node, may write"
        )

    def _path(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)


def run_id(fingerprint: Mapping[str, Any]) -> str:
    """Short name of everything that defines a run's numbers."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


class Totals:
    """Counts over the commits of a run."""

    def __init__(self, commits: Iterable[ShardCommit] = ()) -> None:
        self.statuses: dict[str, Counter[str]] = {}
        self.labels: dict[str, Counter[str]] = {}
        self.num_shards = 0
        self.num_rows = 0
        self.num_quarantined = 0
        self.engines: list[dict[str, str]] = []
        """What answered; more than one entry where machines differ."""
        self.quarantined: list[ShardCommit] = []
        """The shards that could not be read."""
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0
        for commit in commits:
            self.add(commit)

    def add(self, commit: ShardCommit) -> None:
        """Counts one more shard."""
        self.num_shards += 1
        self.num_rows += commit.num_rows
        self.num_quarantined += commit.num_quarantined
        if commit.engine and commit.engine not in self.engines:
            self.engines.append(commit.engine)
        if commit.quarantined is not None:
            self.quarantined.append(commit)
        self.num_prompt_tokens += commit.num_prompt_tokens
        self.num_output_tokens += commit.num_output_tokens
        for task, counts in commit.statuses.items():
            self.statuses.setdefault(task, Counter()).update(counts)
        for task, counts in commit.labels.items():
            self.labels.setdefault(task, Counter()).update(counts)

    @property
    def by_status(self) -> Counter[str]:
        """Predictions by status, over all tasks."""
        return sum(self.statuses.values(), Counter())

    @property
    def num_predictions(self) -> int:
        """Rows of the output."""
        return self.by_status.total()

    @property
    def num_unusable(self) -> int:
        """Predictions of rows that are no posts, or have no text."""
        return sum(n for status, n in self.by_status.items() if status in INPUT_STATUSES)

    @property
    def num_failed(self) -> int:
        """Predictions that the scoring failed on; unusable input does not count."""
        return sum(n for status, n in self.by_status.items() if status != "ok" and status not in INPUT_STATUSES)
