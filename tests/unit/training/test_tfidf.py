"""The baseline: it is scikit-learn's regression, kept as plain numbers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from typer.testing import CliRunner

from mentalglm.cli import app
from mentalglm.config import BaselineConfig, ScoreConfig, load_config
from mentalglm.corpus.synthetic import SyntheticPost, generate_posts
from mentalglm.engine.classifier import check_classifier, read_classifier
from mentalglm.engine.tfidf import TfidfModel
from mentalglm.errors import ConfigError, InputError
from mentalglm.tasks import Task, load_task
from mentalglm.training.tfidf import train_baseline

RISK, DISTORTION, PATHWAY = map(load_task, ("suicide_risk", "cognitive_distortion", "cognitive_pathway"))
POSTS = list(generate_posts(300, seed=4))


def records(path: Path, task: Task, posts: list[SyntheticPost]) -> dict[str, Any]:
    rows = [{"id": post.post_id, "text": post.text, "labels": list(post.labels[task.name])} for post in posts]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"uri": str(path), "task": task.name, "id_column": "id"}


def config(folder: Path, task: Task, posts: list[SyntheticPost] = POSTS, **changes: Any) -> BaselineConfig:
    data = {
        "train": [records(folder / "train.jsonl", task, posts)],
        "output": {"uri": str(folder / "out")},
        "inverse_regularization": [10.0],
    }
    return BaselineConfig.model_validate(data | changes)


@pytest.mark.parametrize("task", [RISK, DISTORTION, PATHWAY], ids=lambda task: task.name)
def test_its_probabilities_are_scikit_learn_s(tmp_path: Path, task: Task) -> None:
    train_baseline(config(tmp_path, task))
    check_classifier(tmp_path / "out" / "model", [task])
    model = TfidfModel.load(tmp_path / "out" / "model", task)
    texts = [post.text for post in POSTS]
    regression = LogisticRegression(C=10, solver="sag", tol=1e-3, max_iter=1000, random_state=42)
    targets = np.array([[slug in post.labels[task.name] for slug in task.answerable] for post in POSTS])
    vectorizer = model.settings.vectorizer(min_df=2)
    if task is RISK:
        theirs = make_pipeline(vectorizer, regression).fit(texts, targets.argmax(axis=1))
    else:
        theirs = make_pipeline(vectorizer, OneVsRestClassifier(regression)).fit(texts, targets)
    unseen = [*(post.text for post in generate_posts(50, seed=5)), "", "x", "完全没见过的字：龘靐齉"]
    np.testing.assert_allclose(model.probabilities(unseen), theirs.predict_proba(unseen), rtol=1e-6, atol=1e-12)


def test_several_labels_that_exclude_each_other_add_up_to_1(tmp_path: Path) -> None:
    task = load_task("imhi_sad_en")
    path = tmp_path / "sad.jsonl"
    words = dict(
        zip(task.answerable[:3], ("exam homework teacher", "boss salary office", "mother brother home"), strict=True)
    )
    rows = [{"text": f"{number} {text}", "labels": [slug]} for number in range(20) for slug, text in words.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = train_baseline(config(tmp_path, RISK, train=[{"uri": str(path), "task": task.name}]))
    assert record.scores == {"10": 1.0}
    model = TfidfModel.load(tmp_path / "out" / "model", task)
    assert model.settings.analyzer == "char_wb"
    chances = model.probabilities([words[task.answerable[1]], "?"])
    assert chances.sum(axis=1) == pytest.approx(1)
    assert chances[0].argmax() == 1
    assert (chances[:, 3:] < 1e-9).all()  # labels of which there was no record


def test_c_and_threshold_are_chosen_on_records_that_were_not_learned(tmp_path: Path) -> None:
    """Labels without any tie to the texts: what was learned by heart is worth nothing."""
    random = np.random.default_rng(0)
    posts = [replace(post, labels={RISK.name: (RISK.answerable[random.integers(2)],)}) for post in POSTS]
    share = sum(post.labels[RISK.name] == ("high_risk",) for post in posts) / len(posts)
    record = train_baseline(config(tmp_path, RISK, posts, inverse_regularization=[0.1, 1000]))
    always = 2 * share / (1 + share)
    assert always - 0.02 < max(record.scores.values()) < always + 0.05
    assert record.scores[f"{record.inverse_regularization:g}"] == max(record.scores.values())


def test_the_same_call_finds_it_done_and_another_is_refused(tmp_path: Path) -> None:
    first = train_baseline(config(tmp_path, RISK))
    again = train_baseline(config(tmp_path, RISK))
    assert first == again
    shutil.rmtree(tmp_path / "out" / "model")
    assert train_baseline(config(tmp_path, RISK)).digest == first.digest
    assert (tmp_path / "out" / "model" / "README.md").is_file()
    other = train_baseline(config(tmp_path, RISK, output={"uri": str(tmp_path / "other")}))
    assert other.digest == first.digest
    assert "records" in (tmp_path / "out" / "model" / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"output\.uri = .*other settings \(min_count: 2, now 3\)"):
        train_baseline(config(tmp_path, RISK, min_count=3))


def test_a_dry_run_counts_labels_and_writes_nothing(tmp_path: Path) -> None:
    posts = POSTS[:60]
    path = tmp_path / "baseline.yaml"
    settings = config(tmp_path, DISTORTION, posts)
    path.write_text(settings.model_dump_json(exclude_unset=True))
    shown = CliRunner().invoke(app, ["baseline", str(path), "--dry-run"])
    assert shown.exit_code == 0, shown.exception
    first, *counts, last = shown.stdout.splitlines()
    assert first.startswith("cognitive_distortion: 60 records, ")
    labels = [post.labels[DISTORTION.name] for post in posts]
    expected = {slug: sum(slug in each for each in labels) for slug in DISTORTION.answerable}
    expected |= {"no label": sum(not each for each in labels)}
    assert {line.rsplit(maxsplit=1)[0].strip(): int(line.split()[-1]) for line in counts} == expected
    assert last == "  1 C in cross-validation with 3 folds"
    assert not (tmp_path / "out").exists()
    record = train_baseline(settings)
    shown = CliRunner().invoke(app, ["baseline", str(path), "--dry-run"])
    assert f"finished {record.finished_at}, nothing to do" in shown.stdout
    few = CliRunner().invoke(app, ["baseline", str(path), "--dry-run", "--set", "num_folds=20"])
    assert isinstance(few.exception, ConfigError), "a folder with other settings"


def test_what_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    two = [records(tmp_path / f"{task.name}.jsonl", task, POSTS) for task in (RISK, DISTORTION)]
    with pytest.raises(ConfigError, match="learns one task, here are cognitive_distortion, suicide_risk"):
        train_baseline(config(tmp_path, RISK, train=two))
    with pytest.raises(InputError, match=r"different texts for num_folds = 3"):
        train_baseline(config(tmp_path, RISK, POSTS[:2]))
    with pytest.raises(InputError, match=r"no n-gram occurs in min_count = 400"):
        train_baseline(config(tmp_path, RISK, min_count=400))
    with pytest.raises(ValueError, match="shortest, longest"):
        config(tmp_path, RISK, ngrams=[3, 1])


def test_a_folder_that_is_damaged_or_another_model_s_is_refused(tmp_path: Path) -> None:
    train_baseline(config(tmp_path, RISK, max_characters=7))
    folder = tmp_path / "out" / "model"
    assert read_classifier(folder).max_tokens == 7
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"idf": weights["idf"][1:].copy()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="is damaged"):
        TfidfModel.load(folder, RISK)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="is damaged"):
        TfidfModel.load(folder, RISK)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"holds a bert, .*use engine\.kind: encoder"):
        TfidfModel.load(folder, RISK)


def test_it_explains_nothing_and_nobody_has_to_say_so(tmp_path: Path) -> None:
    path = tmp_path / "score.yaml"
    path.write_text("{input: {uri: a}, output: {uri: b}, tasks: [suicide_risk], engine: {kind: tfidf}}")
    assert load_config(ScoreConfig, path).explain == "none"
    with pytest.raises(ConfigError, match="the tfidf engine gives labels alone"):
        load_config(ScoreConfig, path, ["explain=all"])
    with pytest.raises(ConfigError, match="the tfidf engine loads a classifier"):
        load_config(ScoreConfig, path, ["model.adapter=a"])
