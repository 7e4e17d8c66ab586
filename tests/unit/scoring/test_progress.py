"""What a person sees: rows per second, time left, failures by status."""

import io

import pytest
from rich.console import Console

from mentalglm.scoring.progress import RunProgress, describe, duration


def test_the_line_names_rate_time_left_and_failures() -> None:
    line = describe({"ok": 40, "parse_failed": 10, "refused": 0}, total=150, rate=5.0)
    assert line == "5.0 rows/s · 20 s left · parse_failed 10"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (65, "1 min 05 s"), (26_400, "7 h 20 min")])
def test_durations_read_like_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_output_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mentalglm.scoring.progress._PLAIN_INTERVAL_S", 0.0)
    stream = io.StringIO()
    with RunProgress(100, 10, Console(file=stream, width=200)) as progress:
        progress.update({"ok": 20})
        progress.update({"ok": 60, "truncated": 3})
    assert "\x1b" not in stream.getvalue()
    assert "63/100" in stream.getvalue()
    assert "truncated 3" in stream.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    stream = io.StringIO()
    with RunProgress(100, 0, Console(file=stream, force_terminal=True, width=120)) as progress:
        progress.update({"ok": 50})
    assert "50/100" in stream.getvalue()
