"""One job at a time works on a run; a dead job's lease is taken over; a job that was taken for dead cannot go on.

    _run/leases/<epoch>.json      epochs from 1, without gaps, never deleted

Taking the lease is creating the file of the next epoch: of any number of jobs one succeeds. Its holder alone rewrites
the file, every few seconds. A file of the next epoch ends a lease, whatever its holder thinks: it is fenced. Needed is
only a create that fails when the name exists; no rename, no conditional overwrite, no clock that two machines share,
no order or freshness of a listing (it is where the search for the last epoch begins, no more).

What is promised: two jobs never hold the same epoch, and whoever asks after a takeover is told of it. What is not:
that nothing is written by a fenced job. Between its question and its write a takeover may happen, as long as it has
not asked again. That is harmless because results have keys that the plan alone decides and the first writer wins: the
late write is a row that was due anyway, or is refused. The lease saves the work of doing things twice; that rows are
there once does not rest on it.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console

from mentalglm import storage
from mentalglm.errors import ConfigError, InputError, InterruptedRunError, UnusableStorageError, UserError
from mentalglm.scoring.progress import duration

_NAME = re.compile(r"(\d{8,})\.json")
_LATE_BEATS = 2
_MAX_POLL_INTERVAL_S = 1.0
_RELEASE_TIMEOUT_S = 10.0
_SAME_START_S = 2.0


class LeasedRunError(InterruptedRunError):
    """Another job works on the run."""


class Owner(BaseModel):
    """The process that holds a lease, as far as a person or another process needs it to find it."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    job: str | None = None
    """The submission id that `ray job list` shows, where the process is a submitted job."""
    boot_id: str | None = None
    pid_namespace: str | None = None
    started_s: float | None = None
    """When the process started, in seconds since the machine did: a pid alone is soon another's."""
    token: str
    """Of this lease alone."""

    @classmethod
    def this_process(cls) -> Self:
        """The owner that a lease taken here has."""
        boot_id, pid_namespace = _machine()
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            job=_submission_id(),
            boot_id=boot_id,
            pid_namespace=pid_namespace,
            started_s=_started_s(psutil.Process()),
            token=secrets.token_hex(8),
        )

    def is_gone(self) -> bool:
        """Whether the process is known to have ended. False where it cannot be told from here."""
        here = (socket.gethostname(), *_machine())
        if None in here or here != (self.host, self.boot_id, self.pid_namespace):
            return False
        try:
            os.kill(self.pid, 0)  # certain, where /proc may hide the processes of other users
        except ProcessLookupError:
            return True
        except OSError:
            return False
        try:
            process = psutil.Process(self.pid)
            is_another = self.started_s is not None and abs(_started_s(process) - self.started_s) > _SAME_START_S
            return is_another or bool(process.status() == psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def __str__(self) -> str:
        return f"{f'job {self.job}, ' if self.job else ''}host {self.host}, pid {self.pid}"


class _Record(BaseModel):
    """What the file of an epoch says. Other keys are left to later versions."""

    model_config = ConfigDict(frozen=True)

    owner: Owner
    since: datetime
    released: bool = False
    beat_interval_s: float = Field(gt=0)
    stale_after_s: float = Field(gt=0)
    """The holder's own word on how often it writes, and after how long without it may be taken for dead."""
    progress: dict[str, Any] = {}


class LeaseState(_Record):
    """The last lease of a run, as anyone can read it."""

    epoch: int
    age_s: float
    """Since the holder's last sign of life, by the store's clock."""

    @property
    def is_late(self) -> bool:
        """Whether the holder should have written long ago."""
        return self.age_s > _LATE_BEATS * self.beat_interval_s

    @property
    def is_held(self) -> bool:
        """Whether its holder may still be at work."""
        return not (self.released or self.is_stale or self.owner.is_gone())

    @property
    def is_stale(self) -> bool:
        """Whether the holder may be taken for dead."""
        return self.age_s > self.stale_after_s

    def describe(self) -> str:
        """Who, since when, and when last heard of, for a message."""
        return f"{self.owner}, since {self.since:%Y-%m-%d %H:%M:%S} UTC, last sign of life {duration(self.age_s)} ago"


class Lease:
    """The right to work on a run, from `with Lease.acquire(run_uri) as lease:` to the end of the block.

    A thread renews it and writes the progress with it. Every method may be called from any thread.
    """

    def __init__(
        self, run_uri: str, epoch: int, owner: Owner, *, beat_interval_s: float, stale_after_s: float, taken_at: float
    ) -> None:
        self.epoch = epoch
        self._run_uri = run_uri.rstrip("/")
        self._record = _Record(
            owner=owner, since=datetime.now(UTC), beat_interval_s=beat_interval_s, stale_after_s=stale_after_s
        )
        self._beaten_at = taken_at
        self._lost: str | None = None
        self._failure: str | None = None
        self._is_closing = False
        self._is_asked = False
        self._changed = threading.Condition()  # its lock may be taken again by the thread that has it
        self._thread = threading.Thread(target=self._beat_until_closed, name="lease", daemon=True)

    @classmethod
    def acquire(
        cls,
        run_uri: str,
        *,
        beat_interval_s: float = 10.0,
        stale_after_s: float = 60.0,
        tell: Callable[[str], None] | None = None,
    ) -> Self:
        """Takes the lease of a run, at once where nobody holds it or its holder is known to be dead.

        Where the holder is late its next sign of life is waited for, `stale_after_s` of it at most (what the holder
        wrote down counts, not what is given here), and the lease is taken over when there is none. `tell`: gets a line
        when a wait begins; default is the terminal.
        Raises: LeasedRunError where a living job holds it. ConfigError where the folder cannot be written.
        """
        run_uri = run_uri.rstrip("/")
        unknown = _Record(
            owner=Owner(host="unknown", pid=0, token=""),
            since=datetime.now(UTC),
            beat_interval_s=beat_interval_s,
            stale_after_s=stale_after_s,
        )
        is_told = False
        epoch = _listed_epoch(run_uri)
        while True:
            epoch = _last_epoch(run_uri, epoch)
            state = _read(run_uri, epoch, unknown)
            if state and state.is_held:
                if not state.is_late:
                    raise LeasedRunError(
                        f"{run_uri}: another job works on this run ({state.describe()}); "
                        "wait for it, or stop it, and run the same command again"
                    )
                if not is_told:
                    (tell or _tell)(
                        f"{run_uri}: another job works on this run ({state.describe()}) and is late; "
                        "taking over if it stays silent"
                    )
                    is_told = True
                _sleep(min(_MAX_POLL_INTERVAL_S, state.beat_interval_s / 2))
                continue
            taken_at = _now()  # before the write: the lease is never younger here than in the store
            lease = cls(
                run_uri,
                epoch + 1,
                Owner.this_process(),
                beat_interval_s=beat_interval_s,
                stale_after_s=stale_after_s,
                taken_at=taken_at,
            )
            if lease._create():
                return lease
            # Another was first: it is the holder to look at now.

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the lease back, as far as the store can be reached; without that it is taken over later."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        # The thread writes the last word, so that none of its earlier ones comes after it.
        self._thread.join(_RELEASE_TIMEOUT_S)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """What `mentalglm status` shows from elsewhere; written with the next renewal. Numbers and names, no text.

        Raises: TypeError where it cannot be JSON.
        """
        copy = json.loads(json.dumps(dict(progress)))
        with self._changed:
            self._record = self._record.model_copy(update={"progress": copy})

    @property
    def is_lost(self) -> bool:
        """Whether the run may be another job's by now, as far as is known here."""
        return self.error() is not None

    def error(self) -> InterruptedRunError | None:
        """What to end the job with once the lease is lost. Does not ask the store as long as renewals come through.

        After a time in which another may have taken over (this process was suspended, the store out of reach) it
        waits for the outcome of a renewal, `beat_interval_s` at most; without one the lease is lost for good.
        """
        with self._changed:
            if self._lost is None and self._is_overdue():
                self._is_asked = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lost or not self._is_overdue(), self._record.beat_interval_s)
                if self._lost is None and self._is_overdue():
                    cause = f" ({self._failure})" if self._failure else ""
                    silence = duration(_now() - self._beaten_at)
                    self._lose(
                        f"{self._run_uri}: the lease could not be renewed for {silence}{cause}, "
                        "so another job may work on this run by now; run the same command again"
                    )
            return InterruptedRunError(self._lost) if self._lost is not None else None

    def check(self) -> None:
        """Asks the store. To be called before each write that only the holder may do.

        Raises: InterruptedRunError where the lease is lost.
        """
        error = self.error() or _fence_error(self._run_uri, self.epoch)
        if error is not None:
            self._lose(str(error))
            raise error

    def _create(self) -> bool:
        try:
            staging = storage.join(self._run_uri, "_run", "tmp")
            return storage.put_if_absent(_path(self._run_uri, self.epoch), _to_json(self._record), staging)
        except UnusableStorageError as error:
            raise ConfigError(f"output.uri = {error}") from None

    def _beat_until_closed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_asked or self._is_closing, self._record.beat_interval_s)
                self._is_asked = False
                is_closing, is_lost = self._is_closing, self._lost is not None
            if not is_lost:
                self._beat(release=is_closing)
            if is_closing or is_lost:
                return

    def _beat(self, *, release: bool = False) -> None:
        """One renewal, or the last word. Without success the next one is the retry."""
        beaten_at = _now()
        with self._changed:
            record = self._record.model_copy(update={"released": release})
        try:
            fenced = _fence_error(self._run_uri, self.epoch)
            if fenced is not None:
                self._lose(str(fenced))
                return
            storage.put(_path(self._run_uri, self.epoch), _to_json(record))
        except Exception as error:  # whatever it is, the thread that renews must live
            self._failure = str(error) if isinstance(error, UserError) else type(error).__name__
        else:
            with self._changed:
                self._beaten_at, self._failure = beaten_at, None
                self._changed.notify_all()

    def _is_overdue(self) -> bool:
        return _now() - self._beaten_at > self._record.stale_after_s

    def _lose(self, message: str) -> None:
        with self._changed:
            self._lost = self._lost or message
            self._changed.notify_all()


