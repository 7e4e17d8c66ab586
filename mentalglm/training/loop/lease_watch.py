"""Whether another job has taken a stage over, while the workers of this one train."""

import threading
from types import TracebackType
from typing import Self

from mentalglm.errors import InterruptedRunError, StorageError
from mentalglm.scoring.run.lease import check_fence

_INTERVAL_S = 5.0


class LeaseWatch:
    """Asks the store now and then, in a thread of its own, so that no step waits for it.

    The job that holds the lease waits for Ray Train, which cannot be ended from outside; its workers can end it.
    """

    def __init__(self, stage_uri: str, epoch: int) -> None:
        """`epoch`: of the job's lease."""
        self._stage_uri, self._epoch = stage_uri, epoch
        self.error: InterruptedRunError | None = None
        """What to end with; None as long as nobody has taken the stage over."""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lease-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()  # and not waited for: the store may be out of reach

    def _watch(self) -> None:
        while self.error is None and not self._is_over.wait(_INTERVAL_S):
            try:
                check_fence(self._stage_uri, self._epoch)
            except StorageError:  # for now: the next look will tell
                continue
            except InterruptedRunError as error:
                self.error = error
