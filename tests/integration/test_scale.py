"""A billion rows: planned, resumed, and looked at from elsewhere, in little time and memory.

The corpus is a thousand files whose footers are simulated; plan, records and listings are real ones, on a disk.
Its figures: `pytest -s tests/integration/test_scale.py`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NUM_ROWS = 1_000_000_000

SCALE = """
import json, os, resource, sys, time
from pathlib import Path
from mentalglm import storage
from mentalglm.config import InputConfig
from mentalglm.corpus import parquet, plan, plan_corpus
from mentalglm.corpus.files import ListedFile
from mentalglm.scoring.run.commit import ShardCommit, StagedFile, Totals
from mentalglm.scoring.run.ledger import Ledger
from mentalglm.scoring.run.parts import FinishedPart, Part, PartFile, PartWriter
from mentalglm.scoring.status import read_status
import pyarrow as pa

uri, num_rows = sys.argv[1], int(sys.argv[2])
NUM_FILES, SHARD_ROWS, SHARDS_OF_A_PART, NUM_WAITING = 1000, 2048, 1300, 1000
TASKS = ["suicide_risk", "cognitive_distortion", "cognitive_pathway"]
figures = {}

def timed(name, function):
    started = time.monotonic()
    result = function()
    figures[name] = round(time.monotonic() - started, 1)
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result

schema = pa.schema([("post_id", pa.string()), ("text", pa.string())])
per_file = num_rows // NUM_FILES
groups = tuple([100_000] * (per_file // 100_000))
plan.list_files = lambda config: ("", [ListedFile(f"{n:05d}.parquet", "parquet", 10**8, n) for n in range(NUM_FILES)])
parquet.read_footer = lambda fs, path, size: parquet.ParquetFooter(groups, schema, path)
plan._with_repeated = lambda plan, config, fs, root: plan
planned = timed("plan_s", lambda: plan_corpus(InputConfig(uri=uri), SHARD_ROWS))
assert planned.num_rows == num_rows
ledger = Ledger(uri)
timed("create_s", lambda: ledger.create({"tasks": dict.fromkeys(TASKS, "1")}, planned, {}))

def commit(shard):
    rows = planned.shard(shard).num_rows
    return ShardCommit(
        shard=shard, num_rows=rows, id_hash="0" * 32, engine={"engine": "x"}, seconds=1.0,
        statuses={task: {"ok": rows - 2, "parse_failed": 2} for task in TASKS},
        labels={task: {"low_risk": rows - 2} for task in TASKS},
        files={f"task={task}": StagedFile(num_rows=rows, num_bytes=200_000, sha256="0" * 64) for task in TASKS},
        failed={task: {"parse_failed": [3, 4]} for task in TASKS}, num_prompt_tokens=9, num_output_tokens=9,
    )

done = planned.num_shards - NUM_WAITING
(folder := Path(uri, "_run", "commits")).mkdir()
for shard in range(planned.num_shards - 1):  # all but one are committed
    os.close(os.open(folder / f"{shard:08d}.json", os.O_CREAT))
for shard in range(done, planned.num_shards - 1):
    storage.put(ledger.path("_run", "commits", f"{shard:08d}.json"), commit(shard).model_dump_json().encode())
for number, start in enumerate(range(0, done, SHARDS_OF_A_PART)):
    stop = min(start + SHARDS_OF_A_PART, done)
    files = [PartFile(path=f"data/task={task}/part-{number:05d}.parquet", kind=f"task={task}", num_rows=9, num_bytes=9,
                      id_hash="0" * 32) for task in TASKS]
    rows = int(planned.shard_num_rows[start:stop].sum())
    totals = Totals(num_shards=stop - start, num_rows=rows, statuses={task: {"ok": rows} for task in TASKS})
    finished = FinishedPart(files=files, totals=totals, failed=[(start, stop)])
    for name, record in ((f"{number:05d}.json", Part(shards=[(start, stop)])), (f"{number:05d}.done.json", finished)):
        storage.put(ledger.path("_run", "parts", name), record.model_dump_json().encode())

status = timed("status_s", lambda: read_status(uri))
assert (status.num_committed_shards, status.num_shards) == (planned.num_shards - 1, planned.num_shards)
def resume():
    planned = ledger.read_plan()
    parts = PartWriter(ledger, target_bytes=10**9)
    return parts, parts.missing(planned.num_shards)
parts, missing = timed("resume_s", resume)
assert missing == [planned.num_shards - 1]
assert parts.totals.num_rows == num_rows - planned.shard(missing[0]).num_rows
print(json.dumps(figures | {"num_shards": planned.num_shards}))
"""


@pytest.mark.slow
def test_a_billion_rows_are_planned_and_resumed_in_a_minute_and_two_gigabytes(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCALE, str(tmp_path / "run"), str(NUM_ROWS)], capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    figures = json.loads(result.stdout)
    print(figures)
    assert figures["plan_s"] + figures["create_s"] < 60
    assert figures["resume_s"] < 60
    assert figures["status_s"] < 60
    assert figures["peak_mib"] < 2048
