"""Nothing that was written by or about a person leaves the data: canaries are looked for in all that a run leaves."""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.training_jobs import CANARY, write_model, write_records

pytestmark = pytest.mark.slow

TEXT, AUTHOR, KEPT, SECRET = "金丝雀正文乙7", "@金丝雀作者丙8", "canarykept9", "canary-secret-0"
CANARIES = (TEXT, AUTHOR, KEPT, SECRET, CANARY)
INPUTS = ("posts.parquet", "records.jsonl", "records.parquet")
MENTALGLM = str(Path(sys.executable).parent / "mentalglm")


class Quoter(BaseHTTPRequestHandler):
    """An endpoint that quotes the prompt wherever it can: in answers without a label, in errors, in broken replies."""

    num_requests = 0

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["messages"][-1]["content"]
        Quoter.num_requests += 1
        kind = Quoter.num_requests % 4
        if kind == 0:
            self._reply(400, {"error": {"message": f"cannot handle {prompt}", "type": "bad", "code": prompt}})
        elif kind == 1:
            self._reply(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": prompt})
        else:
            message = {"role": "assistant", "content": f"原文是{prompt}"}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            self._reply(200, body)

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def quoter() -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Quoter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray of the run keeps its logs; short, since a socket's path may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def write_job(folder: Path, engine: dict[str, Any], dedup: str = "off") -> None:
    num_rows = 60
    table = pa.table(
        {
            "post_id": [str(n) for n in range(num_rows)],
            "text": [f"{TEXT} {AUTHOR} 第{n}条" for n in range(num_rows)],
            "source": [KEPT] * num_rows,
        }
    )
    pq.write_table(table, folder / "posts.parquet")
    job = {
        "input": {"uri": "posts.parquet", "keep_columns": ["source"]},
        "output": {"uri": "out"},
        "tasks": ["suicide_risk"],
        "engine": engine,
        "dedup": dedup,
        "shard_rows": 5,
        "max_error_rate": 0.5,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))


def write_train_job(folder: Path, **changes: Any) -> None:
    """200 steps, validated twice."""
    job: dict[str, Any] = {
        "output": {"uri": "out"},
        "model": {"path": str(write_model(folder / "model"))},
        "stages": {"s1": {"train": [{"uri": str(write_records(folder / "records.jsonl", 60))}], "num_epochs": 40}},
        "dtype": "float32",
        "batch_size": 12,
        "checkpoints": {"every_steps": 5},
        "selection": {"engine": {"kind": "echo"}, "every_steps": 100},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job | changes))


def start(folder: Path, ray_folder: Path, job: str = "score", **variables: str) -> psutil.Popen:
    environment = {**os.environ, "RAY_TMPDIR": str(ray_folder), **variables}
    environment |= {"AWS_SECRET_ACCESS_KEY": SECRET, "OPENAI_API_KEY": SECRET}
    return psutil.Popen(
        [MENTALGLM, job, "job.yaml"],
        cwd=folder,
        env=environment,
        stdout=(folder / "stdout").open("wb"),
        stderr=(folder / "stderr").open("wb"),
    )


def found(*folders: Path) -> list[str]:
    """`file: canary` for each canary in each file, but for kept columns in the data and the text in the input, which
    the validation posts of an unfinished stage are too."""
    hits = []
    num_files = 0
    for folder in folders:
        for path in folder.rglob("*"):
            if not path.is_file() or path.name in INPUTS:
                continue
            content = path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                content = repr([table[name].to_pylist() for name in table.column_names if name != "source"]).encode()
                content += repr(table.schema.metadata).encode()
            num_files += 1
            hits += [f"{path.name}: {each}" for each in CANARIES if each.encode() in content]
    assert num_files > 10
    return hits


def test_a_run_that_fails_says_nothing_about_its_posts(quoter: str, tmp_path: Path, ray_folder: Path) -> None:
    write_job(tmp_path, {"kind": "openai", "base_url": quoter, "model": "m", "max_retries": 0})
    process = start(tmp_path, ray_folder)
    assert process.wait(200) == 4, (tmp_path / "stderr").read_text()
    assert list((tmp_path / "out" / "errors").glob("*.parquet"))
    assert found(tmp_path, ray_folder) == []


