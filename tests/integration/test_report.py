"""A report of a run on S3, written to S3, is that of the same run on a disk."""

import re
from pathlib import Path

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
