"""Reports of runs on S3, and of many posts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mentalglm import storage
from mentalglm.config import ReportConfig
from mentalglm.report.job import write_report
from tests.report_runs import write_run
from tests.unit.report.test_page import KEPT, distortion_rows, risk_rows


def test_runs_and_pages_may_lie_on_s3(s3: str, tmp_path: Path) -> None:
    rows = {
        "suicide_risk": risk_rows(300, 640, 60),
        "cognitive_distortion": distortion_rows({"labeling": 400, "mental_filter": 200}, 400),
    }
    run = write_run(tmp_path / "run", rows, kept=KEPT)
    for path in run.rglob("*"):
        if path.is_file():
            storage.put(f"{s3}/run/{path.relative_to(run).as_posix()}", path.read_bytes())
    pages = []
    for uri, target in ((str(run), str(tmp_path / "report.html")), (f"{s3}/run", f"{s3}/report.html")):
        assert write_report(ReportConfig.model_validate({"runs": [uri], "output": {"uri": target}})) == target
        data = storage.read_bytes(target)
        assert data is not None
        pages.append(re.sub(rf"{re.escape(uri)}|{re.escape(str(run))}|Made [^<]*", "", data.decode()))
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Two runs of 600,000 posts x 2 tasks, counted and joined: what is read at once is small, whatever there is."""
    command = [sys.executable, "-m", "mentalglm.measure.report", "--num-posts", "600000", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout)
    peaks = re.findall(r"peak memory ([\d,]+) MB \(of this, ([\d,]+) before", done.stdout)
    assert len(peaks) == 2
    for peak, base in peaks:
        assert int(peak.replace(",", "")) - int(base.replace(",", "")) < 300
