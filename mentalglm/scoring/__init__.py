"""Scoring a corpus: plan, engines, ledger, output."""

from mentalglm.scoring.pipeline import RunSummary, explain, plan_run, retry, score

__all__ = ["RunSummary", "explain", "plan_run", "retry", "score"]
