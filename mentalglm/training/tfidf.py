"""The baseline job: records in, a logistic regression over their character n-grams out."""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from mentalglm import manifest, storage
from mentalglm.cluster import lasting_output
from mentalglm.config import BaselineConfig
from mentalglm.corpus.records import Records, mixture, read_records
from mentalglm.engine.classifier import Classifier, chosen_labels, has_one_answer
from mentalglm.engine.files import digest_of
from mentalglm.engine.tfidf import Floats, NgramSettings, TfidfModel
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.metrics import Bits, Counts, contributions
from mentalglm.tasks import PARSER_VERSION, Task

RECORD = "baseline.json"
_VERSION = 1
"""Raised with every change in what is learned from the same records."""
_NEVER = -30.0
"""Logit of a label of which there is no record."""
_THRESHOLDS = [round(0.05 * step, 2) for step in range(2, 19)]


class BaselineRecord(BaseModel):
    """What a finished baseline is: `baseline.json`, written last."""

    model_config = ConfigDict(frozen=True)

    fingerprint: dict[str, Any]
    inverse_regularization: float
    """Chosen, as is the threshold."""
    threshold: float
    scores: dict[str, float]
    """Each C -> the task's own F1 on records that a model had not seen, with the threshold that is best for it: what
    was chosen by, and so a little too high."""
    num_records: int
    num_ngrams: int
    digest: str
    """Of the model's files, as a score run's manifest has it."""
    finished_at: str
    seconds: float
    versions: dict[str, str]

    def describe(self) -> list[str]:
        """For people."""
        tried = ", ".join(f"C {strength}: {f1:.4f}" for strength, f1 in self.scores.items())
        [task] = self.fingerprint["task"]
        return [
            f"{task}: {self.num_records:,} records, {self.num_ngrams:,} n-grams, {self.seconds} s",
            f"  F1 in cross-validation: {tried}; threshold {self.threshold:g}",
        ]


@dataclass(frozen=True, slots=True)
class _Data:
    """The records as arrays."""

    task: Task
    texts: list[str]
    targets: Bits
    """(num_records, num_answerable)."""
    weights: Floats
    texts_numbers: npt.NDArray[np.int64]
    """The same for equal texts."""

    @property
    def num_texts(self) -> int:
        """How many different ones there are."""
        return len(np.unique(self.texts_numbers))

    def take(self, rows: npt.NDArray[np.int64]) -> "_Data":
        """Those rows."""
        texts = [self.texts[row] for row in rows]
        return _Data(self.task, texts, self.targets[rows], self.weights[rows], self.texts_numbers[rows])


@dataclass(frozen=True, slots=True)
class _Job:
    """A baseline whose records are read and checked."""

    uri: str
    settings: NgramSettings
    fingerprint: dict[str, Any]
    data: _Data
    finished: BaselineRecord | None


def train_baseline(config: BaselineConfig) -> BaselineRecord:
    """Trains it, or finds that it is there. Raises: ConfigError, InputError."""
    started = time.monotonic()
    job = _prepare(config)
    if job.finished is not None:
        return job.finished
    uri, settings, fingerprint, data = job.uri, job.settings, job.fingerprint, job.data
    task = data.task
    scores = _cross_validate(config, settings, data)
    best = max(scores, key=lambda strength: scores[strength].f1)
    model = _fit(config, settings, data, [best])[best]
    record = BaselineRecord(
        fingerprint=fingerprint,
        inverse_regularization=best,
        threshold=scores[best].threshold,
        scores={f"{strength:g}": each.f1 for strength, each in scores.items()},
        num_records=len(data.texts),
        num_ngrams=len(model.vocabulary),
        digest=_write(uri, model, config, task, scores[best].threshold),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 1),
        versions=manifest.code_version() | {"scikit-learn": sklearn.__version__, "numpy": np.__version__},
    )
    storage.put(storage.join(uri, "model", "README.md"), _card(task, settings, record).encode())
    storage.put(storage.join(uri, RECORD), record.model_dump_json(indent=2).encode())
    return record


def plan_baseline(config: BaselineConfig) -> list[str]:
    """What would be learned, for people: reads and checks the records, and writes nothing.

    Raises: ConfigError, InputError.
    """
    job = _prepare(config)
    data, tried = job.data, len(config.inverse_regularization)
    done = "" if job.finished is None else f"; finished {job.finished.finished_at}, nothing to do"
    counts = dict(zip(data.task.answerable, data.targets.sum(axis=0).tolist(), strict=True))
    if num_without := int((~data.targets.any(axis=1)).sum()):
        counts["no label"] = num_without
    width = max(map(len, counts))
    return [
        f"{data.task.name}: {len(data.texts):,} records, {data.num_texts:,} different texts{done}",
        *(f"  {label:{width}}  {count:,}" for label, count in counts.items()),
        f"  {tried} C in cross-validation with {config.num_folds} folds",
    ]


