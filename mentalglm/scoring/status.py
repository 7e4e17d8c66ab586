"""How far is a run, from any machine: read from its folder alone."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from mentalglm.scoring.progress import duration
from mentalglm.scoring.rounds.round import ExplainRecord, effective_totals, read_rounds, round_ledger, unfinished_round
from mentalglm.scoring.run.lease import read_lease, state_of
from mentalglm.scoring.run.ledger import Ledger


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of a run. Numbers are of what is committed, as far as it is not said otherwise."""

    uri: str
    run_id: str
    state: str
    """complete · running · interrupted (run the same command again) · lost (the same, its job ended without a word)"""
    command: str
    """score · retry, explain: that is what runs, or was interrupted; the run itself is complete"""
    owner: str | None
    """Who works on it, or did last, since when, and when it gave the last sign of life."""
    num_predictions: int
    num_expected: int
    """Predictions of the finished run; a little fewer where parts of the input cannot be read."""
    num_in_progress: int
    """Predictions made and not committed yet, as the job said last."""
    rows_per_s: float | None
    eta_s: float | None
    """Seconds left at that rate; None for a retry, whose number is not told."""
    statuses: dict[str, dict[str, int]]
    """task -> status -> predictions; where adapters are compared, `<task>/adapter=<adapter>` ->."""
    num_unreadable_rows: int
    num_shards: int
    num_committed_shards: int
    num_engine_restarts: int
    """Engines that died or hung and were replaced."""
    num_wanted: int | None = None
    """Of explanations that are being added: how many rows they are for."""
    num_committed_shards_of_round: int | None = None
    """Shards that a retry or explanations have committed."""

    @property
    def failed(self) -> dict[str, int]:
        """Predictions without a result, by status."""
        counts = sum((Counter(each) for each in self.statuses.values()), Counter[str]())
        return {status: n for status, n in counts.most_common() if status != "ok"}

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"failed": self.failed}


def read_status(uri: str) -> RunStatus:
    """Reads the plan, the lease, the records of parts, and those of shards that are in none yet.

    Raises: ConfigError where there is no run.
    """
    ledger = Ledger(uri)
    record = ledger.record
    plan = ledger.read_plan()
    lease = read_lease(uri)
    totals = effective_totals(ledger)
    num_expected = (
        plan.num_rows * len(record.fingerprint["tasks"]) * max(1, len(record.fingerprint.get("adapters", ())))
    )
    num_rounds = len(read_rounds(ledger))
    begun = unfinished_round(ledger, num_rounds) if ledger.is_complete() else None
    state = state_of(ledger.is_complete() and begun is None, lease)
    progress = lease.progress if lease is not None and state == "running" else {}
    num_told = sum(progress.get("statuses", {}).values())
    num_made = max(num_told, totals.num_predictions) if begun is None else totals.num_predictions
    num_wanted = begun.num_wanted if isinstance(begun, ExplainRecord) else None
    num_left = num_expected - num_made if begun is None else (num_wanted - num_told if num_wanted is not None else None)
    rate = progress.get("rows_per_s")
    return RunStatus(
        uri=ledger.uri,
        run_id=record.run_id,
        state=state,
        command="score" if begun is None else begun.command,
        owner=lease.describe() if lease is not None else None,
        num_predictions=totals.num_predictions,
        num_expected=num_expected,
        num_in_progress=num_made - totals.num_predictions,
        rows_per_s=rate,
        eta_s=round(num_left / rate, 1) if rate and num_left is not None else None,
        statuses={task: dict(counts) for task, counts in totals.statuses.items()},
        num_unreadable_rows=totals.num_quarantined,
        num_shards=plan.num_shards,
        num_committed_shards=totals.num_shards,
        num_engine_restarts=totals.num_engine_restarts,
        num_wanted=num_wanted,
        num_committed_shards_of_round=(
            None if begun is None else len(round_ledger(ledger, num_rounds).committed_shards())
        ),
    )


def print_status(status: RunStatus) -> None:
    """For a person."""
    console = Console(soft_wrap=True)
    share = status.num_predictions / status.num_expected if status.num_expected else 1.0
    command = "" if status.command == "score" else f"{status.command} "
    console.print(f"{status.uri}: {command}{status.state}", markup=False, highlight=False)
    lines = [
        f"{status.num_predictions} of {status.num_expected} predictions committed ({share:.1%}), "
        f"{status.num_committed_shards} of {status.num_shards} shards"
    ]
    if status.num_committed_shards_of_round is not None:
        of = "" if status.num_wanted is None else f" of those with {status.num_wanted} rows to explain"
        lines.append(f"{status.command}: {status.num_committed_shards_of_round} shards{of} committed")
    if status.num_in_progress:
        lines.append(f"{status.num_in_progress} more made, not committed yet")
    if status.rows_per_s:
        left = f", {duration(status.eta_s)} left" if status.eta_s is not None else ""
        lines.append(f"{status.rows_per_s:.1f} predictions/s{left}")
    if status.num_engine_restarts:
        lines.append(f"{status.num_engine_restarts} engines died or hung and were replaced")
    if status.num_unreadable_rows:
        lines.append(f"{status.num_unreadable_rows} rows of the input cannot be read")
    if status.state == "running":
        lines.append(f"by {status.owner}")
    elif status.state in ("interrupted", "lost"):
        by = f"last worked on by {status.owner}; " if status.owner else ""
        lines.append(f"{by}the same `mentalglm {status.command}` command goes on")
    for line in lines:
        console.print(line, markup=False, highlight=False)
    if not status.statuses:
        return
    table = Table("task", "status", "predictions")
    for task, counts in status.statuses.items():
        for name, n in sorted(counts.items(), key=lambda item: (item[0] != "ok", -item[1])):
            table.add_row(task, name, str(n))
    console.print(table)
