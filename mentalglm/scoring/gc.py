"""What dead attempts leave behind in a run's folder: half-written files, results of shards that were never committed,
shard files that are in a part already, unfinished multipart uploads. None of it is ever read as a result.

`data/` and `errors/` are not touched: every file there is a result.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mentalglm import storage
from mentalglm.errors import ConfigError
from mentalglm.scoring.lease import Lease
from mentalglm.scoring.ledger import Ledger
from mentalglm.scoring.parts import waiting_shards

_SHARD = re.compile(r"(?:task=[^/]+|errors)/(\d{8,})\.parquet")


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that nothing needs any more."""

    path: str
    """Below the run's folder."""
    kind: str
    """temporary · staged · plan · upload"""
    num_bytes: int


def collect(uri: str, *, dry_run: bool = False) -> list[Garbage]:
    """Deletes what dead attempts have left in the run and returns it; `dry_run`: only returns it.

    Holds the run's lease meanwhile. Raises: ConfigError where there is no run, LeasedRunError where a job works on it.
    """
    ledger = Ledger(uri)
    if ledger.read_fingerprint() is None:
        raise ConfigError(f"RUN_URI = {uri}: holds no run; give the output.uri of a score job")
    with Lease.acquire(ledger.uri):
        found = list(_find(ledger))
        uploads = list(storage.list_unfinished_uploads(ledger.uri))
        if not dry_run:
            for each in found:
                storage.delete(ledger.path(each.path))
            for upload in uploads:
                storage.abort_upload(upload)
        paths = [each.uri.removeprefix(f"{ledger.uri}/") for each in uploads]
        named = {each.path for each in found}  # on a disk a half-written file is both
        return found + [Garbage(path, "upload", 0) for path in paths if path not in named]


def _find(ledger: Ledger) -> Iterator[Garbage]:
    waiting = waiting_shards(ledger)
    for path, num_bytes, _ in storage.list_files(ledger.path("_run")):
        name = f"_run/{path}"
        staged = _SHARD.fullmatch(path.removeprefix("shards/"))
        if path.startswith("tmp/"):
            yield Garbage(name, "temporary", num_bytes)
        elif staged and int(staged[1]) not in waiting:
            yield Garbage(name, "staged", num_bytes)
        elif path.startswith("plan-") and path != ledger.plan_name():
            yield Garbage(name, "plan", num_bytes)
