"""An adapter in the weights: PEFT's own answers, made once, also when many ask at once or one dies over it."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mentalglm import storage
from mentalglm.config import ModelConfig
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.engine import merge
from mentalglm.engine.adapter import Adapter
from mentalglm.engine.merge import merged
from mentalglm.engine.model import DEMO_MODEL, ResolvedModel, resolve_model
from mentalglm.errors import ConfigError
from mentalglm.tasks import load_task, parse_answer
from mentalglm.training import merged_model
from mentalglm.training.demo.evaluate import generate, load
from mentalglm.training.merged_model import export_merged
from tests.adapters import save_adapter

TASK = load_task("cognitive_distortion")
TEXTS = [post.text for post in generate_posts(16, seed=5)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MENTALGLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "merged"


# What vLLM loads beside the weights, and what only PEFT can.
@pytest.mark.parametrize("settings", [{"use_rslora": True, "alpha_pattern": {"v_proj": 3}}, {"use_dora": True}])
def test_a_merged_model_answers_as_peft_does(tmp_path: Path, cache: Path, settings: dict[str, Any]) -> None:
    peft = save_adapter(tmp_path / "a", seed=6, std=0.15, **settings)
    model = merged(resolve_model(ModelConfig(adapter=str(tmp_path / "a"), merge=True)))
    assert model.adapters == {None: None}
    tokenizer, whole = load(Path(model.path))
    _, base = load(DEMO_MODEL)
    answers = [
        [parse_answer(TASK, answer) for answer in generate(tokenizer, each.float(), TASK, TEXTS, max_tokens=60)]
        for each in (whole, peft, base)
    ]
    labels = [[(answer.status, answer.labels) for answer in each] for each in answers]
    assert labels[0] == labels[1] != labels[2]
    # In float32, and rounded once.
    weights = load_file(next(Path(model.path).glob("*.safetensors")))
    exact = peft.merge_and_unload().state_dict()
    for name, weight in weights.items():
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight, exact[name].bfloat16(), rtol=0, atol=0)
    assert {path.name for path in DEMO_MODEL.iterdir()} - {path.name for path in Path(model.path).iterdir()} == set()
    # The second time it is there.
    before = Path(model.path).stat().st_mtime_ns
    assert merged(resolve_model(ModelConfig(adapter=str(tmp_path / "a"), merge=True))) == model
    assert Path(model.path).stat().st_mtime_ns == before
    assert {path.suffix for path in cache.iterdir()} == {"", ".lock"}


def _merge_slowly(model: ResolvedModel, started: Any, number: Any) -> None:
    make = merge.merge_adapter

    def slowly(*arguments: Any) -> None:
        with number.get_lock():
            number.value += 1
        make(*arguments)
        started.set()
        time.sleep(1.0 if number.value > 1 else 600)  # whoever is first never gets to the rename

    merge.merge_adapter = slowly
    merged(model)


def test_many_engines_merge_once_and_one_that_dies_over_it_leaves_it_to_the_next(tmp_path: Path, cache: Path) -> None:
    save_adapter(tmp_path / "a", seed=6)
    model = resolve_model(ModelConfig(adapter=str(tmp_path / "a"), merge=True))
    context = multiprocessing.get_context("spawn")
    started, number = context.Event(), context.Value("i", 0)
    processes = [context.Process(target=_merge_slowly, args=(model, started, number)) for _ in range(3)]
    processes[0].start()
    assert started.wait(300)
    for process in processes[1:]:
        process.start()
    assert not any(path.is_dir() and not path.suffix for path in cache.iterdir())
    assert processes[0].pid is not None
    os.kill(processes[0].pid, signal.SIGKILL)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    assert number.value == 2
    assert Path(merged(model).path).is_dir()


def test_what_cannot_be_merged_is_one_line(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_adapter(tmp_path / "a", seed=6)
    model = resolve_model(ModelConfig(adapter=str(tmp_path / "a"), merge=True))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model\.merge: demo and its adapter cannot be merged") as caught:
        merged(model)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MENTALGLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot hold the model .*MENTALGLM_CACHE"):
        merged(model)


def test_a_merged_model_is_given_out_when_it_answers_as_the_adapter_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = save_adapter(tmp_path / "a", seed=6, std=0.15, use_rslora=True)
    model = resolve_model(ModelConfig(adapter=str(tmp_path / "a"), merge=True))
    check = export_merged(model, tmp_path / "merged")
    # 8 bits of a weight: 0.1 % of the logits here.
    assert check.dtype == "bfloat16"
    assert 0 < check.error < 0.005 < 0.1 < check.effect
    assert len(check.describe()) == 1
    exact = peft.merge_and_unload().state_dict()
    for name, weight in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(weight, exact[name].bfloat16(), rtol=0, atol=0)

    def forget(model: ResolvedModel, adapter: Adapter, target: Path) -> None:
        shutil.copytree(model.path, target, dirs_exist_ok=True)

    monkeypatch.setattr(merged_model, "merge_adapter", forget)
    with pytest.raises(ConfigError, match=r"logits differ by 0\.\d+ of their size from the adapter's own") as caught:
        export_merged(model, tmp_path / "other")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "merged"}


def test_an_adapter_that_rounding_drowns_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_adapter(tmp_path / "a", seed=6, std=0.0003)
    capfd.readouterr()
    check = export_merged(resolve_model(ModelConfig(adapter=str(tmp_path / "a"), merge=True)), tmp_path / "merged")
    assert check.effect < 2 * check.error
    assert "use it beside the model" in check.describe()[1]
    assert capfd.readouterr().err == "", "transformers' bars"


def test_a_model_and_an_adapter_on_s3_are_fetched_once(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tmp_path / "a", seed=6)
    for name, folder in (("model", DEMO_MODEL), ("a", tmp_path / "a")):
        for path in folder.iterdir():
            storage.put_file_if_absent(f"{s3}/{name}/{path.name}", path)
    storage.put(f"{s3}/a/optimizer.pt", b"not needed")
    monkeypatch.setenv("MENTALGLM_CACHE", str(tmp_path / "cache"))
    config = ModelConfig(path=f"{s3}/model", adapter=f"{s3}/a")
    here = resolve_model(ModelConfig(adapter=str(tmp_path / "a")))
    there = resolve_model(config)
    assert (there.digest, there.adapter_digests) == (here.digest, here.adapter_digests)
    adapter = there.adapters[None]
    assert adapter is not None
    assert sorted(path.name for path in Path(adapter.path).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert resolve_model(config) == there
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == before
    save_adapter(tmp_path / "b", seed=7)
    storage.put(f"{s3}/a/adapter_model.safetensors", (tmp_path / "b" / "adapter_model.safetensors").read_bytes())
    assert resolve_model(config).adapter_digests != there.adapter_digests, "of the same size, and another"
    with pytest.raises(ConfigError, match=r"model.adapter = 's3://.*/none': holds no model"):
        resolve_model(ModelConfig(adapter=f"{s3}/none"))
