"""What dead attempts leave behind in a run's folder: half-written files, files of shards whose rows are in a part,
unfinished multipart uploads; and what a finished run needed for posts with the same text. None of it is ever read as a
result.

Files of a shard that is in no part stay, committed or not: a worker may be about to commit them, whatever a listing
says. So they go once the run is finished.

`data/` and `errors/` are not touched: every file there is a result.
"""

import re
from dataclasses import dataclass

from mentalglm import storage
from mentalglm.scoring.rounds.round import finished_rounds
from mentalglm.scoring.run.lease import Lease
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import shards_in_parts

_SHARD = re.compile(
    r"(?:retries/(?P<round>\d+)/)?shards/(?:task=[^/]+(?:/adapter=[^/]+)?|errors)/(?P<shard>\d{8,})\.parquet"
)


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that nothing needs any more."""

    path: str
    """Below the run's folder."""
    kind: str
    """temporary · staged · plan · duplicates · upload"""
    num_bytes: int
    upload: storage.UnfinishedUpload | None = None


def collect(uri: str, *, dry_run: bool = False, min_age_s: float = 3600.0) -> list[Garbage]:
    """Deletes what dead attempts have left in the run and returns it; `dry_run`: only returns it.

    Holds the run's lease meanwhile. What is younger than `min_age_s` stays: a worker whose driver is dead may be about
    to commit it, and a write that is retried may take that long.
    Raises: ConfigError where there is no run, LeasedRunError where a job works on it.
    """
    ledger = Ledger(uri)
    plan_name = ledger.record.plan
    if dry_run:
        return _find(ledger, plan_name, min_age_s)
    with Lease.acquire(ledger.uri) as lease:
        found = _find(ledger, plan_name, min_age_s)
        for each in found:
            lease.check()
            if each.upload is None:
                storage.delete(ledger.path(each.path))
            else:
                storage.abort_upload(each.upload)
        return found


def _find(ledger: Ledger, plan_name: str, min_age_s: float) -> list[Garbage]:
    in_parts = shards_in_parts(ledger)
    rounds, is_complete = finished_rounds(ledger), ledger.is_complete()
    uploads = [
        Garbage(upload.uri.removeprefix(f"{ledger.uri}/"), "upload", 0, upload)
        for upload in storage.list_unfinished_uploads(ledger.uri)
        if upload.age_s >= min_age_s
    ]
    # On a disk a half-written file is in both lists; on S3 an object may have the name of an upload.
    half_written = set() if storage.is_s3(ledger.uri) else {each.path for each in uploads}
    files = [
        Garbage(f"_run/{file.path}", kind, file.size)
        for file in storage.list_files(ledger.path("_run"))
        if file.age_s >= min_age_s
        and f"_run/{file.path}" not in half_written
        and (kind := _kind(file.path, in_parts, rounds, plan_name, is_complete))
    ]
    return uploads + files


def _kind(path: str, in_parts: set[int], rounds: set[str], plan_name: str, is_complete: bool) -> str | None:
    """What sort of garbage a file of `_run/` is; None: it is needed, or may be."""
    staged = _SHARD.fullmatch(path)
    if path.startswith("tmp/"):
        return "temporary"
    if staged and (staged["round"] in rounds if staged["round"] else int(staged["shard"]) in in_parts):
        return "staged"
    if is_complete and path.startswith(("duplicates.", "originals/")):
        return "duplicates"
    return "plan" if path.startswith("plan-") and path != plan_name else None
