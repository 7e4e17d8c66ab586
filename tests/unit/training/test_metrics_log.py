"""Metrics that can be watched, and of which none is twice after a kill."""

import time
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from mentalglm.training.metrics_log import MetricsLog, read_metrics, write_validation_scalars


def log(folder: Path, first_step: int) -> MetricsLog:
    return MetricsLog(str(folder), first_step=first_step)


def events(path: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of an event file, as TensorBoard reads it: length, its checksum, record, its checksum."""
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    return found


def test_what_came_after_the_checkpoint_is_written_anew(tmp_path: Path) -> None:
    with log(tmp_path, 0) as first:
        for step in range(1, 6):
            first.add(step, {"loss": 1 / step})
    with log(tmp_path, 3) as second:
        second.add(4, {"loss": 0.5})
        second.write()
        assert [line["step"] for line in read_metrics(str(tmp_path))] == [1, 2, 3, 4]
    second.write()  # of a checkpoint that is uploaded after the end
    assert [line["loss"] for line in read_metrics(str(tmp_path))] == [1, 1 / 2, 1 / 3, 0.5]
    files = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert files == ["events.out.tfevents.0000000000", "events.out.tfevents.0000000003"]
    assert events(tmp_path / "tensorboard" / files[0])[0] == ("train/loss", 1, 1.0)
    assert events(tmp_path / "tensorboard" / files[1]) == [("train/loss", 4, 0.5)]
    write_validation_scalars(str(tmp_path), {10: {"score": 0.25}, 5: {"score": 0.5}})
    curve = events(tmp_path / "tensorboard" / "events.out.tfevents.validation")
    assert curve == [("validation/score", 5, 0.5), ("validation/score", 10, 0.25)]


def test_the_last_events_are_written_however_slow_their_writer_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_event = EventsWriter.write_event

    def slowly(writer: Any, event: Any) -> Any:
        time.sleep(0.05)
        return write_event(writer, event)

    monkeypatch.setattr(EventsWriter, "write_event", slowly)
    with log(tmp_path, 0) as written:
        for step in range(1, 6):
            written.add(step, {"loss": 1.0})
    [path] = (tmp_path / "tensorboard").iterdir()
    assert [step for _, step, _ in events(path)] == [1, 2, 3, 4, 5]


def test_a_line_that_is_damaged_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.1}\n{"step": 2, "lo\xe4')
    assert read_metrics(str(tmp_path)) == [{"step": 1, "loss": 0.1}]
