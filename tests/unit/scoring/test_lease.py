"""The lease with an in-memory store and a clock that the test moves."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm import errors
from mentalglm.errors import ConfigError, InputError, InterruptedRunError, StorageError, UnusableStorageError
from mentalglm.scoring.run import lease as lease_module
from mentalglm.scoring.run.lease import Lease, LeasedRunError, Owner, check_fence, is_fenced, read_lease

RUN = "s3://scored/run"


class Store:
    """What `mentalglm.storage` promises, in memory. `at`: called before each operation with its name."""

    def __init__(self, at: Callable[[str], None] = lambda operation: None) -> None:
        self.files: dict[str, bytes] = {}
        self.written_at: dict[str, float] = {}
        self.now = 1000.0
        self.at = at

    def join(self, uri: str, *parts: str) -> str:
        return "/".join([uri.rstrip("/"), *parts])

    def put(self, uri: str, data: bytes) -> None:
        self.at("put")
        self.files[uri], self.written_at[uri] = data, self.now

    def put_if_absent(self, uri: str, data: bytes, staging: str | None = None) -> bool:
        self.at("put_if_absent")
        if uri in self.files:
            return False
        self.files[uri], self.written_at[uri] = data, self.now
        return True

    def read_bytes(self, uri: str) -> bytes | None:
        self.at("read_bytes")
        return self.files.get(uri)

    def exists(self, uri: str) -> bool:
        self.at("exists")
        return uri in self.files

    def age_s(self, uri: str) -> float | None:
        self.at("age_s")
        return self.now - self.written_at[uri] if uri in self.files else None

    def list_names(self, uri: str) -> list[str]:
        self.at("list_names")
        return sorted(key.removeprefix(f"{uri}/") for key in self.files if key.startswith(f"{uri}/"))

    def sleep(self, seconds: float) -> None:
        self.at("sleep")
        self.now += seconds

    def lease(self, epoch: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.files[path(epoch)])
        return content


def path(epoch: int) -> str:
    return f"{RUN}/_run/leases/{epoch:08d}.json"


@contextmanager
def using(store: Store) -> Iterator[Store]:
    patches = {"storage": store, "_now": lambda: store.now, "_sleep": store.sleep}
    with mock.patch.multiple(lease_module, **patches):
        yield store


@pytest.fixture
def store() -> Iterator[Store]:
    with using(Store()) as store:
        yield store


def test_the_first_job_takes_epoch_one_and_says_who_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        json.dumps(
            {
                "runtime_env": {"env_vars": {"AWS_SECRET_ACCESS_KEY": "canary"}},
                "metadata": {"job_submission_id": "raysubmit_7", "note": "canary"},
            }
        ),
    )
    assert read_lease(RUN) is None
    lease = Lease.acquire(RUN)
    state = read_lease(RUN)
    assert state is not None
    assert (lease.epoch, state.epoch, state.age_s, state.released) == (1, 1, 0.0, False)
    assert (state.owner.pid, state.owner.job) == (os.getpid(), "raysubmit_7")
    assert "canary" not in store.files[path(1)].decode()
    assert "raysubmit_7" in state.describe()


def test_a_held_run_is_refused_with_who_holds_it(store: Store) -> None:
    Lease.acquire(RUN)
    store.now += 15
    with pytest.raises(
        LeasedRunError, match=rf"pid {os.getpid()}, since .* UTC, last sign of life 15 s ago.*stop it"
    ) as e:
        Lease.acquire(RUN)
    assert e.value.exit_code == errors.InterruptedRunError.exit_code == 75
    assert "\n" not in str(e.value)
    assert path(2) not in store.files


def test_a_released_run_is_taken_at_once(store: Store) -> None:
    for epoch in (1, 2, 3):
        with Lease.acquire(RUN) as lease:
            assert lease.epoch == epoch
            assert not store.lease(epoch)["released"]
        assert store.lease(epoch)["released"]
    assert store.now == 1000.0


def test_a_late_holder_that_writes_again_keeps_the_run(store: Store) -> None:
    holder = Lease.acquire(RUN)
    store.now += 40
    sleeps = iter([lambda: None, holder._beat])
    store.at = lambda operation: next(sleeps)() if operation == "sleep" else None
    told: list[str] = []
    with pytest.raises(LeasedRunError, match="sign of life 1 s ago"):
        Lease.acquire(RUN, tell=told.append)
    assert len(told) == 1
    assert "late" in told[0]
    holder.check()


def test_a_silent_holder_is_taken_over_when_its_time_is_up_and_not_before(store: Store) -> None:
    Lease.acquire(RUN)
    store.now += 40
    assert Lease.acquire(RUN, tell=lambda line: None).epoch == 2
    assert 1060 < store.now <= 1062


def test_the_terms_of_the_holder_count(store: Store) -> None:
    Lease.acquire(RUN, beat_interval_s=100, stale_after_s=1000)
    store.now += 150
    with pytest.raises(LeasedRunError):
        Lease.acquire(RUN, beat_interval_s=1, stale_after_s=5)


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot_id": "another"}, {"pid_namespace": "pid:[1]"}])
def test_a_process_is_known_to_be_gone_only_on_its_own_machine(store: Store, change: dict[str, str]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = Owner.this_process().model_copy(update={"pid": ended.pid})
    assert gone.is_gone()
    assert not gone.model_copy(update=change).is_gone()
    lease = Lease.acquire(RUN)
    lease._record = lease._record.model_copy(update={"owner": gone.model_copy(update=change)})
    lease._beat()
    with pytest.raises(LeasedRunError):
        Lease.acquire(RUN)
    lease._record = lease._record.model_copy(update={"owner": gone})
    lease._beat()
    assert Lease.acquire(RUN).epoch == 2
    assert store.now == 1000.0


def test_a_pid_that_another_process_has_now_is_not_the_holder() -> None:
    owner = Owner.this_process()
    assert owner.started_s is not None
    assert not owner.is_gone()
    assert owner.model_copy(update={"started_s": owner.started_s - 60}).is_gone()


def test_an_old_listing_does_no_harm(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        with Lease.acquire(RUN):
            pass
    monkeypatch.setattr(store, "list_names", lambda uri: ["00000001.json", "00000002.json.tmp", "99"])
    assert Lease.acquire(RUN).epoch == 4
    with pytest.raises(LeasedRunError):
        Lease.acquire(RUN)


def test_who_loses_the_race_looks_at_the_winner(store: Store) -> None:
    winner: list[Lease] = []

    def another_is_first(operation: str) -> None:
        if operation == "put_if_absent" and not winner:
            store.at = lambda operation: None
            winner.append(Lease.acquire(RUN))

    store.at = another_is_first
    with pytest.raises(LeasedRunError):
        Lease.acquire(RUN)
    assert [lease.epoch for lease in winner] == [1]
    assert path(2) not in store.files


def test_a_fenced_holder_is_told_by_whom_and_writes_no_more(store: Store) -> None:
    old = Lease.acquire(RUN)
    with old:
        store.now += 61
        new = Lease.acquire(RUN)
        before = store.files[path(1)]
        with pytest.raises(InterruptedRunError, match=f"taken over by host .*, pid {os.getpid()}"):
            old.check()
        assert old.is_lost
        assert isinstance(old.error(), InterruptedRunError)
        assert is_fenced(RUN, old.epoch)
        assert not is_fenced(RUN, new.epoch)
        new.check()
        with pytest.raises(InterruptedRunError, match="taken over"):
            check_fence(RUN, old.epoch)
        check_fence(RUN, new.epoch)
    assert store.files[path(1)] == before


def test_a_renewal_finds_the_takeover_too(store: Store) -> None:
    lease = Lease.acquire(RUN)
    before = store.files[path(1)]
    store.put(path(2), before)
    store.now += 10
    lease._beat()
    assert store.written_at[path(1)] == 1000.0
    assert lease.is_lost


def test_a_storage_that_fails_is_no_takeover(store: Store) -> None:
    def fail(operation: str) -> None:
        raise StorageError("no answer; see to the network")

    lease = Lease.acquire(RUN)
    store.at = fail
    lease._beat()
    with pytest.raises(StorageError):  # and nothing is written
        lease.check()
    with pytest.raises(StorageError):
        check_fence(RUN, lease.epoch)
    store.at = lambda operation: None
    lease.check()


def test_a_takeover_by_whom_nobody_can_read_is_a_takeover(store: Store) -> None:
    lease = Lease.acquire(RUN)
    store.put(path(2), b"\x00")
    with pytest.raises(InterruptedRunError, match="taken over, since"):
        lease.check()


def test_a_renewal_that_fails_is_tried_again_and_the_lease_is_lost_when_none_comes_through(store: Store) -> None:
    def fail(operation: str) -> None:
        if operation == "put":
            raise StorageError("no answer; see to the network")

    lease = Lease.acquire(RUN, beat_interval_s=0.02, stale_after_s=60)
    store.at = fail
    store.now += 30
    lease._beat()
    assert lease.error() is None
    store.at = lambda operation: None
    store.now += 29
    lease._beat()
    store.at = fail
    store.now += 59
    lease._beat()
    assert lease.error() is None
    store.now += 2
    with pytest.raises(InterruptedRunError, match=r"not be renewed for 1 min 01 s \(no answer; see to the network\)"):
        lease.check()
    store.at = lambda operation: None
    lease._beat()
    assert lease.is_lost, "lost is lost"


def test_a_job_that_wakes_up_before_anyone_took_over_goes_on(store: Store) -> None:
    with Lease.acquire(RUN, beat_interval_s=5) as lease:
        store.now += 3600
        assert lease.error() is None  # the renewal that it asks for, not one that was due
        assert store.written_at[path(1)] == store.now
        lease.check()


def test_progress_is_written_with_the_next_renewal(store: Store) -> None:
    lease = Lease.acquire(RUN)
    statuses = {"ok": 3}
    lease.progress({"rows_per_s": 1.5, "statuses": statuses})
    statuses["ok"] = 9
    assert store.lease(1)["progress"] == {}
    lease._beat()
    state = read_lease(RUN)
    assert state is not None
    assert state.progress == {"rows_per_s": 1.5, "statuses": {"ok": 3}}
    with pytest.raises(TypeError):
        lease.progress({"at": object()})


def test_a_release_that_fails_hides_nothing(store: Store) -> None:
    def fail(operation: str) -> None:
        raise ConnectionError

    lease = Lease.acquire(RUN)
    store.at = fail
    with pytest.raises(ZeroDivisionError), lease:
        raise ZeroDivisionError
    store.at = lambda operation: None
    assert not store.lease(1)["released"]


def test_an_error_releases_the_lease(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), Lease.acquire(RUN):
        raise ZeroDivisionError
    assert store.lease(1)["released"]


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b"{}", b'{"owner": {"host": "a", "pid": 1}}'])
def test_a_damaged_lease_is_a_clear_error_to_read_and_is_waited_out_to_take(store: Store, content: bytes) -> None:
    store.put(path(1), content)
    with pytest.raises(InputError, match=r"leases/00000001.json: is not a lease.*version"):
        read_lease(RUN)
    with pytest.raises(LeasedRunError, match="host unknown"):
        Lease.acquire(RUN)
    store.now += 30
    assert Lease.acquire(RUN, tell=lambda line: None).epoch == 2
    assert store.now > 1060


def test_keys_of_a_later_version_are_left_alone(store: Store) -> None:
    Lease.acquire(RUN)
    store.put(path(1), json.dumps(store.lease(1) | {"zone": "b"}).encode())
    state = read_lease(RUN)
    assert state is not None
    assert state.owner.pid == os.getpid()


def test_a_folder_that_cannot_be_written_is_a_config_error(store: Store) -> None:
    def fail(operation: str) -> None:
        if operation == "put_if_absent":
            raise UnusableStorageError(
                f"{RUN}: cannot be used (permission denied); name a folder that this user may write"
            )

    store.at = fail
    with pytest.raises(ConfigError, match=r"^output.uri = s3://scored/run: cannot be used"):
        Lease.acquire(RUN)


# Any interleaving of several jobs, at each operation of the store.

BEAT_S, LATE_S, STALE_S = 0.002, 0.004, 0.012
NUM_JOBS = 4


class _Halted(BaseException):
    """The schedule is over."""


@dataclass
class Jobs:
    """Jobs in threads of their own, of which one at a time runs, up to its next operation."""

    store: Store = field(init=False)
    halted: bool = False
    problems: list[str] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    num_commits: int = 0

    def __post_init__(self) -> None:
        self.store = Store(self._wait_for_turn)
        self._local = threading.local()
        self._ended: set[int] = set()
        self._turns = [threading.Semaphore(0) for _ in range(NUM_JOBS)]
        self._idle = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(NUM_JOBS)]
        for thread in self._threads:
            thread.start()
            self._idle.acquire()

    def step(self, number: int) -> None:
        if number not in self._ended:
            self._turns[number].release()
            self._idle.acquire()

    def halt(self) -> None:
        self.halted = True
        for number in range(NUM_JOBS):
            self.step(number)
            self._threads[number].join()

    def _wait_for_turn(self, operation: str) -> None:
        number = getattr(self._local, "number", None)
        if number is None:
            return
        self._idle.release()
        self._turns[number].acquire()
        if self.halted:
            raise _Halted

    def _run(self, number: int) -> None:
        self._local.number = number
        try:
            self._wait_for_turn("start")
            self._job()
        except (_Halted, InterruptedRunError):
            pass
        except BaseException as error:
            self.problems.append(repr(error))
        finally:
            self._ended.add(number)
            self._idle.release()

    def _job(self) -> None:
        lease = Lease.acquire(RUN, beat_interval_s=BEAT_S, stale_after_s=STALE_S, tell=lambda line: None)
        self.epochs.append(lease.epoch)
        for n in range(6):
            if n % 2:
                lease._beat()
            was_taken_over = path(lease.epoch + 1) in self.store.files
            lease.check()
            if was_taken_over:
                self.problems.append(f"epoch {lease.epoch} passed a check after its takeover")
            self.num_commits += 1
        lease._beat(release=True)


class CheckedStore(Store):
    """Also holds that a lease is taken only where the one before has been released, or silent for long."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(jobs.store.at)
        self._jobs = jobs
        self._seen: dict[tuple[int, str], float] = {}

    def list_names(self, uri: str) -> list[str]:
        return super().list_names(uri)[:1]  # an old listing

    def age_s(self, uri: str) -> float | None:
        age_s = super().age_s(uri)
        self._seen[threading.get_ident(), uri] = age_s or 0.0
        return age_s

    def put_if_absent(self, uri: str, data: bytes, staging: str | None = None) -> bool:
        is_first = super().put_if_absent(uri, data, staging)
        epoch = int(uri[-13:-5])
        if is_first and epoch > 1:
            age_s = self._seen.get((threading.get_ident(), path(epoch - 1)), 0.0)
            if not self.lease(epoch - 1)["released"] and age_s <= STALE_S:
                self._jobs.problems.append(f"epoch {epoch} took over from a living holder")
        return is_first


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(0, NUM_JOBS - 1),
            st.tuples(st.integers(0, NUM_JOBS - 1), st.integers(2, 12)),  # the same job, several operations
            st.sampled_from([BEAT_S, STALE_S / 2, 2 * STALE_S]),  # time passes
        ),
        min_size=20,
        max_size=120,
    )
)
def test_no_interleaving_has_two_holders(schedule: list[int | tuple[int, int] | float]) -> None:
    jobs = Jobs()
    jobs.store = store = CheckedStore(jobs)
    # What holds must hold without the holder's own clock.
    with using(store), mock.patch.object(Lease, "_is_overdue", return_value=False):
        for each in schedule:
            if isinstance(each, float):
                store.now += each
            else:
                number, num_steps = each if isinstance(each, tuple) else (each, 1)
                for _ in range(num_steps):
                    jobs.step(number)
        jobs.halt()
        assert jobs.problems == []
        assert len(set(jobs.epochs)) == len(jobs.epochs)
        # Whatever they left behind, the next job gets the run, at the latest when the last one's time is up.
        store.now += 1.5 * LATE_S
        last = max((int(key[-13:-5]) for key in store.files), default=0)
        lease = Lease.acquire(RUN, beat_interval_s=BEAT_S, stale_after_s=STALE_S, tell=lambda line: None)
        assert lease.epoch == last + 1
