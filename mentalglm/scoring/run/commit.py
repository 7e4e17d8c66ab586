"""What is known of committed shards: the record of one, and counts over many."""

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from mentalglm.scoring.predictions import INPUT_STATUSES, add_hashes, hash_ids


class StagedFile(BaseModel):
    """A file of one shard, on its way to `data/` or `errors/`."""

    model_config = ConfigDict(frozen=True)

    num_rows: int
    num_bytes: int
    sha256: str


class Effort(BaseModel):
    """What the work for some rows took. Not of the numbers: two attempts at the same rows differ in it."""

    model_config = ConfigDict(frozen=True)

    engine_s: dict[str, float] = {}
    """Seconds of an engine: `cold_start`, from the start of the run until it was up, and the keys of `Occupancy`."""
    cpu_s: dict[str, float] = {}
    """CPU seconds of the process that feeds the engine, by step."""
    num_prefill_tokens: int = 0
    """Of the prompts given to the engine, and of the heads that it went on from."""
    num_cached_tokens: int = 0
    """Of those, taken from its prefix cache."""
    num_wasted_tokens: int = 0
    """Output tokens that are in no result, since the answer was asked for anew."""

    def __add__(self, other: "Effort") -> "Effort":
        return self._with(other, 1)

    def __sub__(self, other: "Effort") -> "Effort":
        return self._with(other, -1)

    def _with(self, other: "Effort", sign: int) -> "Effort":
        seconds = {
            name: {key: mine.get(key, 0.0) + sign * theirs.get(key, 0.0) for key in {**mine, **theirs}}
            for name, mine, theirs in (
                ("engine_s", self.engine_s, other.engine_s),
                ("cpu_s", self.cpu_s, other.cpu_s),
            )
        }
        return Effort(
            **seconds,
            num_prefill_tokens=self.num_prefill_tokens + sign * other.num_prefill_tokens,
            num_cached_tokens=self.num_cached_tokens + sign * other.num_cached_tokens,
            num_wasted_tokens=self.num_wasted_tokens + sign * other.num_wasted_tokens,
        )


NO_EFFORT = Effort()


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
    explained: dict[str, int] = {}
    """task -> number of predictions with an explanation."""
    files: dict[str, StagedFile]
    """`task=<task>` or `errors` -> its file of this shard."""
    id_hash: str
    """`hash_ids` of the ids of its rows: each task has one row for each."""
    num_copied: int = 0
    """Predictions that are those of another post with the same text."""
    failed: dict[str, dict[str, list[int]]] = {}
    """task -> status other than ok -> rows of the shard, from 0."""
    failed_copies: dict[str, list[int]] = {}
    """task -> those of the `failed` rows that are copies."""
    engine: dict[str, str]
    """What answered: engine, version, model, device."""
    num_prompt_tokens: int
    num_output_tokens: int
    seconds: float
    finished_at: float = 0.0
    """s since 1970, by the clock of the machine that scored it."""
    effort: Effort = Effort()
    """Of the engine that answered, since its last commit."""
    num_engine_restarts: int = 0
    """Of the engine that answered, since its last commit."""
    quarantined: str | None = None
    """Why the rows of the shard could not be read, when they could not."""
    num_quarantined: int = 0

    @property
    def num_predictions(self) -> int:
        """Rows of the output."""
        return sum(sum(counts.values()) for counts in self.statuses.values())

    def rows_with(self, statuses: frozenset[str]) -> dict[str, dict[int, str]]:
        """task -> row of the shard, in order -> its status, for the failed rows with one of `statuses`."""
        return {
            task: dict(sorted((row, status) for status in statuses & by_status.keys() for row in by_status[status]))
            for task, by_status in self.failed.items()
            if statuses & by_status.keys()
        }

    def after_retry(self, statuses: frozenset[str], retried: "ShardCommit") -> "ShardCommit":
        """The shard once its rows with one of `statuses` are those of `retried`, which holds them alone, in order.

        Tokens are those of all answers, also of the replaced ones: they were paid for.
        """
        if retried.quarantined is not None:  # could not be read this time: what is known stands
            return self
        counts = {task: Counter(each) for task, each in self.statuses.items()}
        labels = {task: Counter(each) for task, each in self.labels.items()}
        failed = {
            task: {status: list(rows) for status, rows in by_status.items()} for task, by_status in self.failed.items()
        }
        num_copied = self.num_copied + retried.num_copied
        copies = {task: set(rows) for task, rows in self.failed_copies.items()}
        for task, rows in self.rows_with(statuses).items():
            counts[task] += Counter(retried.statuses[task])
            counts[task] -= Counter(rows.values())
            labels[task] += Counter(retried.labels[task])
            for status in statuses & failed[task].keys():
                del failed[task][status]
            numbers = list(rows)
            for status, positions in retried.failed[task].items():
                failed[task][status] = sorted([*failed[task].get(status, []), *(numbers[each] for each in positions)])
            num_copied -= len(copies.get(task, set()) & rows.keys())
            copies[task] = copies.get(task, set()) - rows.keys()
            copies[task] |= {numbers[each] for each in retried.failed_copies.get(task, ())}
        return self.model_copy(
            update={
                "statuses": {task: dict(each) for task, each in counts.items()},
                "labels": {task: dict(each) for task, each in labels.items()},
                "failed": failed,
                "failed_copies": {task: sorted(rows) for task, rows in copies.items()},
                "num_copied": num_copied,
                "explained": dict(Counter(self.explained) + Counter(retried.explained)),
                "num_prompt_tokens": self.num_prompt_tokens + retried.num_prompt_tokens,
                "num_output_tokens": self.num_output_tokens + retried.num_output_tokens,
                "seconds": self.seconds + retried.seconds,
                "effort": self.effort + retried.effort,
                "num_engine_restarts": self.num_engine_restarts + retried.num_engine_restarts,
            }
        )


