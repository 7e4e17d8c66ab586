"""A classifier in training: its loss is that of transformers, its folder says what it is, and mistakes are refused."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from mentalglm.config import TrainConfig
from mentalglm.config.base import validate
from mentalglm.corpus.synthetic import generate_posts
from mentalglm.engine.classifier import read_classifier
from mentalglm.engine.model import DEMO_MODEL
from mentalglm.errors import ConfigError
from mentalglm.tasks import Task, load_task
from mentalglm.training.models.encoder_model import EncoderModel
from mentalglm.training.models.labelled_texts import LabelledTexts
from mentalglm.training.models.method import check_tasks, load_learner, outline, record_encoder
from mentalglm.training.plan import plan
from tests.encoders import labelled_texts, record, tiny_bert, tiny_classifier, train_config

RISK, DISTORTION, PATHWAY = map(load_task, ("suicide_risk", "cognitive_distortion", "cognitive_pathway"))
POSTS = list(generate_posts(30, seed=4))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("training") / "bert", max_tokens=64, spread=0.3)


def examples_of(base: Path, task: Task) -> LabelledTexts:
    return labelled_texts(base, task, [record(task, post.text, *post.labels[task.name]) for post in POSTS])


def load(base: Path, examples: LabelledTexts, start: Path | None = None) -> EncoderModel:
    model = load_learner(train_config(base, examples.task), examples, base, start)
    assert isinstance(model, EncoderModel)
    return model.eval()


def loss_of(model: EncoderModel, examples: LabelledTexts, indices: Sequence[int]) -> torch.Tensor:
    loss = model(*model.collate([examples[index] for index in indices]))
    assert isinstance(loss, torch.Tensor)
    return loss


@pytest.mark.parametrize("task", [RISK, DISTORTION, PATHWAY], ids=lambda task: task.name)
def test_the_loss_is_that_of_transformers_summed_over_posts(base: Path, task: Task) -> None:
    examples = examples_of(base, task)
    model = load(base, examples)
    token_ids, mask, targets, _ = model.collate([examples[index] for index in range(len(examples))])
    labels = targets.argmax(-1) if task is RISK else targets
    theirs = model.model(input_ids=token_ids, attention_mask=mask, labels=labels).loss * len(examples)
    ours = loss_of(model, examples, range(len(examples)))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    parts = [loss_of(model, examples, part).item() for part in (range(7), range(7, 8), range(8, len(examples)))]
    assert sum(parts) == pytest.approx(ours.item(), rel=1e-5)
    assert examples.num_learned.sum() == len(examples)


@pytest.mark.parametrize("task", [RISK, DISTORTION], ids=lambda task: task.name)
def test_targets_are_the_labels_in_label_set_order(base: Path, task: Task) -> None:
    examples = examples_of(base, task)
    for index, post in enumerate(POSTS):
        chosen = zip(task.answerable, examples[index].targets, strict=True)
        assert tuple(slug for slug, applies in chosen if applies) == post.labels[task.name]
    model = load(base, examples)
    assert tuple(model.model.config.id2label[number] for number in range(len(task.answerable))) == task.answerable


def test_what_does_not_count_has_a_gradient_of_nothing(base: Path) -> None:
    examples = examples_of(base, DISTORTION)
    model = load(base, examples)
    *inputs, is_learned = model.collate([examples[0], examples[1]])
    is_learned[:] = False
    loss = model(*inputs, is_learned)
    loss.backward()
    assert loss.item() == 0
    assert all(each.grad is not None and not each.grad.any() for each in model.parameters())


def test_a_saved_classifier_is_loaded_by_transformers_and_trained_on(base: Path, tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path / "saved", base, DISTORTION, mask_labels=True, input="explanation")
    settings = json.loads((folder / "config.json").read_text())
    assert settings["id2label"] == {str(number): slug for number, slug in enumerate(DISTORTION.answerable)}
    assert settings["problem_type"] == "multi_label_classification"
    found = read_classifier(folder)
    assert (found.task, found.task_version, found.task_digest) == ("cognitive_distortion", "1", DISTORTION.digest)
    assert (found.input, found.mask_labels, found.max_tokens, found.threshold) == ("explanation", True, 64, 0.5)
    examples = examples_of(base, DISTORTION)
    again = load(base, examples, start=folder)
    alone = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, alone[name]) for name, value in again.model.state_dict().items())


def test_a_new_head_follows_from_the_seed(base: Path) -> None:
    examples = examples_of(base, RISK)
    one, other = (load(base, examples).model.classifier.weight for _ in range(2))
    assert torch.equal(one, other)
    config = train_config(base, RISK).model_copy(update={"seed": 7})
    assert not torch.equal(one, EncoderModel.load(config, examples, base, None).model.classifier.weight)


def test_a_classifier_for_another_task_is_no_start(base: Path, tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path / "other", base, PATHWAY)
    with pytest.raises(ConfigError, match="classifier for cognitive_pathway"):
        load(base, examples_of(base, DISTORTION), start=folder)


def test_a_model_that_reads_padding_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = examples_of(base, DISTORTION)
    model = load(base, examples)
    model.check(examples[0])
    model.check(examples[max(range(len(examples)), key=lambda index: examples.lengths[index])])
    plain = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda input_ids, attention_mask: plain(input_ids=input_ids))
    with pytest.raises(ConfigError, match="reads padding"):
        model.check(examples[0])


def test_long_posts_are_cut_and_counted(base: Path) -> None:
    examples = labelled_texts(base, RISK, [record(RISK, "好累" * 99, "low_risk"), record(RISK, "好", "high_risk")])
    assert (examples.lengths.tolist(), examples.num_truncated) == ([64, 3], 1)


def test_a_language_model_is_refused() -> None:
    config = train_config(DEMO_MODEL, RISK)
    encoder = record_encoder(config, DEMO_MODEL)
    with pytest.raises(ConfigError, match=r"no \[CLS\] token"):
        encoder.encode_set([record(RISK, "好累", "low_risk")], "stages.S1.train")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """For BERT and its kin transformers makes one that knows nothing but special tokens: every character is [UNK]."""
    folder = tiny_bert(tmp_path / "bert")
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(ConfigError, match="its tokenizer knows no words"):
        labelled_texts(folder, RISK, [record(RISK, "好累", "low_risk")])
    (folder / "config.json").write_text('{"model_type": "glm"}')
    with pytest.raises(ConfigError, match=r"its tokenizer or config\.json cannot be read"):
        record_encoder(train_config(folder, RISK), folder)
    (folder / "config.json").write_text('{"model_type": "chatglm"}')
    with pytest.raises(ConfigError, match=r"its tokenizer or config\.json cannot be read"):
        record_encoder(train_config(folder, RISK), folder)


def test_a_stage_has_one_task(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.S1: .* cognitive_distortion, suicide_risk; make a stage for each"):
        check_tasks(train_config(base, RISK), ["suicide_risk", "cognitive_distortion"], "stages.S1")
    check_tasks(train_config(base, RISK), ["suicide_risk"], "stages.S1")


def test_the_outline_has_the_parameters_of_the_model(base: Path) -> None:
    examples = examples_of(base, PATHWAY)
    sketch = outline(train_config(base, PATHWAY), examples, base)
    assert sum(each.numel() for each in sketch.parameters()) == sum(
        each.numel() for each in load(base, examples).parameters()
    )


def test_a_dry_run_reads_explanations_and_tells_of_steps_and_memory(base: Path, tmp_path: Path) -> None:
    rows = [
        {"labels": list(post.labels[RISK.name]), "explanation": f"{post.explanations[RISK.name]}所以是高风险。"}
        for post in POSTS
    ]
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    found = {}
    for masks in (False, True):
        settings = train_config(base, RISK, input="explanation", mask_labels=masks).model_dump(mode="json")
        settings["output"]["uri"] = str(tmp_path / "out")
        settings["stages"]["S1"] |= {"validation_fraction": 0.3}
        settings["stages"]["S1"]["train"][0] |= {"uri": str(records), "text_column": "explanation"}
        [found[masks]] = plan(TrainConfig.model_validate(settings))
    num_records = found[False].counts["num_train_records"]
    assert found[False].timeline.num_steps == 10 * math.ceil(num_records / 16)
    assert found[False].counts["num_answer_tokens"] == 0
    saved = found[False].counts["num_prompt_tokens"] - found[True].counts["num_prompt_tokens"]
    assert saved >= 2 * num_records  # 高风险 is one character now
    assert found[True].num_trained_parameters == found[True].num_parameters > 0


def config(**changes: Any) -> TrainConfig:
    stages = {"S1": {"train": [{"uri": "a"}]}, "S2": {"train": [{"uri": "a"}], "optimizer": {"weight_decay": 0.01}}}
    data = {"output": {"uri": "out"}, "method": "encoder", "stages": stages}
    return validate(TrainConfig, data | changes, "train.yaml")


def test_defaults_are_those_of_the_method_where_nothing_is_said() -> None:
    found = config()
    assert (found.batch_size, found.micro_batch_size, found.max_prompt_tokens, found.dtype) == (16, 16, 512, "float32")
    assert [stage.num_epochs for stage in found.stages.values()] == [10, 10]
    for name, decay in (("S1", 0.0), ("S2", 0.01)):
        optimizer = found.optimizer_of(name)
        assert (optimizer.learning_rate, optimizer.warmup_ratio, optimizer.schedule) == (2e-5, 0.0, "constant")
        assert optimizer.weight_decay == decay
    assert found.selection.engine.kind == "encoder"
    assert TrainConfig.model_validate(found.model_dump(mode="json")) == found
    assert TrainConfig.model_validate(dict(found)) == found
    other = config(method="full")
    assert (other.batch_size, other.stages["S1"].num_epochs, other.optimizer.learning_rate) == (32, 5, 1e-4)


def test_what_is_said_holds() -> None:
    found = config(
        batch_size=8,
        dtype="bfloat16",
        optimizer={"learning_rate": 1e-3},
        selection={"patience": 2, "engine": {"batch_size": 9}},
        stages={"S1": {"train": [{"uri": "a"}], "num_epochs": 3}},
    )
    assert (found.batch_size, found.micro_batch_size, found.dtype) == (8, 8, "bfloat16")
    assert (found.optimizer.learning_rate, found.optimizer.schedule) == (1e-3, "constant")
    assert found.selection.model_dump(include={"patience", "engine"}) == {
        "patience": 2,
        "engine": {
            "kind": "encoder", "num_engines": 1, "num_gpus": None, "num_cpus": 1, "batch_size": 9, "dtype": "float32",
        },
    }  # fmt: skip
    assert found.stages["S1"].num_epochs == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"selection": {"engine": {"kind": "vllm"}}}, "selection.engine.kind = vllm"),
        ({"method": "lora", "selection": {"engine": {"kind": "encoder"}}}, "method: lora; use vllm"),
        ({"workers": {"strategy": "fsdp"}}, "use ddp"),
        ({"stages": 3}, "stages = 3"),
        ({"optimizer": 3}, "optimizer = 3"),
        ({"selection": 3}, "selection = 3"),
        ({"batch_size": "many"}, "batch_size"),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**change)
    assert words in str(caught.value)
