"""Records: read from files, refused where they cannot be learned from, split, encoded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mentalglm.config import RecordsConfig
from mentalglm.corpus.records import Record, Records, mixture, num_shared_texts, read_records, split
from mentalglm.engine.chat import ChatEncoder
from mentalglm.engine.model import DEMO_MODEL
from mentalglm.errors import ConfigError, InputError, UserError
from mentalglm.tasks import Task, load_task, render_answer, render_prompt
from mentalglm.training.models.examples import ExampleEncoder

RISK = load_task("suicide_risk")
ROW = {"task": "suicide_risk", "text": "今天很累", "labels": ["low_risk"], "explanation": "没有计划。"}


def write(folder: Path, *rows: Any) -> str:
    path = folder / "records.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def read(uri: str, **settings: Any) -> Records:
    return read_records([RecordsConfig(uri=uri, **settings)], "stages.s1.train")


def test_jsonl_and_parquet_hold_the_same_records(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"labels": "高自杀风险", "explanation": None}, ROW | {"labels": ["1"], "explanation": ""}]
    records = read(write(tmp_path, *rows)).rows
    assert [(record.id, record.labels, record.explanation) for record in records] == [
        ("0:row 1", ("low_risk",), "没有计划。"),
        ("0:row 2", ("high_risk",), None),
        ("0:row 3", ("high_risk",), None),
    ]
    path = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist([ROW, ROW | {"labels": ["high_risk"]}]), path)
    assert [record.labels for record in read(str(path)).rows] == [("low_risk",), ("high_risk",)]


def test_explanations_that_the_config_names_must_be_there(tmp_path: Path) -> None:
    """A model would be trained without any, and nobody would know."""
    labels_alone = {name: value for name, value in ROW.items() if name != "explanation"}
    uri = write(tmp_path, labels_alone, labels_alone)
    with pytest.raises(InputError, match=r"explanation_column = explantion: none of its 2 rows has it; .* or null"):
        read(uri, explanation_column="explantion")
    for column in ("explanation", None):
        assert [record.explanation for record in read(uri, explanation_column=column).rows] == [None, None]
    some = write(tmp_path, labels_alone, labels_alone | {"e": "没有计划。"})
    assert [record.explanation for record in read(some, explanation_column="e").rows] == [None, "没有计划。"]


OTHER = {"task": "cognitive_distortion", "text": "总是这样", "labels": ["all_or_nothing_thinking"], "explanation": None}


def test_tasks_of_one_file_may_weigh_differently(tmp_path: Path) -> None:
    uri = write(tmp_path, OTHER, ROW, ROW | {"text": "还好"})
    sources = [{"uri": uri, "weight": 0.5}, {"uri": uri, "weight": 0.5, "task_weights": {"suicide_risk": 3}}]
    records = read_records([RecordsConfig.model_validate(source) for source in sources], "train")
    assert [record.part for record in records.rows] == [0, 0, 0, 1, 2, 2]
    assert list(records.weights) == [0.5, 0.5, 1.5]
    for side in split(records, 0.5, 42):
        assert side.weights == records.weights
    with pytest.raises(
        ConfigError, match=r"task_weights: no row has the task risk; name those it has: cognitive_.*, suici"
    ):
        read(uri, task_weights={"risk": 2})


def test_how_files_are_mixed_is_told_as_before_where_tasks_do_not_weigh() -> None:
    plain, weighed = RecordsConfig(uri="a", weight=2), RecordsConfig(uri="b", task_weights={"suicide_risk": 2})
    assert mixture([plain]) == {"weights": [2.0]}
    assert mixture([plain, weighed]) == {"weights": [2.0, 1.0], "task_weights": [{}, {"suicide_risk": 2.0}]}


def test_the_form_of_c_imhi_is_read_by_naming_its_columns(shared_data: Path) -> None:
    """(d, t, q) -> (c, e): labels are read out of the answer c as the parser reads a model's."""
    names = {"sos_hl_1k": "suicide_risk", "socialcd_3k": "cognitive_distortion", "cp": "cognitive_pathway"}
    names |= {"imhi_zh.DR": "imhi_dr_zh", "imhi_zh.SAD": "imhi_sad_zh"}
    columns = {"text_column": "t", "labels_column": "c", "explanation_column": "e", "task_names": names}
    records = read(str(shared_data / "cimhi_format.synthetic.jsonl"), **columns)
    assert set(records.tasks) == set(names.values())
    lines = (shared_data / "cimhi_format.synthetic.jsonl").read_text(encoding="utf-8").splitlines()
    for record, row in zip(records.rows, map(json.loads, lines), strict=True):
        assert render_answer(record.task, record.labels, record.explanation) == row["output"]


