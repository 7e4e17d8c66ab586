"""Scoring a corpus: plan, engines, ledger, output."""

from mentalglm.scoring.pipeline import RunSummary, plan_run, retry, score

__all__ = ["RunSummary", "plan_run", "retry", "score"]
