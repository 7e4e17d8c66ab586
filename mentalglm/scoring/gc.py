"""What dead attempts leave behind in a run's folder: half-written files, results of shards that were never committed,
shard files that are in a part already, unfinished multipart uploads; and what a finished run needed for posts with the
same text. None of it is ever read as a result.

`data/` and `errors/` are not touched: every file there is a result.
"""

import re
from dataclasses import dataclass

from mentalglm import storage
from mentalglm.errors import ConfigError
from mentalglm.scoring.lease import Lease
from mentalglm.scoring.ledger import Ledger
from mentalglm.scoring.parts import waiting_shards

_SHARD = re.compile(r"shards/(?:task=[^/]+|errors)/(\d{8,})\.parquet")


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
    if ledger.read_fingerprint() is None:
        raise ConfigError(f"RUN_URI = {uri}: holds no run; give the output.uri of a score job")
    if dry_run:
        return _find(ledger, min_age_s)
    with Lease.acquire(ledger.uri):
        found = _find(ledger, min_age_s)
        for each in found:
            if each.upload is None:
                storage.delete(ledger.path(each.path))
            else:
                storage.abort_upload(each.upload)
        return found


def _find(ledger: Ledger, min_age_s: float) -> list[Garbage]:
    waiting, is_complete = waiting_shards(ledger), ledger.is_complete()
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
        and (kind := _kind(file.path, waiting, ledger.plan_name(), is_complete))
    ]
    return uploads + files


def _kind(path: str, waiting: set[int], plan_name: str, is_complete: bool) -> str | None:
    """What sort of garbage a file of `_run/` is; None: it is needed."""
    staged = _SHARD.fullmatch(path)
    if path.startswith("tmp/"):
        return "temporary"
    if staged and int(staged[1]) not in waiting:
        return "staged"
    if is_complete and path.startswith(("duplicates.", "originals/")):
        return "duplicates"
    return "plan" if path.startswith("plan-") and path != plan_name else None