def _prepare(config: BaselineConfig) -> _Job:
    storage.configure(config.s3)
    uri = lasting_output(config.output.uri)
    records = read_records(config.train, "train")
    if len(records.tasks) > 1:
        raise ConfigError(f"train: a baseline learns one task, here are {', '.join(sorted(records.tasks))}; name one")
    [task] = records.tasks.values()
    settings = _settings(config, task)
    fingerprint = _fingerprint(config, task, settings, records)
    finished = _read(uri)
    if finished is not None:
        if changes := manifest.differences(finished.fingerprint, json.loads(json.dumps(fingerprint))):
            raise ConfigError(
                f"output.uri = {uri}: holds a baseline with other settings ({'; '.join(changes)}); name another folder"
            )
        if not storage.has_files(storage.join(uri, "model")):
            finished = None  # made again, which gives the same
    data = _data(config, task, records)
    if data.num_texts < config.num_folds:
        raise InputError(f"train: has {data.num_texts} different texts for num_folds = {config.num_folds}; give more")
    return _Job(uri, settings, fingerprint, data, finished)


def _settings(config: BaselineConfig, task: Task) -> NgramSettings:
    if task.language == "zh":
        return NgramSettings(analyzer="char", ngrams=config.ngrams or (1, 3))
    return NgramSettings(analyzer="char_wb", ngrams=config.ngrams or (2, 5))


def _fingerprint(config: BaselineConfig, task: Task, settings: NgramSettings, records: Records) -> dict[str, Any]:
    kept = config.model_dump(mode="json", exclude={"train", "output", "ngrams", "s3"})
    return kept | {
        "version": _VERSION,
        "parser": PARSER_VERSION,
        "task": {task.name: task.digest},
        "ngrams": settings.model_dump(mode="json"),
        "train": {"digest": records.digest, **mixture(config.train)},
    }


def _data(config: BaselineConfig, task: Task, records: Records) -> _Data:
    texts = [record.text[: config.max_characters] for record in records.rows]
    numbers: dict[str, int] = {}
    return _Data(
        task,
        texts,
        np.array([[slug in record.labels for slug in task.answerable] for record in records.rows], dtype=np.bool_),
        np.array([records.weights[record.part] for record in records.rows]),
        np.array([numbers.setdefault(text, len(numbers)) for text in texts]),
    )


@dataclass(frozen=True, slots=True)
class _Score:
    f1: float
    threshold: float


def _cross_validate(config: BaselineConfig, settings: NgramSettings, data: _Data) -> dict[float, _Score]:
    """C -> how good models with it are on records that they have not seen."""
    strengths = config.inverse_regularization
    probabilities = {strength: np.empty(data.targets.shape) for strength in strengths}
    folds = GroupKFold(config.num_folds, shuffle=True, random_state=config.seed)
    for known, unseen in folds.split(data.texts, groups=data.texts_numbers):
        models = _fit(config, settings, data.take(known), strengths)
        for strength, model in models.items():
            probabilities[strength][unseen] = model.probabilities(data.take(unseen).texts)
    return {strength: _best_threshold(data, each) for strength, each in probabilities.items()}


def _best_threshold(data: _Data, probabilities: Floats) -> _Score:
    """By the task's own F1; of equal ones the nearest to a half."""
    thresholds = [0.5] if data.task.kind == "multiclass" else _THRESHOLDS
    found = [_Score(_f1(data.task, data.targets, probabilities, each), each) for each in thresholds]
    return max(found, key=lambda each: (each.f1, -abs(each.threshold - 0.5)))


def _f1(task: Task, targets: Bits, probabilities: Floats, threshold: float) -> float:
    predicted = np.zeros_like(targets)
    for row, chances in enumerate(probabilities.tolist()):
        labels = chosen_labels(task, threshold, dict(zip(task.answerable, chances, strict=True)))
        predicted[row] = [slug in labels for slug in task.answerable]
    others, is_read = np.zeros(len(targets), np.int64), np.ones(len(targets), np.bool_)
    counts = Counts.from_sums(contributions(targets, predicted, others, is_read).sum(0, dtype=float))
    positive = None if task.positive is None else task.answerable.index(task.positive)
    average: Any = task.metric.removesuffix("_f1")
    return float(counts.average(average, positive).f1)


