"""Configs: every shipped file loads, every mistake is one line that names key, value and fix."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from mentalglm.cli.tasks import JOBS
from mentalglm.config import ScoreConfig, load_config, load_yaml
from mentalglm.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
MINIMAL = {"input": {"uri": "posts.parquet"}, "output": {"uri": "out"}, "tasks": ["suicide_risk"]}


def write(folder: Path, data: object) -> Path:
    path = folder / "job.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((REPOSITORY / "configs").glob("*/*.yaml")) if "variants" not in load_yaml(path)],
    ids=lambda path: path.name,
)
def test_every_shipped_config_loads_and_fits_the_schema_of_its_job(path: Path) -> None:
    """Those with variants: test_paper_configs.py."""
    model = JOBS[path.parent.name]
    load_config(model, path)
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), model.model_json_schema())


def test_the_minimal_config_is_three_keys(tmp_path: Path) -> None:
    config = load_config(ScoreConfig, write(tmp_path, MINIMAL))
    assert config.engine.kind == "vllm"
    assert (config.model.path, config.shard_rows, config.max_error_rate) == ("demo", 2048, 0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": []}, ["tasks", "[]"]),
        ({"tasks": ["a", "a"]}, ["tasks", "twice"]),
        ({"speed": 3}, ["speed", "unknown key"]),
        ({"explain": "some"}, ["explain", "some", "uncertain"]),
        ({"cascade": {"sample": {"low_risk": 2}}}, ["cascade.sample", "low_risk", "1"]),
        ({"dedup": "all"}, ["dedup", "all", "corpus"]),
        ({"label_scores": "on"}, ["label_scores", "on", "forced"]),
        (
            {
                "label_scores": "forced",
                "engine": {"kind": "openai", "base_url": "https://host/v1", "model": "m"},
            },
            ["label_scores = forced", "endpoint", "vllm"],
        ),
        ({"order": "random"}, ["order", "random", "smallest_last"]),
        ({"max_error_rate": 2}, ["max_error_rate", "2"]),
        ({"engine": {"kind": "magic"}}, ["engine", "magic"]),
        ({"engine": {"kind": "echo", "num_gpus": 1}}, ["engine.echo.num_gpus", "unknown key"]),
        ({"output": {"uri": "out", "partition_by": ["date"]}}, ["output.partition_by", "date"]),
        ({"input": {"uri": "a", "id_column": "text"}}, ["input", "two columns"]),
        ({"input": {"uri": "a", "keep_columns": ["text"]}}, ["keep_columns", "keep_text"]),
        ({"input": {}}, ["input.uri"]),
        ({"shard_rows": "many"}, ["shard_rows", "many"]),
        ({"input": {"uri": "crawl"}, "output": {"uri": "./crawl/../crawl/out/"}}, ["output.uri", "beside"]),
        ({"input": {"uri": "s3://b/crawl/x"}, "output": {"uri": "s3://b/crawl"}}, ["output.uri", "beside"]),
        ({"output": {"uri": "/"}}, ["output.uri", "names no folder"]),
        ({"output": {"uri": "s3://"}}, ["output.uri", "names no folder"]),
        ({"engine": {"engine_args": {"trust_remote_code": True}}}, ["engine_args", "trust_remote_code"]),
        ({"engine": {"kind": "openai", "base_url": "host/v1", "model": "m"}}, ["base_url", "https://"]),
        ({"model": {"adapter": "a", "adapters": {"S1": "b"}}}, ["model", "both"]),
        ({"engine": {"engine_args": {"quantization": "fp8"}}}, ["engine_args", "quantization"]),
        ({"model": {"merge": True}}, ["model", "merge"]),
        ({"model": {"merge": True, "adapters": {"S1": "b"}}}, ["model", "merge"]),
        ({"model": {"adapters": {"S1": "a", "s1": "b"}}}, ["model", "case"]),
        ({"model": {"adapters": {"../S1": "a"}}}, ["model.adapters", "../S1"]),
        ({"model": {"adapters": {"2": "a"}}}, ["model.adapters", "2", "a letter first"]),
        (
            {
                "model": {"adapters": {"S1": "a"}},
                "engine": {"kind": "openai", "base_url": "https://host/v1", "model": "m"},
            },
            ["model.adapters", "endpoint"],
        ),
    ],
)
def test_a_mistake_is_one_line_with_key_and_value(tmp_path: Path, change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ScoreConfig, write(tmp_path, MINIMAL | change))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("url", ["http://user:SECRET@host/v1", "http://host/v1?key=SECRET", "host/SECRET"])
def test_a_secret_in_an_address_is_refused_without_being_quoted(tmp_path: Path, url: str) -> None:
    engine = {"kind": "openai", "base_url": url, "model": "m"}
    with pytest.raises(ConfigError, match="base_url") as caught:
        load_config(ScoreConfig, write(tmp_path, MINIMAL | {"engine": engine}))
    assert "SECRET" not in str(caught.value)


def test_off_without_quotes_is_the_word_off(tmp_path: Path) -> None:
    config = load_config(ScoreConfig, write(tmp_path, yaml.safe_dump(MINIMAL) + "dedup: off\nlabel_scores: off\n"))
    assert (config.dedup, config.label_scores) == ("off", "off")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "a: 1\na: 2",
        "a: [1",
        "- 1",
        "a: 2001-99-99",
        "[" * 3000,
        "? [1]\n: 2",
    ],
)
def test_yaml_that_is_unsafe_or_broken_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(ScoreConfig, write(tmp_path, text))


def test_overrides_are_yaml_and_reach_nested_keys(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    config = load_config(ScoreConfig, path, ["engine.kind=echo", "input.keep_columns=[a, b]", "shard_rows=7"])
    assert (config.engine.kind, config.input.keep_columns, config.shard_rows) == ("echo", ["a", "b"], 7)
    with pytest.raises(ConfigError, match="key=value"):
        load_config(ScoreConfig, path, ["shard_rows"])
    with pytest.raises(ConfigError, match="not a section"):
        load_config(ScoreConfig, path, ["tasks.a=1"])


def test_variants_that_say_the_same_key_exclude_each_other(tmp_path: Path) -> None:
    variants = {
        "echo": {"engine": {"kind": "echo"}, "tasks": ["suicide_risk"]},
        "vllm": {"engine": {"kind": "vllm"}},
        "whole": {"engine": None},
        "near": {"input": {"id_column": "id"}},
    }
    path = write(tmp_path, MINIMAL | {"variants": variants})
    assert load_config(ScoreConfig, f"{path}#near/echo").input.id_column == "id"
    for names in ("echo/vllm", "whole/vllm", "vllm/whole"):
        with pytest.raises(ConfigError, match=r"the variants '\w+' and '\w+' both set engine[.a-z]*; name one"):
            load_config(ScoreConfig, f"{path}#{names}")


@pytest.mark.parametrize(
    ("host", "is_near"),
    [
        ("localhost:8000", True),
        ("127.0.0.1", True),
        ("[::1]:8000", True),
        ("10.1.2.3", True),
        ("vllm", True),
        ("vllm.internal", True),
        ("api.openai.com", False),
        ("8.8.8.8", False),
        ("134744072", False),
        ("0x08080808", False),
        ("internal.example.com", False),
    ],
)
def test_posts_that_may_not_leave_the_cluster_go_to_no_endpoint_elsewhere(host: str, is_near: bool) -> None:
    engine = {"kind": "openai", "base_url": f"http://{host}/v1", "model": "m"}
    data = MINIMAL | {"engine": engine, "input": {**MINIMAL["input"], "local_only": True}}
    if is_near:
        ScoreConfig.model_validate(data)
    else:
        with pytest.raises(ValidationError, match=r"input\.local_only = true: these posts may not leave the cluster"):
            ScoreConfig.model_validate(data)
    ScoreConfig.model_validate(MINIMAL | {"engine": engine})


def test_a_variant_says_more_and_has_the_last_word(tmp_path: Path) -> None:
    data = MINIMAL | {
        "output": {"uri": "out/{variant}", "keep_text": True},
        "variants": {
            "echo": {"engine": {"kind": "echo"}, "model": {"path": "{variant}"}},
            "two": {"input": {"id_column": "id"}, "tasks": ["cognitive_distortion"]},
            "bad": {"engine": {"kind": "magic"}},
        },
    }
    path = write(tmp_path, data)
    found = load_config(ScoreConfig, f"{path}#echo/two", ["shard_rows=7"])
    assert (found.input.uri, found.input.id_column, found.tasks) == ("posts.parquet", "id", ["cognitive_distortion"])
    assert (found.output.uri, found.output.keep_text, found.model.path) == ("out/echo/two", True, "echo/two")
    assert (found.engine.kind, found.shard_rows) == ("echo", 7)
    for name, words in {
        str(path): "is several configs in one; name one",
        f"{path}#three": "has no variant 'three'; use bad, echo, two",
        f"{path}#echo/": "has no variant ''",
        f"{path}#bad": "magic",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_config(ScoreConfig, name)
    assert load_config(ScoreConfig, f"{path}#echo", ["output.uri=mine/{variant}"]).output.uri == "mine/echo"
    folder = tmp_path / "a.yaml#b"
    folder.mkdir()
    assert load_config(ScoreConfig, write(folder, MINIMAL)).shard_rows == 2048  # a mark in a folder's name is none
    with pytest.raises(ConfigError, match="variants: write"):
        load_config(ScoreConfig, write(tmp_path, MINIMAL | {"variants": ["echo"]}))


def test_config_and_tasks_import_nothing_heavy() -> None:
    code = (
        "import sys, json, mentalglm.config, mentalglm.tasks, mentalglm.cli;"
        "print(json.dumps([m for m in ('ray','torch','vllm','transformers','pyarrow','openai') if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
