import threading
import time
from typing import Any

import pytest
import ray.data

from mentalglm.scoring.execution import Execution


class _Slow:
    """Takes a minute to start, as a model that loads does, or for each batch."""

    def __init__(self, start_s: float) -> None:
        time.sleep(start_s)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(60)
        return batch


@pytest.mark.parametrize("start_s", [60, 0])
def test_an_execution_that_is_left_runs_no_thread_that_could_speak_to_a_ray_that_is_gone(
    ray_session: None, start_s: float
) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    dataset = ray.data.from_items([{"lane": 0}]).map_batches(_Slow, fn_constructor_args=(start_s,), concurrency=1)
    with Execution(dataset) as execution:
        time.sleep(2)
        assert not execution.is_over()
    assert execution.is_over()
    assert not [each.name for each in threading.enumerate() if each.ident not in before]


def test_an_execution_tells_that_its_dataset_has_failed(ray_session: None) -> None:
    def fails(batch: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("of the dataset")

    with Execution(ray.data.from_items([{"lane": 0}]).map_batches(fails)) as execution:
        execution.join()
        assert execution.is_over()
        assert "of the dataset" in str(execution.error())
