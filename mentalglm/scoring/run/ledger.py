"""What is done of a run, kept in its own folder: any process, on any machine, can go on from it.

A shard's results go to keys that its number alone decides, each written by whoever comes first; the commit record is
written last. A shard without a record is scored again, and what a dead attempt had written stands. Committed shards
are then written to `data/` in parts (parts.py), each row in one part. Nothing is renamed and no order of a listing
matters.

    _run/run.json    _run/plan-<digest>.parquet    _run/leases/<epoch>.json
    _run/shards/task=<task>/<number>.parquet    _run/shards/errors/<number>.parquet    _run/commits/<number>.json
    _run/parts/<number>.json    data/task=<task>/part-<number>.parquet    errors/part-<number>.parquet
    manifest.json    README.md    _SUCCESS         (in this order, when all is in parts)
    _run/retries/<round>.json   _run/retries/<round>/{shards,commits}/...   _run/retries/<round>.done.json   (rounds.py)

Where adapters are compared, <task> is <task>/adapter=<adapter> everywhere (questions.py).
"""

import hashlib
import io
import json
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from mentalglm import manifest, storage
from mentalglm.corpus import CorpusPlan
from mentalglm.errors import ConfigError, InputError, InternalError, StorageError, UserError
from mentalglm.scoring.predictions import (
    Outcome,
    count_labels,
    count_statuses,
    error_rows,
    error_table,
    failed_copy_rows,
    failed_rows,
    hash_ids,
    to_parquet,
)
from mentalglm.scoring.questions import question_columns
from mentalglm.scoring.run.commit import NO_EFFORT, Effort, ShardCommit, StagedFile

_VERSION = 2  # of what is in _run/
_COMMIT = re.compile(r"(\d{8,})\.json")

Keep = Callable[[Mapping[str, pa.Table], Mapping[str, Sequence[str | None]]], None]
"""Takes task -> predictions of a shard, and task -> reasons of those that failed; task: a question's key."""


class RunRecord(BaseModel):
    """What a run is, laid down once when it begins."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    """Short name of everything that defines the run's numbers."""
    plan: str
    """Name of the plan's file in `_run/`."""
    fingerprint: dict[str, Any]
    """What defines the run's numbers."""
    config: dict[str, Any]
    """As the run was begun with it."""
    version: int = _VERSION


RecordT = TypeVar("RecordT", bound=BaseModel)


def read_record(record: type[RecordT], path: str) -> RecordT | None:
    """What was written down at `path`, or None where there is nothing. Raises: InputError where it is damaged."""
    data = storage.read_bytes(path)
    try:
        return None if data is None else record.model_validate_json(data)
    except ValidationError:
        raise InputError(f"{path}: is damaged; put it back, or begin a new run in another folder") from None