@pytest.mark.parametrize(
    ("name", "task"), [("DR", "imhi_dr_en"), ("SAD", "imhi_sad_en"), ("dreaddit", "imhi_dreaddit_en")]
)
def test_every_imhi_record_is_read_by_label_and_by_answer(name: str, task: str, shared_data: Path) -> None:
    source = {
        "uri": str(shared_data / f"imhi.{name}.val.jsonl"),
        "task": task,
        "text_column": "post",
        "id_column": "id",
    }
    by_label, by_answer = read(**source, labels_column="label"), read(**source, labels_column="answer")
    assert [record.labels for record in by_label.rows] == [record.labels for record in by_answer.rows]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["medium_risk"]}, ["row 2", "labels", "low_risk"]),
        ({"labels": []}, ["row 2", "labels", "always has one"]),
        ({"labels": ["low_risk", "high_risk"]}, ["row 2", "2 labels"]),
        ({"text": " \u200b "}, ["row 2", "text is empty"]),
        ({"text": 7}, ["row 2", "text is int"]),
        ({"explanation": 7}, ["row 2", "explanation is int"]),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_named_and_not_quoted(
    change: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as raised:
        read(write(tmp_path, ROW, ROW | change))
    message = str(raised.value)
    assert all(word in message for word in [*words, "stages.s1.train[0]", "1 of 2 rows"]), message
    assert "今天" not in message


def test_an_answer_that_is_not_read_back_as_its_labels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_task` refuses such a task; here it is let through: low risk is answered with the words for high."""
    data = RISK.model_dump()
    data["labels"][0]["answer"] = render_answer(RISK, ["high_risk"], None)
    broken = Task.model_validate(data)
    uri = write(tmp_path, ROW, ROW | {"labels": ["high_risk"]})
    monkeypatch.setattr("mentalglm.corpus.records.load_task", lambda name: broken)
    with pytest.raises(InputError, match=r"1 of 2 rows .* row 2: the answer .* is not read back"):
        read(uri)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["holds no rows"]),
        (["{"], ["line 1", "not JSON"]),
        (["[1]"], ["line 1", "list"]),
        ([{"text": "a"}], ["no column task"]),
        ([ROW | {"id": "a"}, ROW | {"id": "a"}], ["occurs twice"]),
        ([ROW | {"id": ""}], ["row 1", "id is empty"]),
        ([ROW | {"id": "\ud800"}], ["row 1", "id is no text in Unicode"]),
    ],
)
def test_a_file_that_is_no_records_is_one_line(rows: list[Any], words: list[str], tmp_path: Path) -> None:
    uri = write(tmp_path, *rows)
    with pytest.raises(UserError) as raised:
        read(uri, **({"id_column": "id"} if "id" in str(rows) else {}))
    assert all(word in str(raised.value) for word in words), raised.value
    with pytest.raises(InputError, match="no such file"):
        read(str(tmp_path / "absent.jsonl"))


def record(text: str, number: int = 0) -> Record:
    return Record(RISK, text, ("low_risk",), None, f"0:{number}")


@given(st.lists(st.text(min_size=1, max_size=3), min_size=30, max_size=60), st.floats(0.2, 0.8), st.integers(0, 9))
def test_equal_texts_lie_on_one_side_and_stay_there(texts: list[str], fraction: float, seed: int) -> None:
    rows = [record(text, number) for number, text in enumerate(texts)]
    try:
        train, validation = split(Records(rows), fraction, seed)
        fewer = split(Records(rows[::2]), fraction, seed)
    except InputError:
        return
    assert num_shared_texts(train, validation) == 0
    assert len(train.rows) + len(validation.rows) == len(rows)
    assert set(fewer[1].rows) <= set(validation.rows)


def test_a_split_has_about_the_share_that_was_asked_for() -> None:
    rows = [record(f"post {number}") for number in range(4_000)]
    _, validation = split(Records(rows), 0.1, 42)
    assert abs(len(validation.rows) - 400) < 4 * 19  # four standard deviations
    with pytest.raises(InputError, match="name a file of records under validation"):
        split(Records(rows[:1]), 0.1, 42)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO_MODEL, local_files_only=True)


def test_what_is_learned_is_the_answer_and_its_end(tokenizer: Any) -> None:
    rows = [Record(RISK, "今天很累<|user|>", ("high_risk",), "有“计划”。"), Record(RISK, "好", ("low_risk",), None)]
    examples = ExampleEncoder(tokenizer).encode_set(rows, "train")
    prompts = ChatEncoder(tokenizer, max_prompt_tokens=1024).encode([render_prompt(row.task, row.text) for row in rows])
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        example = examples[index]
        assert prompt is not None
        assert example.token_ids[: example.num_prompt_tokens] == prompt.token_ids
        learned = tokenizer.decode(example.token_ids[example.num_prompt_tokens :])
        assert learned == f"\n{render_answer(row.task, row.labels, row.explanation)}<|user|>"
    assert examples.num_learned.tolist() == [
        len(examples[index].token_ids) - examples[index].num_prompt_tokens for index in range(2)
    ]


def test_the_post_is_cut_and_never_the_question_or_the_answer(tokenizer: Any) -> None:
    long = Record(RISK, "我很难过。" * 400, ("low_risk",), "没有计划。")
    examples = ExampleEncoder(tokenizer, max_prompt_tokens=100).encode_set([long], "train")
    example = examples[0]
    assert (example.num_prompt_tokens <= 100, examples.num_truncated) == (True, 1)
    assert render_prompt(RISK, "").after in tokenizer.decode(example.token_ids[: example.num_prompt_tokens])


def test_a_record_without_room_for_its_answer_is_named(tokenizer: Any) -> None:
    rows = [record("短", 1), Record(RISK, "长", ("low_risk",), "很长" * 400, "0:7")]
    with pytest.raises(InputError, match=r"stages.s1.train: 1 of 2 records leave no room .*\(0:7\)"):
        ExampleEncoder(tokenizer, max_tokens=200).encode_set(rows, "stages.s1.train")


def test_a_tokenizer_without_the_user_s_token_ends_answers_with_its_own_end(tokenizer: Any) -> None:
    class Other:
        def __init__(self) -> None:
            self.eos_token_id = 7
            self.backend_tokenizer, self.chat_template = tokenizer.backend_tokenizer, None
            self.all_special_ids: list[int] = []
            self.added_tokens_decoder: dict[int, Any] = {}

        def get_vocab(self) -> dict[str, int]:
            return {}

    examples = ExampleEncoder(Other()).encode([record("好")])
    assert examples[0] is not None
    assert examples[0].token_ids[-1] == 7
    assert np.int32 == ExampleEncoder(Other()).encode_set([record("好")], "train").token_ids.dtype


def test_the_digest_is_of_what_is_learned_and_not_of_the_file(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"labels": ["high_risk"], "other": "今天"}]
    uri = write(tmp_path, *rows)
    pq.write_table(pa.Table.from_pylist([row | {"other": "今天"} for row in rows]), tmp_path / "same.parquet")
    assert read(uri).digest == read(str(tmp_path / "same.parquet")).digest
    changes: list[dict[str, Any]] = [{}, {"explanation_column": None}, {"text_column": "explanation"}]
    assert len({read(uri, **change).digest for change in changes}) == 3
