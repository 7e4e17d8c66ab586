"""What is asked about a post: each task, and where adapters are compared, each task of each adapter.

A question's key is what its predictions are counted and filed under, all through the ledger: `<task>`, or
`<task>/adapter=<adapter>`. So a file of its predictions lies in `task=<key>/`, which readers that know Hive's folders
take for the columns `task` and `adapter`; and where nothing is compared, nothing is different.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mentalglm.config import ScoreConfig
from mentalglm.tasks import Task

_SEPARATOR = "/adapter="


@dataclass(frozen=True, slots=True)
class Question:
    """One task, of one adapter."""

    task: Task
    adapter: str | None = None
    """Its name in `model.adapters`; None where there are none to choose from."""

    @property
    def key(self) -> str:
        """What its predictions are counted and filed under."""
        return question_key(self.task.name, self.adapter)


def questions_of(config: ScoreConfig, tasks: Sequence[Task]) -> tuple[Question, ...]:
    """Every question, one adapter after the other: an engine's prefix cache is of one adapter."""
    return tuple(Question(task, adapter) for adapter in config.model.adapters or [None] for task in tasks)


def question_key(task: str, adapter: str | None) -> str:
    """The key of the question about `task`, of `adapter`."""
    return task if adapter is None else f"{task}{_SEPARATOR}{adapter}"


def question_columns(key: str) -> dict[str, str]:
    """The columns that say which question a row is of: {"task": ...}, and "adapter" where there are some."""
    task, separator, adapter = key.partition(_SEPARATOR)
    return {"task": task, "adapter": adapter} if separator else {"task": task}
