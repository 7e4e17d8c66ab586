"""What a person reads when there is no cluster."""

from typing import Any

import pytest
import ray

from mentalglm.cluster import connect
from mentalglm.errors import InterruptedRunError


def test_a_cluster_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise TimeoutError("Timed out after 60 seconds\nand much more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests have left
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(InterruptedRunError) as caught:
        connect()
    assert str(caught.value) == (
        "Ray could not be started on this machine (TimeoutError: Timed out after 60 seconds); see to it and run the "
        "same command again"
    )
