"""The table of faults names tests that there are."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_in_the_table_of_faults_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (TESTS / "FAULTS.md").read_text(encoding="utf-8")))
    defined = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 50
    assert named - defined == set()