def test_a_run_whose_processes_are_killed_says_nothing_about_its_posts(tmp_path: Path, ray_folder: Path) -> None:
    write_job(tmp_path, {"kind": "echo", "delay_s": 0.5})
    process = start(tmp_path, ray_folder)
    commits = tmp_path / "out" / "_run" / "commits"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (commits.is_dir() and len(list(commits.iterdir())) >= 2):
        time.sleep(0.1)
    [worker] = [child for child in process.children(recursive=True) if "MapWorker" in " ".join(child.cmdline())]
    worker.send_signal(signal.SIGABRT)  # which dumps the stacks of its threads into Ray's logs
    assert process.wait(200) == 0, (tmp_path / "stderr").read_text()
    # The echo engine's explanation is made of the text; that is a result, and results are what data/ is for.
    assert not [hit for hit in found(tmp_path, ray_folder) if not hit.startswith("part-")]


def test_a_defect_says_nothing_about_the_posts(tmp_path: Path, ray_folder: Path) -> None:
    write_job(tmp_path, {"kind": "echo"}, dedup="corpus")
    # A file that is replaced after it was planned: the reader of a worker meets bytes that it did not expect.
    process = start(tmp_path, ray_folder)
    leases = tmp_path / "out" / "_run" / "leases"  # taken when the driver has seen that the input is as planned
    while process.is_running() and not list(leases.glob("*.json")):
        time.sleep(0.01)
    (tmp_path / "posts.parquet").write_bytes(TEXT.encode() * 1000)
    assert process.wait(200) in (0, 3), (tmp_path / "stderr").read_text()
    assert not [hit for hit in found(tmp_path, ray_folder) if not hit.startswith("part-")]


DEFECT = """\
import mentalglm.corpus.reader

def normalise(text):
    raise ValueError(f"cannot convert {text}")

mentalglm.corpus.reader.normalise = normalise
"""


def test_a_defect_in_the_search_for_equal_texts_says_nothing_about_them(tmp_path: Path, ray_folder: Path) -> None:
    write_job(tmp_path, {"kind": "echo"}, dedup="corpus")
    (tmp_path / "sitecustomize.py").write_text(DEFECT)  # of every process of the run
    process = start(tmp_path, ray_folder, PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    assert process.wait(200) == 1
    said = (tmp_path / "stderr").read_text()
    assert "error: internal error: ValueError at " in said
    assert "Traceback" not in said
    assert found(tmp_path, ray_folder) == []


def test_a_loss_that_is_not_finite_says_nothing_about_the_records(tmp_path: Path, ray_folder: Path) -> None:
    optimizer = {"learning_rate": 1e30, "max_grad_norm": 1e30, "schedule": "constant", "warmup_ratio": 0}
    write_train_job(tmp_path, optimizer=optimizer)
    process = start(tmp_path, ray_folder, "train")
    assert process.wait(300) == 3
    assert "is not finite at step" in (tmp_path / "stderr").read_text()
    assert found(tmp_path, ray_folder) == []


def test_workers_that_die_and_validations_that_fail_say_nothing_about_the_records(
    tmp_path: Path, ray_folder: Path
) -> None:
    write_train_job(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(DEFECT)  # met by the engines that validate
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = start(tmp_path, ray_folder, "train", PYTHONPATH=path)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (tmp_path / "out/s1/metrics.jsonl").exists():
        time.sleep(0.02)
    [worker] = [each for each in process.children(recursive=True) if "RayTrainWorker" in " ".join(each.cmdline())]
    worker.send_signal(signal.SIGABRT)  # which dumps the stacks of its threads into Ray's logs
    assert process.wait(400) == 75
    said = (tmp_path / "stderr").read_text()
    assert "stages.s1: no checkpoint could be validated (internal error: ValueError at " in said
    assert (tmp_path / "out/s1/_run/validation/records.parquet").exists()
    assert "SIGABRT" in "".join(path.read_text(errors="replace") for path in ray_folder.rglob("worker-*.err"))
    assert found(tmp_path, ray_folder) == []


def test_the_canaries_would_be_found(tmp_path: Path) -> None:
    for n in range(11):
        (tmp_path / str(n)).write_text("")
    (tmp_path / "log").write_text(f"error: {TEXT}")
    pq.write_table(pa.table({"reason": [SECRET], "source": [KEPT]}), tmp_path / "part-0.parquet")
    assert sorted(found(tmp_path)) == [f"log: {TEXT}", f"part-0.parquet: {SECRET}"]
