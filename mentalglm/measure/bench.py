"""Rows per second of the score job, of vLLM alone, and of ray.data.llm, on the same prompts with the same settings.

Contestants take turns, each in a process of its own, so that a noisy machine is noisy to all. The rate is that of the
steady state: rows between 10 % and 90 % over the time between them, which leaves out loading and the tail. What the job
loses against vLLM alone over its whole time is told second by second.
"""

import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from mentalglm import storage
from mentalglm.config import BenchConfig, ScoreConfig, VllmEngineConfig, validate
from mentalglm.corpus import ShardReader, plan_corpus
from mentalglm.engine.merge import merged
from mentalglm.engine.model import resolve_model
from mentalglm.engine.protocol import Request
from mentalglm.errors import ConfigError
from mentalglm.manifest import code_version
from mentalglm.scoring.questions import questions_of
from mentalglm.scoring.throughput import steady_rate
from mentalglm.tasks import load_task

_MEMORY_INTERVAL_S = 5.0  # it costs some time of a core


def bench(config: BenchConfig) -> dict[str, Any]:
    """Runs every contestant `num_repeats` times, in turns. Returns, and writes to `bench.json`:

    - each contestant's runs {rows_per_s (steady), num_rows, wall_s, start_s (until the first row), peak_mb (memory of
      all its processes), and of the job its manifest's `throughput`} and the medians
    - `eta_steady`: the job's rate over each other's, by repeat and as median
    - `eta_e2e`: rows over the rate of vLLM alone, over the whole wall time of the job
    - `loss_s`: what the wall time holds beyond that, by what it went into; adds up (see `loss_budget`)

    Raises: ConfigError where the job is none that can be compared, or a contestant fails.
    """
    _check(config)
    folder = Path(config.output)
    runs: dict[str, list[dict[str, Any]]] = {str(name): [] for name in config.contestants}
    for repeat in range(config.num_repeats):
        for name, done in runs.items():
            done.append(_run(config.score, name, folder / f"{name}-{repeat}-{int(time.time())}"))
    report = {
        "contestants": {
            name: {
                "rows_per_s": statistics.median(run["rows_per_s"] for run in each),
                "wall_s": statistics.median(run["wall_s"] for run in each),
                "runs": each,
            }
            for name, each in runs.items()
        },
        **_compare(runs),
        "where": {
            "date": time.strftime("%Y-%m-%d"),
            "machine": platform.machine(),
            "num_cpus": os.cpu_count(),
            "versions": code_version(),
        },
    }
    (folder / "bench.json").write_text(json.dumps(report, indent=2))
    return report


def loss_budget(job: Mapping[str, Any], num_rows: int, bare_rate: float, wall_s: float) -> dict[str, float]:
    """Seconds of the job's wall time by what they went into beyond `num_rows` / `bare_rate`, the time that vLLM alone
    would take; they add up to the difference.

    `job`: its manifest's `throughput`. `process`: before the job began. `cold_start`, `ramp`, `starved`, `recovery`,
    `tail`, `finish`: see `Throughput.report`; means over the engines. `wasted`: tokens that are in no result.
    `slower`: the rest; a full engine was slower beside the job's own processes than alone.
    """
    engine_s = {name: seconds / job["num_engines"] for name, seconds in job["engine_s"].items()}
    busy = engine_s.pop("busy")
    wasted = busy * job.get("wasted_tokens", 0.0)
    return {
        "process": wall_s - job["wall_s"],
        **engine_s,
        "wasted": wasted,
        "slower": busy - wasted - num_rows / bare_rate,
    }


def print_bench(report: Mapping[str, Any], console: Console | None = None) -> None:
    """For a person."""
    console = console or Console()
    table = Table("", "rows/s, steady", "whole process", "first row after", "peak memory")
    for name, each in report["contestants"].items():
        starts, peaks = ([run[key] for run in each["runs"]] for key in ("start_s", "peak_mb"))
        rates = [run["rows_per_s"] for run in each["runs"]]
        spread = f" ({min(rates):.1f} to {max(rates):.1f})" if len(rates) > 1 else ""
        table.add_row(
            name,
            f"{each['rows_per_s']:.1f}{spread}",
            f"{each['wall_s']:.1f} s",
            f"{statistics.median(starts):.1f} s",
            f"{max(peaks):.0f} MB",
        )
    console.print(table)
    for name, ratio in report["eta_steady"].items():
        each = ", ".join(f"{one:.2f}" for one in ratio["each"])
        console.print(f"job / {name}: {ratio['median']:.2f} (each turn: {each})")
    if "loss_s" in report:
        console.print(f"vLLM alone would need {report['eta_e2e']:.0%} of the job's whole time; the rest, in seconds:")
        console.print("  " + " · ".join(f"{name} {seconds:.1f}" for name, seconds in report["loss_s"].items()))
    for run in report["contestants"].get("job", {"runs": []})["runs"][-1:]:
        cpu = run["throughput"]["cpu_ms_per_row"]
        console.print(f"CPU, ms per row, beside the engines: {sum(cpu.values()):.3f}")
        console.print("  " + " · ".join(f"{step} {ms:.3f}" for step, ms in cpu.items()))