def _fit(
    config: BaselineConfig, settings: NgramSettings, data: _Data, strengths: Sequence[float]
) -> dict[float, TfidfModel]:
    """C -> a model of the data with it."""
    vectorizer = settings.vectorizer(min_df=config.min_count)
    try:
        features = vectorizer.fit_transform(data.texts)
    except ValueError:  # scikit-learn's words for no n-gram that counts
        raise InputError(
            f"train: no n-gram occurs in min_count = {config.min_count} of {len(data.texts)} records; lower it, or "
            "give more"
        ) from None
    vocabulary = vectorizer.get_feature_names_out().tolist()
    found = {}
    for strength in strengths:
        logits = list(_logits(features, data, strength, config.seed))
        coefficients, intercepts = (np.array([each[part] for each in logits]) for part in (0, 1))
        one = has_one_answer(data.task)
        found[strength] = TfidfModel(settings, vocabulary, vectorizer.idf_, coefficients, intercepts, one)
    return found


def _logits(features: Any, data: _Data, strength: float, seed: int) -> Iterator[tuple[Floats, float]]:
    """(coefficients, intercept) of each label: of one regression over all, or, where each applies by itself, of one for
    each."""

    def regression(targets: Any) -> Any:
        # SAG: a second where L-BFGS takes half a minute, with the same F1 (IMHI's SAD: 5,547 texts, 9 labels).
        model = LogisticRegression(C=strength, solver="sag", tol=1e-3, max_iter=1000, random_state=seed)
        return model.fit(features, targets, sample_weight=data.weights)

    nothing = np.zeros(features.shape[1])
    if not has_one_answer(data.task):
        for column in data.targets.T:
            if column.all() or not column.any():
                yield nothing, -_NEVER if column.all() else _NEVER
            else:
                fitted = regression(column)
                yield fitted.coef_[0], float(fitted.intercept_[0])
        return
    numbers = data.targets.argmax(axis=1)
    there = np.unique(numbers)
    if len(there) == 1:
        coefficients, intercepts = nothing[None], np.zeros(1)
    else:
        fitted = regression(numbers)
        coefficients, intercepts = fitted.coef_, fitted.intercept_
        if len(there) == 2:  # scikit-learn gives the second's logit against the first
            coefficients, intercepts = np.stack([nothing, coefficients[0]]), np.array([0.0, intercepts[0]])
    for label in range(data.targets.shape[1]):
        at = np.flatnonzero(there == label)
        yield (coefficients[at[0]], float(intercepts[at[0]])) if len(at) else (nothing, _NEVER)


def _write(uri: str, model: TfidfModel, config: BaselineConfig, task: Task, threshold: float) -> str:
    """Puts the model into its folder. Returns its digest."""
    classifier = Classifier(
        task=task.name,
        task_version=task.version,
        task_digest=task.digest,
        input="post",
        mask_labels=False,
        max_tokens=config.max_characters,
        threshold=threshold,
    )
    with tempfile.TemporaryDirectory(prefix="mentalglm-baseline-") as temporary:
        folder = Path(temporary)
        model.save(folder, task.answerable)
        classifier.write(folder)
        for path in sorted(folder.iterdir()):
            storage.put(storage.join(uri, "model", path.name), path.read_bytes())
        return digest_of(folder)


def _read(uri: str) -> BaselineRecord | None:
    data = storage.read_bytes(storage.join(uri, RECORD))
    return None if data is None else BaselineRecord.model_validate_json(data)


def _card(task: Task, settings: NgramSettings, record: BaselineRecord) -> str:
    shortest, longest = settings.ngrams
    return "\n".join(
        [
            f"# Baseline for {task.name}",
            "",
            f"Logistic regression (C = {record.inverse_regularization:g}) over the TF-IDF of {record.num_ngrams:,} "
            f"n-grams of {shortest} to {longest} characters, made {record.finished_at} in {record.seconds} s from "
            f"{record.num_records:,} records. {manifest.INTENDED_USE}",
            "",
            f"F1 ({task.metric.removesuffix('_f1')}) in cross-validation, on records that a model had not seen: "
            f"{record.scores[f'{record.inverse_regularization:g}']:.4f}. C and threshold ({record.threshold:g}) were "
            "chosen by it, so it is a little flattering; report one of a test split.",
            "",
            f"vocabulary.json holds pieces of posts, of up to {longest} characters: hand it on as carefully as these.",
            "",
            f"Model digest `{record.digest}`, training data digest `{record.fingerprint['train']['digest']}`.",
            "",
        ]
    )