class Ledger:
    """The run in the folder `uri`. `check_fence` is called before each commit and raises where the run is another's.

    `folder`: where below `uri` the shards of this ledger are committed; a later round has its own.
    """

    def __init__(self, uri: str, check_fence: Callable[[], None] = lambda: None, folder: str = "_run") -> None:
        self.uri = uri.rstrip("/")
        self.folder = folder
        self.check_fence = check_fence
        self.staging = storage.join(self.uri, "_run", "tmp")
        self._record: RunRecord | None = None

    def is_complete(self) -> bool:
        """Whether `_SUCCESS` is there."""
        return storage.exists(self.path("_SUCCESS"))

    def find(self) -> RunRecord | None:
        """The record of the run, or None where there is no run yet.

        Raises: ConfigError when the folder holds something else, or cannot be used; InputError for a damaged record.
        """
        if self._record is not None:
            return self._record
        try:
            record = read_record(RunRecord, self.path("_run", "run.json"))
            if record is None:
                files = ("_SUCCESS", "manifest.json", "README.md")
                folders = ("data", "errors", "_run/commits")
                if any(storage.exists(self.path(name)) for name in files) or any(
                    storage.has_files(self.path(name)) for name in folders
                ):
                    raise ConfigError(
                        f"output.uri = {self.uri}: holds files that belong to no run (was _run/ deleted?); "
                        "name an empty folder, or delete the whole folder"
                    )
                return None
        except OSError as error:
            raise self._unusable(error) from None
        if record.version != _VERSION:
            raise ConfigError(
                f"{self.uri}: was begun by another version of mentalglm (format {record.version}, this one has "
                f"{_VERSION}); finish it with that version, or begin a new run in another folder"
            )
        self._record = record
        return record

    @property
    def record(self) -> RunRecord:
        """The record of the run. Raises: ConfigError where there is none, and as `find`."""
        record = self.find()
        if record is None:
            raise ConfigError(f"RUN_URI = {self.uri}: holds no run; give the output.uri of a score job")
        return record

    def create(self, fingerprint: Mapping[str, Any], plan: CorpusPlan, config: Mapping[str, Any]) -> bool:
        """Lays down the plan, then the record that names it: from then on the run exists.

        False where another process was first: its run stands. Raises: ConfigError when the folder cannot be written.
        """
        sink = io.BytesIO()
        pq.write_table(plan.to_table(), sink, compression="zstd")
        name = f"plan-{hashlib.sha256(sink.getvalue()).hexdigest()[:16]}.parquet"
        record = RunRecord(run_id=run_id(fingerprint), plan=name, fingerprint=dict(fingerprint), config=dict(config))
        try:
            self._probe()
            storage.put(self.path("_run", name), sink.getvalue())
            path = self.path("_run", "run.json")
            if not storage.put_if_absent(path, _json_bytes(record.model_dump(mode="json")), self.staging):
                return False
        except OSError as error:
            raise self._unusable(error) from None
        self._record = record
        return True

    def read_plan(self) -> CorpusPlan:
        """The plan as it was made when the run began."""
        name = self.record.plan
        data = storage.read_bytes(self.path("_run", name))
        if data is None:
            raise InputError(f"{self.uri}: _run/{name} is missing; put it back, or begin a new run in another folder")
        return CorpusPlan.from_table(pq.read_table(pa.BufferReader(data)))

    def committed_shards(self) -> set[int]:
        """Numbers of the committed shards, from a listing, which may be old: to decide what is left to do, where that
        is to do something twice at worst, and not what may be deleted."""
        names = storage.list_names(self.path(self.folder, "commits"))
        return {int(match[1]) for name in names if (match := _COMMIT.fullmatch(name))}

    def read_commits(self, shards: Iterable[int] | None = None) -> list[ShardCommit]:
        """The committed ones of these shards, by number; default all. Costs one small read for each."""
        numbers = sorted(self.committed_shards() if shards is None else shards)
        with ThreadPoolExecutor(32) as pool:
            return [commit for commit in pool.map(self.read_commit, numbers) if commit is not None]

    def read_commit(self, shard: int) -> ShardCommit | None:
        """The record of a shard, if it is committed."""
        return read_record(ShardCommit, self._commit_path(shard))

    def commit(
        self,
        shard: int,
        tables: Mapping[str, pa.Table],
        outcomes: Mapping[str, Sequence[Outcome]],
        provenance: dict[str, Any],
        *,
        engine: dict[str, str],
        seconds: float,
        effort: Effort = NO_EFFORT,
        num_engine_restarts: int = 0,
        keep: Keep | None = None,
    ) -> ShardCommit:
        """Writes the predictions of a shard, its failed rows and its record, and returns the record that stands.

        `tables`: task -> predictions, those of all tasks for the same rows; in a later round each task has rows of its
        own, or none.
        Where adapters are compared, a task here is one of one adapter: a question's key.
        `keep`: called before the record is written, with the predictions that stand and the reasons of failed rows.
        """
        files: dict[str, StagedFile] = {}
        statuses: dict[str, dict[str, int]] = {}
        labels: dict[str, dict[str, int]] = {}
        explained: dict[str, int] = {}
        failed: dict[str, dict[str, list[int]]] = {}
        failed_copies: dict[str, list[int]] = {}
        errors: list[dict[str, Any]] = []
        num_tokens = {"num_prompt_tokens": 0, "num_output_tokens": 0}
        num_copied = 0
        id_hash = hash_ids([])
        standing_tables: dict[str, pa.Table] = {}
        standing_reasons: dict[str, list[str | None]] = {}
        for task, table in tables.items():
            files[f"task={task}"], standing = self._stage(
                f"task={task}", shard, table, {**provenance, **question_columns(task)}
            )
            id_hash = hash_ids(table.column("post_id"))
            if standing is not table and hash_ids(standing.column("post_id")) != id_hash:
                raise InternalError(
                    f"{self.uri}: shard {shard} of task {task} was written with other post ids than the input has now; "
                    "begin a new run in another folder, and please report it"
                )
            # Where an earlier attempt was first, its rows are the ones that stand.
            reasons = [
                outcome.reason if outcome.status == status else None
                for outcome, status in zip(outcomes[task], standing.column("status").to_pylist(), strict=True)
            ]
            standing_tables[task], standing_reasons[task] = standing, reasons
            num_copied += standing.num_rows - standing.column("duplicate_of").null_count
            statuses[task] = count_statuses(standing)
            labels[task] = count_labels(standing)
            explained[task] = standing.num_rows - standing.column("explanation").null_count
            failed[task] = failed_rows(standing)
            failed_copies[task] = failed_copy_rows(standing)
            errors += error_rows(task, standing, reasons)
            for name in num_tokens:
                num_tokens[name] += pc.sum(standing.column(name)).as_py() or 0
        if errors:
            files["errors"], _ = self._stage("errors", shard, error_table(errors), provenance)
        if keep is not None:
            keep(standing_tables, standing_reasons)
        return self._put_commit(
            ShardCommit(
                shard=shard,
                num_rows=next((table.num_rows for table in tables.values()), 0),
                statuses=statuses,
                labels=labels,
                explained=explained,
                failed=failed,
                failed_copies=failed_copies,
                files=files,
                id_hash=id_hash,
                engine=engine,
                seconds=seconds,
                finished_at=time.time(),
                effort=effort,
                num_engine_restarts=num_engine_restarts,
                num_copied=num_copied,
                num_prompt_tokens=num_tokens["num_prompt_tokens"],
                num_output_tokens=num_tokens["num_output_tokens"],
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
                id_hash=hash_ids([]),
                engine={},
                num_prompt_tokens=0,
                num_output_tokens=0,
                seconds=0.0,
                finished_at=time.time(),
                quarantined=reason,
                num_quarantined=num_rows,
            )
        )

    def publish(self, record: Mapping[str, Any]) -> None:
        """Ends the run: manifest, README, and last `_SUCCESS`. What an attempt has written that died here stands.

        Raises: ConfigError where another run's manifest stands.
        """
        self.check_fence()
        path = self.path("manifest.json")
        if not storage.put_if_absent(path, _json_bytes(record), self.staging):
            standing = _json(storage.read_bytes(path))
            if standing.get("run_id") != record["run_id"]:
                raise ConfigError(f"{path}: is not of this run; move it elsewhere and run the same command again")
            record = standing
        storage.put_if_absent(self.path("README.md"), manifest.readme(record).encode(), self.staging)
        storage.put_if_absent(self.path("_SUCCESS"), b"", self.staging)

    def republish(self, record: Mapping[str, Any]) -> None:
        """Replaces the manifest and README of a finished run."""
        for name, data in (("manifest.json", _json_bytes(record)), ("README.md", manifest.readme(record).encode())):
            self.check_fence()
            storage.put(self.path(name), data)

    def staged_path(self, kind: str, shard: int) -> str:
        """Where a shard's file lies until its part is written. `kind`: `task=<task>` or `errors`."""
        return self.path(self.folder, "shards", kind, f"{shard:08d}.parquet")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder for big files on their way into the run: on its disk; the system's, for S3.

        Raises: StorageError where the folder cannot take what is written into it.
        """
        place = None if storage.is_s3(self.uri) else storage.local_path(self.staging)
        try:
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place, prefix="part-") as folder:
                yield Path(folder)
        except UserError:
            raise
        except OSError as error:
            if error.errno is None:  # not of this disk: what pyarrow says of a file that it reads
                raise
            raise StorageError(
                f"{place or tempfile.gettempdir()}: cannot hold the output's files on their way "
                f"({error.strerror or type(error).__name__}); make room{'' if place else ', or set TMPDIR'}, and run "
                "the same command again"
            ) from None

    def _probe(self) -> None:
        """Raises: ConfigError where the storage lets a second writer win: rows could be lost or doubled there."""
        path = storage.join(self.staging, f"probe-{uuid.uuid4().hex}")
        first, second = (storage.put_if_absent(path, data, self.staging) for data in (b"1", b"2"))
        storage.delete(path)
        if not first or second:
            raise ConfigError(
                f"output.uri = {self.uri}: this storage overwrites where it is asked not to (If-None-Match on S3, hard "
                "links on a disk); use one that obeys"
            )

    def _put_commit(self, commit: ShardCommit) -> ShardCommit:
        path = self._commit_path(commit.shard)
        self.check_fence()
        if storage.put_if_absent(path, commit.model_dump_json().encode(), self.staging):
            return commit
        standing = self.read_commit(commit.shard)
        assert standing is not None, "commit records are never deleted"
        return standing

    def _commit_path(self, shard: int) -> str:
        return self.path(self.folder, "commits", f"{shard:08d}.json")

    def _stage(self, kind: str, shard: int, table: pa.Table, provenance: dict[str, Any]) -> tuple[StagedFile, pa.Table]:
        """Writes the table unless there is one; returns the one that stands."""
        data = to_parquet(table, provenance)
        path = self.staged_path(kind, shard)
        if not storage.put_if_absent(path, data, self.staging):
            standing = storage.read_bytes(path)
            if standing is None:  # it is in a part by now, or was cleared away: the commit record will tell
                return self._stage(kind, shard, table, provenance)
            data, table = standing, pq.ParquetFile(pa.BufferReader(standing)).read()
            footer = json.loads((table.schema.metadata or {}).get(b"mentalglm", b"{}"))
            if footer.get("run_id") != provenance.get("run_id"):
                raise ConfigError(f"output.uri = {self.uri}: {path} is of another run; name an empty folder")
        digest = hashlib.sha256(data).hexdigest()
        return StagedFile(num_rows=table.num_rows, num_bytes=len(data), sha256=digest), table

    def _unusable(self, error: OSError) -> ConfigError:
        if isinstance(error, StorageError):  # names place and fix
            return ConfigError(f"output.uri: {error}")
        return ConfigError(
            f"output.uri = {self.uri}: cannot be used as a folder ({type(error).__name__}); "
            "name a folder that this user, on every node, may write"
        )

    def path(self, *parts: str) -> str:
        """The URI of something below the run's folder."""
        return storage.join(self.uri, *parts)


def run_id(fingerprint: Mapping[str, Any]) -> str:
    """The name of the run with this fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _json(data: bytes | None) -> dict[str, Any]:
    """The object in `data`; an empty one where that is none."""
    try:
        value = json.loads(data or b"")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
