"""A config for every cell of the paper's tables: they load, and each goes on where the one before it ends."""

from itertools import product
from pathlib import Path

import jsonschema
import pytest

from mentalglm.cli.tasks import JOBS
from mentalglm.config import (
    BaselineConfig,
    EvalConfig,
    OpenAIEngineConfig,
    ScoreConfig,
    TablesConfig,
    TrainConfig,
    load_config,
    load_yaml,
)
from mentalglm.config.base import json_schema, read_config
from mentalglm.errors import ConfigError
from mentalglm.evaluation.paper import load_table

CONFIGS = Path(__file__).parents[2] / "configs"
TABLES = {name: load_table(name) for name in ("table_3", "table_4", "table_5")}
CELLS = sorted({(row, column) for table in TABLES.values() for row, column in product(table.rows, table.columns)})
COLUMNS = {name: column for table in TABLES.values() for name, column in table.columns.items()}


def variants(job: str, file: str = "paper") -> list[str]:
    return list(load_yaml(CONFIGS / job / f"{file}.yaml")["variants"])


def config(job: str, variant: str, file: str = "paper") -> Path:
    path = CONFIGS / job / f"{file}.yaml#{variant}"
    jsonschema.validate(read_config(path), JOBS[job].model_json_schema())
    return path


@pytest.mark.parametrize("job", sorted(JOBS))
def test_an_editor_knows_every_key_of_the_files_that_are_shipped(job: str) -> None:
    schema = json_schema(JOBS[job])
    files = sorted((CONFIGS / job).glob("*.yaml"))
    assert files
    for file in files:
        jsonschema.validate(load_yaml(file), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**load_yaml(files[0]), "variants": {"mine": {"no_such_key": 1}}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, schema)


@pytest.mark.parametrize(("row", "column"), CELLS)
def test_a_cell_is_scored_evaluated_and_put_into_its_table(row: str, column: str) -> None:
    if (row, column) == ("tfidf", "clinical"):
        column = "cp"  # its model is that of the benchmark, by --set model.path
    scored = load_config(ScoreConfig, config("score", f"{row}/{column}"))
    assert scored.tasks == [COLUMNS[column].task]
    if isinstance(scored.engine, OpenAIEngineConfig) and "localhost" not in scored.engine.base_url:
        assert row not in TABLES["table_5"].rows  # clinical texts stay where they are
    evaluated = load_config(EvalConfig, config("eval", f"{row}/{column}"))
    assert (evaluated.predictions, evaluated.task) == (scored.output.uri, scored.tasks[0])
    tables = load_config(TablesConfig, CONFIGS / "tables" / "paper.yaml")
    for name, table in TABLES.items():
        if row in table.rows and column in table.columns:
            pattern = tables.tables[name].evaluations
            assert pattern is not None
            assert pattern.replace("{row}", row).replace("{column}", column) == evaluated.output.uri


def test_clinical_texts_go_to_no_endpoint_of_others() -> None:
    load_config(ScoreConfig, config("score", "baichuan2_chat/clinical"))  # its server is here
    for row in ("gpt_4_fs", "glm_4_plus_zs"):
        with pytest.raises(ConfigError, match=r"input\.local_only = true"):
            load_config(ScoreConfig, CONFIGS / "score" / f"paper.yaml#{row}/clinical")


def test_what_is_scored_has_been_trained() -> None:
    made: set[str] = set()
    for file, folder in (("paper", "adapter"), ("paper-encoders", "model")):
        for variant in variants("train", file):
            trained = load_config(TrainConfig, config("train", variant, file))
            made |= {f"{trained.output.uri}/{stage}/{folder}" for stage in trained.stages}
    for column in ("sos_hl_1k", "socialcd_3k", "cp"):
        made.add(f"{load_config(BaselineConfig, config('baseline', f'tfidf/{column}')).output.uri}/model")
    used: set[str] = set()
    for row, column in CELLS:
        if column != "clinical":
            model = load_config(ScoreConfig, config("score", f"{row}/{column}")).model
            used |= {path for path in (model.path, model.adapter) if path and path.startswith("runs/")}
    assert used <= made
    assert {path for path in made - used if "/glm_4/" not in path} == set()  # its ablations are not in the paper


def test_no_variant_is_there_for_nothing() -> None:
    names = {*(row for row, _ in CELLS), *COLUMNS}
    assert set(variants("score")) == set(variants("eval")) == names


def test_few_shot_differs_from_zero_shot_by_its_examples_alone() -> None:
    for model in ("glm_4_plus", "chatgpt", "gpt_4"):
        zero, few = (load_config(ScoreConfig, config("score", f"{model}_{how}/sos_hl_1k")) for how in ("zs", "fs"))
        assert few.prompt.examples is not None
        assert zero.engine == few.engine
        assert zero.prompt == few.prompt.model_copy(update={"examples": None})
        assert ".test." not in few.prompt.examples.train[0].uri