class Unreadable(BaseModel):
    """A shard whose rows could not be read."""

    model_config = ConfigDict(frozen=True)

    shard: int
    num_rows: int
    reason: str


class Totals(BaseModel):
    """Counts over committed shards. Small however many those are, so that nothing has to be counted twice."""

    num_shards: int = 0
    num_rows: int = 0
    """Rows of the input that could be read."""
    statuses: dict[str, Counter[str]] = {}
    """task -> status -> number of predictions."""
    labels: dict[str, Counter[str]] = {}
    """task -> label -> number of predictions with it."""
    explained: Counter[str] = Counter()
    """task -> number of predictions with an explanation."""
    engines: list[dict[str, str]] = []
    """What answered; more than one entry where machines differ."""
    num_engine_restarts: int = 0
    """Engines that died or hung and were replaced."""
    num_copied: int = 0
    """Predictions that are those of another post with the same text."""
    unreadable: list[Unreadable] = []
    id_hash: str = hash_ids([])
    """`hash_ids` of all rows."""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    effort: Effort = Effort()
    """As far as it is known: what a worker did that died before its next commit is not."""

    @classmethod
    def of(cls, commits: Iterable[ShardCommit]) -> "Totals":
        """Counts over these."""
        totals = cls()
        for commit in commits:
            totals.add(commit)
        return totals

    def add(self, commit: ShardCommit) -> None:
        """Counts one more shard."""
        unreadable = []
        if commit.quarantined is not None:
            unreadable = [Unreadable(shard=commit.shard, num_rows=commit.num_quarantined, reason=commit.quarantined)]
        self.merge(
            Totals(
                num_shards=1,
                num_rows=commit.num_rows,
                statuses={task: Counter(counts) for task, counts in commit.statuses.items()},
                labels={task: Counter(counts) for task, counts in commit.labels.items()},
                explained=Counter(commit.explained),
                engines=[commit.engine] if commit.engine else [],
                num_engine_restarts=commit.num_engine_restarts,
                num_copied=commit.num_copied,
                unreadable=unreadable,
                id_hash=commit.id_hash,
                num_prompt_tokens=commit.num_prompt_tokens,
                num_output_tokens=commit.num_output_tokens,
                effort=commit.effort,
            )
        )

    def merge(self, others: "Totals") -> None:
        """Counts the shards that `others` counts, too."""
        for name in (
            *("num_shards", "num_rows", "num_engine_restarts", "num_copied"),
            *("num_prompt_tokens", "num_output_tokens"),
        ):
            setattr(self, name, getattr(self, name) + getattr(others, name))
        self.effort += others.effort
        for mine, theirs in ((self.statuses, others.statuses), (self.labels, others.labels)):
            for task, counts in theirs.items():
                mine.setdefault(task, Counter()).update(counts)
        self.explained.update(others.explained)
        self.engines += [engine for engine in others.engines if engine not in self.engines]
        self.unreadable += others.unreadable
        self.id_hash = add_hashes([self.id_hash, others.id_hash])

    def replace(self, before: ShardCommit, after: ShardCommit) -> None:
        """Counts a shard as it is after a retry, where it was counted as it was before."""
        for mine, old, new in (
            (self.statuses, before.statuses, after.statuses),
            (self.labels, before.labels, after.labels),
        ):
            for task in new:
                mine[task].update(new[task])
                mine[task] -= Counter(old[task])
        self.explained.update(after.explained)
        self.explained -= Counter(before.explained)
        self.num_copied += after.num_copied - before.num_copied
        self.num_engine_restarts += after.num_engine_restarts - before.num_engine_restarts
        self.num_prompt_tokens += after.num_prompt_tokens - before.num_prompt_tokens
        self.num_output_tokens += after.num_output_tokens - before.num_output_tokens
        self.effort += after.effort - before.effort

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

    @property
    def num_quarantined(self) -> int:
        """Rows of the input that could not be read."""
        return sum(each.num_rows for each in self.unreadable)
