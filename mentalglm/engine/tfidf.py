"""Logistic regression over character n-grams, and the engine that answers with it.

    classifier.json      the `Classifier`; its tokens are characters
    config.json          model_type, how n-grams are cut, and the labels (`id2label`)
    vocabulary.json      the n-grams, in the order of columns
    model.safetensors    idf (num_ngrams,), coefficients (num_labels, num_ngrams), intercepts (num_labels,)

Plain numbers and text: nothing in the folder is run when it is loaded, as a pickle of scikit-learn's would be.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit, softmax
from sklearn.feature_extraction.text import TfidfVectorizer

from mentalglm.engine.classifier import completion_of, has_one_answer, read_classifier
from mentalglm.engine.files import read_json
from mentalglm.engine.model import ResolvedModel
from mentalglm.engine.protocol import Completion, Engine, FollowUp, Request
from mentalglm.errors import ConfigError
from mentalglm.tasks import Task
from mentalglm.tasks.task import Slug

_SETTINGS, _VOCABULARY, _WEIGHTS = "config.json", "vocabulary.json", "model.safetensors"
_BATCH_SIZE = 512

Floats = npt.NDArray[np.float64]


class NgramSettings(BaseModel):
    """How a text is cut."""

    model_config = ConfigDict(frozen=True)

    model_type: Literal["tfidf"] = "tfidf"
    analyzer: Literal["char", "char_wb"]
    """char: across words, as Chinese is written · char_wb: within them."""
    ngrams: tuple[int, int]
    """Shortest and longest."""

    def vectorizer(self, **options: Any) -> TfidfVectorizer:
        """scikit-learn's, with these settings."""
        return TfidfVectorizer(
            analyzer=self.analyzer, ngram_range=self.ngrams, sublinear_tf=True, dtype=np.float64, **options
        )


@dataclass(frozen=True)
class TfidfModel:
    """A fitted model."""

    settings: NgramSettings
    vocabulary: list[str]
    idf: Floats
    """(num_ngrams,)."""
    coefficients: Floats
    """(num_labels, num_ngrams)."""
    intercepts: Floats
    """(num_labels,)."""
    has_one_answer: bool
    """Probabilities of a text add up to 1, or each is its own."""

    @cached_property
    def _vectorizer(self) -> TfidfVectorizer:
        vectorizer = self.settings.vectorizer(vocabulary=self.vocabulary)
        vectorizer.idf_ = self.idf
        return vectorizer

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """(num_texts, num_labels)."""
        features = self._vectorizer.transform(texts)
        logits = features @ self.coefficients.T + self.intercepts
        found: Floats = softmax(logits, axis=1) if self.has_one_answer else expit(logits)
        return found

    def save(self, folder: Path, labels: Sequence[Slug]) -> None:
        """Writes all but classifier.json. `labels`: names of the rows of `coefficients`."""
        settings = self.settings.model_dump() | {"id2label": {str(number): slug for number, slug in enumerate(labels)}}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        (folder / _VOCABULARY).write_text(json.dumps({"ngrams": self.vocabulary}, ensure_ascii=False), encoding="utf-8")
        weights = {"idf": self.idf, "coefficients": self.coefficients, "intercepts": self.intercepts}
        save_file({name: np.ascontiguousarray(each) for name, each in weights.items()}, folder / _WEIGHTS)

    @classmethod
    def load(cls, folder: Path, task: Task) -> "TfidfModel":
        """Raises: ConfigError where the folder holds none, or one that is damaged."""
        shown = f"model.path = {str(folder)!r}"
        data = read_json(folder / _SETTINGS)
        if data.get("model_type") != "tfidf":
            raise ConfigError(
                f"{shown}: holds a {data.get('model_type') or 'model'}, not what `mentalglm baseline` makes; use "
                "engine.kind: encoder, or vllm"
            )
        try:
            settings = NgramSettings.model_validate(data)
            vocabulary = read_json(folder / _VOCABULARY)["ngrams"]
            weights = load_file(folder / _WEIGHTS)
            model = cls(settings, vocabulary, **weights, has_one_answer=has_one_answer(task))
            shapes = (model.idf.shape, model.coefficients.shape, model.intercepts.shape)
            size = len(vocabulary)
        except (ValidationError, SafetensorError, OSError, KeyError, TypeError) as error:
            raise ConfigError(f"{shown}: is damaged ({type(error).__name__}); train it again") from None
        if shapes != ((size,), (len(task.answerable), size), (len(task.answerable),)):
            raise ConfigError(f"{shown}: is damaged (shapes {shapes}); train it again")
        return model


class TfidfEngine(Engine):
    """An `Engine` that reads `Request.post`, not its prompt, and answers in the words of the task's template.

    Raises: ConfigError where the model cannot be loaded.
    """

    def __init__(self, model: ResolvedModel, task: Task) -> None:
        classifier = read_classifier(Path(model.path))
        self._task, self._model_name = task, model.name
        self._threshold, self._max_characters = classifier.threshold, classifier.max_tokens
        self._model = TfidfModel.load(Path(model.path), task)
        self._computing = ThreadPoolExecutor(1)  # shards in flight take turns

    @property
    def description(self) -> dict[str, str]:
        """What answers, for the manifest."""
        import sklearn

        return {"engine": "tfidf", "scikit-learn": sklearn.__version__, "model": self._model_name, "device": "cpu"}

    async def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        """See `Engine.complete`."""
        loop = asyncio.get_running_loop()
        for start in range(0, len(requests), _BATCH_SIZE):
            batch = requests[start : start + _BATCH_SIZE]
            texts = [request.post[: self._max_characters] for request in batch]
            rows = await loop.run_in_executor(self._computing, self._model.probabilities, texts)
            for offset, (request, text, row) in enumerate(zip(batch, texts, rows.tolist(), strict=True)):
                flags = ("text_truncated",) if len(text) < len(request.post) else ()
                index = start + offset
                completion = completion_of(self._task, self._threshold, row, num_tokens=len(text), flags=flags)
                while follow_up is not None and follow_up(index, completion) is not None:
                    pass
                yield index, completion

    async def close(self) -> None:
        """Frees the thread."""
        self._computing.shutdown()