def _check(config: BenchConfig) -> None:
    score = config.score
    if not isinstance(score.engine, VllmEngineConfig) and list(config.contestants) != ["job"]:
        raise ConfigError(
            f"score.engine.kind = {score.engine.kind}: only vllm can be compared with others; use it, or "
            "contestants: [job]"
        )
    if len(config.contestants) > 1 and (score.model.adapters or score.model.adapter):
        raise ConfigError(
            "score.model.adapter, adapters: others are timed without; leave them out (or merge it beforehand and name "
            "the merged model), or contestants: [job]"
        )
    asks_once = score.explain in ("all", "none") and score.dedup == "off" and score.label_scores == "off"
    if len(config.contestants) > 1 and not asks_once:
        raise ConfigError(
            f"score.explain = {score.explain}, score.dedup = {score.dedup}, score.label_scores = {score.label_scores}: "
            "others answer every request once; use explain all or none, and dedup and label_scores off, or "
            "contestants: [job]"
        )


def _run(config: ScoreConfig, name: str, place: Path) -> dict[str, Any]:
    """One turn of one contestant. Its files lie in `place`."""
    place.mkdir(parents=True)
    (place / "score.json").write_text(config.model_dump_json())
    # As many threads as Ray gives an engine, also where there is no Ray: vLLM's CPU build is faster with one of two
    # cores than with both, and the comparison should not be won by that.
    threads = int(config.engine.num_cpus) if isinstance(config.engine, VllmEngineConfig) else 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads))}
    environment["RAY_worker_niceness"] = "0"  # 15 by default: Ray's engines would give way to whatever else runs
    command = [sys.executable, "-m", "mentalglm.measure.bench", name, str(place)]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603
        with _peak_memory(process.pid) as peak:
            code = process.wait()
    if code != 0:
        raise ConfigError(f"contestants: {name} failed; {place}/log has the cause")
    times = json.loads((place / "times.json").read_text())
    finished = [(at, rows) for at, rows in times["finished"]]
    rate = steady_rate(iter(finished))
    if rate is None:
        raise ConfigError(
            f"score.shard_rows = {config.shard_rows}: the rows of {name} came in at too few moments to tell a rate; "
            "use smaller shards or more posts"
        )
    return {
        "rows_per_s": rate,
        "num_rows": sum(rows for _, rows in finished),
        "wall_s": times["wall_s"],
        "start_s": min(finished)[0] - times["started"],
        "peak_mb": peak[0] / 1e6,
        **({"throughput": times["throughput"]} if times["throughput"] else {}),
    }