def state_of(is_complete: bool, lease: LeaseState | None) -> str:
    """complete · running · interrupted (the same command goes on) · lost (the same, its job ended without a word)."""
    if lease is None or lease.released:
        return "complete" if is_complete else "interrupted"
    if lease.is_stale or lease.owner.is_gone():
        return "complete" if is_complete else "lost"
    return "running"  # also where rows of a complete run are asked for again


def is_fenced(run_uri: str, epoch: int) -> bool:
    """Whether another job has taken the run over from the holder of `epoch`. One small request."""
    return storage.exists(_path(run_uri, epoch + 1))


def check_fence(run_uri: str, epoch: int) -> None:
    """Raises: InterruptedRunError where another job has taken the run over from the holder of `epoch`."""
    error = _fence_error(run_uri, epoch)
    if error is not None:
        raise error


def _fence_error(run_uri: str, epoch: int) -> InterruptedRunError | None:
    if not is_fenced(run_uri, epoch):
        return None
    by = ""
    with contextlib.suppress(Exception):  # the name is not worth another error than this one
        by = f" by {_Record.model_validate_json(storage.read_bytes(_path(run_uri, epoch + 1)) or b'').owner}"
    return InterruptedRunError(
        f"{run_uri.rstrip('/')}: taken over{by}, since this job gave no sign of life; leave the run to that job"
    )


