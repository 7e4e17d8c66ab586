"""Rows per second of the score job, of bare vLLM, and of ray.data.llm, on the same token ids with the same settings.

Contestants take turns, each in a process of its own, so that a noisy machine is noisy to all. The rate is that of the
steady state: rows between 10 % and 90 % over the time between them, which leaves out loading and the tail. Start-up and
whole wall time stand beside it.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mentalglm.config import BenchConfig, ScoreConfig, VllmEngineConfig, validate
from mentalglm.corpus import ShardReader, plan_corpus
from mentalglm.engine.merge import merged
from mentalglm.engine.model import resolve_model
from mentalglm.engine.vllm import engine_arguments, generate_all, set_environment
from mentalglm.errors import ConfigError
from mentalglm.manifest import code_version
from mentalglm.tasks import load_task, render_prompt

# Greedy, log-probabilities of the sampled tokens, no text: what the job asks for, no more and no less.
_SAMPLING = {"temperature": 0.0, "logprobs": 0, "detokenize": False}


def bench(config: BenchConfig) -> dict[str, Any]:
    """Runs every contestant `num_repeats` times, in turns. Returns (and writes to `bench.json`) for each the runs
    {rows_per_s, num_rows, wall_s, start_s} and the median rate, and the job's rate over each other's, per repeat."""
    if not isinstance(config.score.engine, VllmEngineConfig):
        raise ConfigError(f"score.engine.kind = {config.score.engine.kind}: bench times the vllm engine; use vllm")
    folder = Path(config.output)
    # As many threads as Ray gives an engine, also where there is no Ray: vLLM's CPU build is faster with one of two
    # cores than with both, and the comparison should not be won by that.
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, int(config.score.engine.num_cpus)))}
    runs: dict[str, list[dict[str, float]]] = {str(name): [] for name in config.contestants}
    for repeat in range(config.num_repeats):
        for name in runs:
            place = folder / f"{name}-{repeat}-{int(time.time())}"
            place.mkdir(parents=True)
            (place / "score.json").write_text(config.score.model_dump_json())
            command = [sys.executable, "-m", "mentalglm.scoring.bench", name, str(place)]
            with (place / "log").open("w") as log:
                result = subprocess.run(command, stdout=log, stderr=log, check=False, env=environment)  # noqa: S603
            if result.returncode != 0:
                raise ConfigError(f"contestants: {name} failed; {place}/log has the cause")
            runs[name].append(_rate(json.loads((place / "times.json").read_text())))
    report: dict[str, Any] = {
        name: {"rows_per_s": statistics.median(run["rows_per_s"] for run in each), "runs": each}
        for name, each in runs.items()
    }
    if "job" in runs:
        for name in sorted(runs.keys() - {"job"}):
            pairs = zip(runs["job"], runs[name], strict=True)
            ratios = [ours["rows_per_s"] / theirs["rows_per_s"] for ours, theirs in pairs]
            report[f"job/{name}"] = {"median": statistics.median(ratios), "each": ratios}
    report["where"] = {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "num_cpus": os.cpu_count()}
    report["where"] |= {"versions": code_version()}
    (folder / "bench.json").write_text(json.dumps(report, indent=2))
    return report


def _rate(times: dict[str, Any]) -> dict[str, float]:
    """`times`: finish times in s, one entry (time, rows) for what came in at once, and the process' wall and CPU."""
    done, entries = 0, []
    for at, rows in sorted(times["finished"]):
        done += rows
        entries.append((at, done))
    low = next(entry for entry in entries if entry[1] >= 0.1 * done)
    high = next(entry for entry in entries if entry[1] >= 0.9 * done)
    return {
        "rows_per_s": (high[1] - low[1]) / (high[0] - low[0]),
        "num_rows": done,
        "wall_s": times["wall_s"],
        "start_s": entries[0][0] - times["started"],
    }


def _run_job(config: ScoreConfig, folder: Path) -> list[tuple[float, int]]:
    """The score job; a shard's rows are in when its commit is."""
    from mentalglm.scoring import score
    from mentalglm.scoring.ledger import Ledger

    settings = config.model_copy(update={"output": config.output.model_copy(update={"uri": str(folder / "scored")})})
    score(settings)
    commits = folder / "scored" / "_run" / "commits"
    return [
        ((commits / f"{commit.shard:08d}.json").stat().st_mtime, commit.num_predictions)
        for commit in Ledger(str(folder / "scored")).read_commits()
    ]


def _run_bare(config: ScoreConfig, _: Path) -> list[tuple[float, int]]:
    """AsyncLLM alone: every request queued beforehand, final outputs only."""
    finished = generate_all(_engine_arguments(config), _prompts(config), config.generation.max_tokens, _SAMPLING)
    return [(at, 1) for at in finished]


def _run_ray_data_llm(config: ScoreConfig, _: Path) -> list[tuple[float, int]]:
    """The engine stage of ray.data.llm alone: token ids in, its other stages off."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    prompts = _prompts(config)
    arguments = _engine_arguments(config)
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
        preprocess=lambda row: {
            "prompt": "",
            "tokenized_prompt": row["ids"],
            "sampling_params": {**_SAMPLING, "max_tokens": config.generation.max_tokens},
        },
        postprocess=lambda row: {"at": time.time()},
    )
    # Rows are timed when their block is done: blocks of 64, or all would seem to come in at the end.
    num_blocks = max(1, len(prompts) // 64)
    rows = processor(ray.data.from_items([{"ids": ids} for ids in prompts], override_num_blocks=num_blocks)).take_all()
    return [(row["at"], 1) for row in rows]


def _engine_arguments(config: ScoreConfig) -> dict[str, Any]:
    assert isinstance(config.engine, VllmEngineConfig)
    num_gpus = config.engine.num_gpus or 0
    set_environment(num_gpus)
    return engine_arguments(config.engine, config.generation, merged(resolve_model(config.model)), num_gpus=num_gpus)


def _prompts(config: ScoreConfig) -> list[list[int]]:
    """Token ids of every prompt that the job asks, in its order."""
    from transformers import AutoTokenizer

    from mentalglm.engine.chat import ChatEncoder

    plan = plan_corpus(config.input, config.shard_rows)
    reader = ShardReader(config.input, plan)
    tasks = [load_task(name) for name in config.tasks]
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(config.model).path)
    encoder = ChatEncoder(tokenizer, max_prompt_tokens=config.generation.max_prompt_tokens)
    texts = [text for shard in range(plan.num_shards) for text in reader.read(plan.shard(shard)).texts if text]
    encoded = encoder.encode([render_prompt(task, text) for text in texts for task in tasks])
    return [prompt.token_ids for prompt in encoded if prompt is not None]


_CONTESTANTS = {"job": _run_job, "bare": _run_bare, "ray_data_llm": _run_ray_data_llm}


def _main(name: str, folder: Path) -> None:
    config = validate(ScoreConfig, json.loads((folder / "score.json").read_text()), "score.json")
    started = time.time()
    finished = _CONTESTANTS[name](config, folder)
    record = {"finished": finished, "started": started, "wall_s": time.time() - started}
    (folder / "times.json").write_text(json.dumps(record))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