def _compare(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    ratios = {}
    for name in sorted(runs.keys() - {"job"}) if "job" in runs else ():
        each = [ours["rows_per_s"] / theirs["rows_per_s"] for ours, theirs in zip(runs["job"], runs[name], strict=True)]
        ratios[name] = {"median": statistics.median(each), "each": each}
    compared: dict[str, Any] = {"eta_steady": ratios}
    if "bare" in ratios:
        turns = list(zip(runs["job"], runs["bare"], strict=True))
        budgets = [
            loss_budget(ours["throughput"], ours["num_rows"], bare["rows_per_s"], ours["wall_s"])
            for ours, bare in turns
        ]
        compared["eta_e2e"] = statistics.median(
            ours["num_rows"] / bare["rows_per_s"] / ours["wall_s"] for ours, bare in turns
        )
        compared["loss_s"] = {name: statistics.mean(budget[name] for budget in budgets) for name in budgets[0]}
    return compared


@contextmanager
def _peak_memory(pid: int) -> Iterator[list[int]]:
    """[bytes]: the most that the process and its descendants held at once, memory that they share counted once."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(_MEMORY_INTERVAL_S):
            total = 0
            try:
                processes = [process := psutil.Process(pid), *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for each in processes:
                try:
                    summary = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
                except OSError:  # gone, or no Linux
                    continue
                if match := re.search(r"^Pss: *(\d+) kB", summary, re.MULTILINE):
                    total += 1024 * int(match[1])
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


_Finished = list[tuple[float, int]]
"""(time in s since 1970, rows that came in at that time)."""


def _run_job(config: ScoreConfig, folder: Path) -> tuple[_Finished, dict[str, Any] | None]:
    """The score job; a shard's rows are in when its commit is."""
    from mentalglm.scoring import score
    from mentalglm.scoring.run.ledger import Ledger

    settings = config.model_copy(update={"output": config.output.model_copy(update={"uri": str(folder / "scored")})})
    summary = score(settings)
    commits = Ledger(str(folder / "scored")).read_commits()
    return [(commit.finished_at, commit.num_predictions) for commit in commits], summary.throughput


def _run_bare(config: ScoreConfig, *, logprobs: bool = True) -> tuple[_Finished, None]:
    """AsyncLLM alone: every request queued beforehand, final outputs only."""
    from mentalglm.engine.vllm import VllmEngine

    assert isinstance(config.engine, VllmEngineConfig)
    engine = VllmEngine(
        config.engine, config.generation, merged(resolve_model(config.model)), num_gpus=config.engine.num_gpus or 0
    )

    async def ask() -> list[float]:
        try:
            return await engine.time_alone(_requests(config), logprobs=logprobs)
        finally:
            await engine.close()

    return [(at, 1) for at in asyncio.run(ask())], None


def _run_ray_data_llm(config: ScoreConfig) -> tuple[_Finished, None]:
    """The engine stage of ray.data.llm alone: token ids in, its other stages off."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    from transformers import AutoTokenizer

    from mentalglm.engine.chat import ChatEncoder
    from mentalglm.engine.vllm import engine_arguments, set_environment

    assert isinstance(config.engine, VllmEngineConfig)
    set_environment(config.engine.num_gpus or 0)
    model = merged(resolve_model(config.model))
    arguments = engine_arguments(config.engine, config.generation, model, num_gpus=config.engine.num_gpus or 0)
    encoder = ChatEncoder(
        AutoTokenizer.from_pretrained(model.path), max_prompt_tokens=config.generation.max_prompt_tokens
    )
    requests = _requests(config)
    encoded = encoder.encode([request.prompt for request in requests])
    # Greedy, log-probabilities of the sampled tokens, no text.
    sampling = {"temperature": 0.0, "logprobs": 0, "detokenize": False, "max_tokens": config.generation.max_tokens}
    rows = [
        {
            "ids": prompt.token_ids,
            "sampling": sampling | ({"stop": list(request.markers), "detokenize": True} if request.head_only else {}),
        }
        for request, prompt in zip(requests, encoded, strict=True)
        if prompt is not None
    ]
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=arguments.pop("model"),
            engine_kwargs=arguments,
            batch_size=64,
            concurrency=1,
            log_engine_metrics=False,  # its wrapper needs Ray Serve
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            placement_group_config=None if ray.cluster_resources().get("GPU") else {"bundles": [{"CPU": 1}]},
        ),
        preprocess=lambda row: {"prompt": "", "tokenized_prompt": row["ids"], "sampling_params": row["sampling"]},
        postprocess=lambda row: {"at": time.time()},
    )
    # Rows are timed when their block is done: blocks of 64, or all would seem to come in at the end.
    num_blocks = max(1, len(rows) // 64)
    answered = processor(ray.data.from_items(rows, override_num_blocks=num_blocks)).take_all()
    return [(row["at"], 1) for row in answered], None


def _requests(config: ScoreConfig) -> list[Request]:
    """What the job asks first, in its order."""
    from mentalglm.scoring.cascade import Inquiry

    storage.configure(config.s3)
    plan = plan_corpus(config.input, config.shard_rows)
    reader = ShardReader(config.input, plan)
    questions = questions_of(config, [load_task(name) for name in config.tasks])
    texts = [text for shard in range(plan.num_shards) for text in reader.read(plan.shard(shard)).texts if text]
    return [Inquiry(config, question, text, "").request for text in texts for question in questions]


def _main(name: str, folder: Path) -> None:
    config = validate(ScoreConfig, json.loads((folder / "score.json").read_text()), "score.json")
    started = psutil.Process().create_time()
    if name == "job":
        finished, throughput = _run_job(config, folder)
    elif name == "ray_data_llm":
        finished, throughput = _run_ray_data_llm(config)
    else:
        finished, throughput = _run_bare(config, logprobs=name == "bare")
    record = {
        "finished": finished,
        "throughput": throughput,
        "started": started,
        "wall_s": time.time() - started,
    }
    (folder / "times.json").write_text(json.dumps(record))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