def read_lease(run_uri: str) -> LeaseState | None:
    """The last lease of a run, released or not; None where nobody ever took one.

    Raises: InputError where its file cannot be understood.
    """
    return _read(run_uri, _last_epoch(run_uri, _listed_epoch(run_uri)))


def _read(run_uri: str, epoch: int, unknown: _Record | None = None) -> LeaseState | None:
    """The lease of an epoch, None where there is none. `unknown`: stands in for one that cannot be understood."""
    path = _path(run_uri, epoch)
    data = storage.read_bytes(path) if epoch else None
    age_s = storage.age_s(path) if data is not None else None
    if data is None or age_s is None:
        return None
    try:
        record = _Record.model_validate_json(data)
    except ValidationError:
        if unknown is None:
            raise InputError(
                f"{path}: is not a lease that this version understands (damaged, or written by another version); "
                "look with the version that runs the job"
            ) from None
        record = unknown
    return LeaseState(**dict(record), epoch=epoch, age_s=age_s)


def _listed_epoch(run_uri: str) -> int:
    names = storage.list_names(storage.join(run_uri, "_run", "leases"))
    return max((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), default=0)


def _last_epoch(run_uri: str, epoch: int) -> int:
    """The last epoch that there is, from one that there was: a listing may be old."""
    while storage.exists(_path(run_uri, epoch + 1)):
        epoch += 1
    return epoch


def _path(run_uri: str, epoch: int) -> str:
    return storage.join(run_uri, "_run", "leases", f"{epoch:08d}.json")


def _to_json(record: _Record) -> bytes:
    return record.model_dump_json(indent=2).encode()


def _machine() -> tuple[str | None, str | None]:
    """(this start of this machine, the space in which pids mean something); None where the system does not say."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot_id, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None, None


def _started_s(process: psutil.Process) -> float:
    # Both move with the machine's clock when that is set; their difference does not.
    return float(round(process.create_time() - psutil.boot_time(), 2))


def _submission_id() -> str | None:
    """As `ray job submit` printed it. The variable holds the job's environment too: nothing else of it is used."""
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(job)


def _now() -> float:
    """Seconds on a clock that also runs while the machine sleeps, which time.monotonic() on Linux does not."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _tell(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)
