"""Predictions against gold labels: metrics, intervals, comparisons. No Ray, no torch, no GPU."""

from mentalglm.evaluation.evaluate import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
