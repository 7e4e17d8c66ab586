"""A vLLM engine that is killed or stands still in the middle of a run, that cannot start, and a row that kills it."""

import asyncio
import multiprocessing
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pyarrow.dataset as pads
import pytest
import yaml

from mentalglm.config import GenerationConfig, ModelConfig, VllmEngineConfig
from mentalglm.corpus.synthetic import generate_posts, write_corpus
from mentalglm.engine.chat import EncodedPrompt
from mentalglm.engine.model import resolve_model
from mentalglm.engine.protocol import Completion, Request
from mentalglm.engine.supervisor import BareEngine, SupervisedEngine
from mentalglm.engine.vllm import VllmEngine
from mentalglm.tasks import load_task, render_prompt
from tests.e2e.conftest import BIN, run_in

pytestmark = pytest.mark.timeout(900)

NUM_ROWS = 200
POISON = 77


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    task = load_task("suicide_risk")
    return [
        Request(task=task.name, prompt=render_prompt(task, post.text), markers=tuple(task.markers))
        for post in generate_posts(NUM_ROWS, seed=9)
    ]


def supervise(
    engine_class: type[BareEngine] = VllmEngine, row_timeout_s: float = 600, **settings: object
) -> SupervisedEngine:
    config = VllmEngineConfig(max_num_seqs=64, **settings)  # type: ignore[arg-type]
    start = partial(engine_class, config, GenerationConfig(), resolve_model(ModelConfig()), num_gpus=0)
    return SupervisedEngine(start, row_timeout_s=row_timeout_s, max_restarts=5)


def core() -> psutil.Process:
    """The process of the engine that runs now."""
    [process] = [each for each in multiprocessing.active_children() if each.name == "EngineCore"]
    return psutil.Process(process.pid)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def answers(engine: SupervisedEngine, requests: list[Request], *events: tuple[int, object]) -> list[Completion]:
    """`events`: (after how many answers, what is called then)."""
    found: dict[int, Completion] = {}
    calls = dict(events)
    async for index, completion in engine.complete(requests):
        assert index not in found
        found[index] = completion
        if event := calls.pop(len(found), None):
            event()  # type: ignore[operator]
    return [found[index] for index in range(len(requests))]


def texts(completions: list[Completion]) -> list[tuple[str, str, str | None]]:
    return [(each.text, each.finish_reason, each.error) for each in completions]


@pytest.mark.long
async def test_an_engine_that_is_killed_or_stands_still_costs_no_row(requests: list[Request]) -> None:
    engine = supervise(row_timeout_s=20, engine_args={"distributed_executor_backend": "mp"})
    ended: list[psutil.Process] = []

    def kill_but_for_the_worker() -> None:
        """The core dies, and its worker, stuck, does not notice."""
        ended.extend([core(), *core().children(recursive=True)])
        for worker in ended[1:]:
            worker.suspend()
        ended[0].kill()

    def stop() -> None:
        ended.append(core())
        ended[-1].suspend()

    undisturbed = await answers(engine, requests)
    started = time.monotonic()
    assert {each.finish_reason for each in undisturbed} == {"stop"}
    assert texts(await answers(engine, requests, (30, kill_but_for_the_worker))) == texts(undisturbed)
    assert engine.num_restarts == 1
    assert len(ended) >= 2
    print(f"killed: {time.monotonic() - started:.0f} s")
    started = time.monotonic()
    assert texts(await answers(engine, requests, (30, stop))) == texts(undisturbed)
    assert engine.num_restarts == 2
    print(f"stopped: {time.monotonic() - started:.0f} s")
    assert all(map(is_gone, ended))
    last = core()
    await engine.close()
    assert is_gone(last)


class PoisonedEngine(VllmEngine):
    """An engine that one row kills, whatever runs beside it."""

    async def generate(self, request: Request, encoded: EncodedPrompt) -> Completion:
        answer = asyncio.create_task(super().generate(request, encoded))
        if request.markers == ("poison",):
            await asyncio.sleep(0.05)
            assert not answer.done()
            core().kill()
        return await answer


@pytest.mark.long
async def test_a_row_that_kills_the_engine_is_given_up_alone(requests: list[Request]) -> None:
    engine = supervise(PoisonedEngine)
    undisturbed = await answers(engine, requests)
    started = time.monotonic()
    poisoned = [replace(each, markers=("poison",)) if n == POISON else each for n, each in enumerate(requests)]
    halves = await asyncio.gather(answers(engine, poisoned[:100]), answers(engine, poisoned[100:]))
    found = texts(halves[0] + halves[1])
    assert found[POISON] == ("", "error", "engine_crash")
    assert found[:POISON] + found[POISON + 1 :] == texts(undisturbed[:POISON] + undisturbed[POISON + 1 :])
    print(f"poison: {engine.num_restarts} restarts, {time.monotonic() - started:.0f} s")
    assert engine.num_restarts <= 3
    await engine.close()


@pytest.mark.long
def test_the_job_outlives_its_engine(tmp_path: Path) -> None:
    write_corpus(tmp_path / "posts.parquet", num_posts=300, seed=9)
    job = {
        "input": {"uri": "posts.parquet"},
        "tasks": ["suicide_risk"],
        "engine": {"kind": "vllm", "max_num_seqs": 32},
        "shard_rows": 20,
    }
    tables = []
    for output in ("undisturbed", "disturbed"):
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job | {"output": {"uri": output}}))
        with (tmp_path / f"{output}.terminal").open("w") as terminal:
            command = [str(BIN / "mentalglm"), "score", "job.yaml"]
            run = subprocess.Popen(command, cwd=tmp_path, stdout=terminal, stderr=terminal)
            if output == "disturbed":
                commits = tmp_path / output / "_run" / "commits"
                while run.poll() is None and not (commits.is_dir() and len(list(commits.iterdir())) >= 2):
                    time.sleep(0.05)
                family = psutil.Process(run.pid).children(recursive=True)
                [engine] = [each for each in family if each.name().startswith("VLLM::EngineCor")]
                engine.kill()
                assert len(list(commits.iterdir())) < 10
            assert run.wait(400) == 0, (tmp_path / f"{output}.terminal").read_text()[-3000:]
        table = pads.dataset(tmp_path / output / "data", partitioning="hive").to_table()
        tables.append(table.select(["post_id", "status", "labels", "explanation"]).sort_by("post_id"))
    assert tables[0].num_rows == 300
    assert tables[1].equals(tables[0])


@pytest.mark.slow
def test_an_engine_without_the_memory_it_asks_for_ends_the_job_with_the_cause(tmp_path: Path) -> None:
    write_corpus(tmp_path / "posts.parquet", num_posts=3, seed=9)
    job = {"input": {"uri": "posts.parquet"}, "output": {"uri": "out"}, "tasks": ["suicide_risk"]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    started = time.monotonic()
    result = run_in(tmp_path, "mentalglm", "score", "job.yaml", VLLM_CPU_KVCACHE_SPACE="90000")
    assert time.monotonic() - started < 400  # one start of an engine: half a minute, more where others are at work
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "requested memory for kv (90000.0 GiB)" in line
    assert not (tmp_path / "out" / "data").exists()
