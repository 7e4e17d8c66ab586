"""A classifier (BERT and its kin) inside the job: a forward pass for each batch of posts, on a GPU or on the CPU."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from mentalglm.config import EncoderEngineConfig, GenerationConfig
from mentalglm.engine.classifier import TextEncoder, completion_of, has_one_answer, read_classifier
from mentalglm.engine.model import ResolvedModel
from mentalglm.engine.protocol import Completion, Engine, FollowUp, Request
from mentalglm.engine.weights import load_whole
from mentalglm.errors import ConfigError
from mentalglm.tasks import Task


class EncoderEngine(Engine):
    """An `Engine` that reads `Request.post`, not its prompt, and answers in the words of the task's template.

    So its answers go the way of all others. It explains nothing and has nothing to add when it is asked again.
    Raises: ConfigError where the model cannot be loaded.
    """

    def __init__(
        self,
        config: EncoderEngineConfig,
        generation: GenerationConfig,
        model: ResolvedModel,
        task: Task,
        *,
        num_gpus: float,
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if num_gpus and not torch.cuda.is_available():
            raise ConfigError(f"engine.num_gpus = {num_gpus:g}: torch sees no GPU on this node; set it to 0")
        if not num_gpus:
            torch.set_num_threads(max(1, int(config.num_cpus)))
        classifier = read_classifier(Path(model.path))
        classifier = classifier.model_copy(
            update={"max_tokens": min(classifier.max_tokens, generation.max_prompt_tokens)}
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(model.path, local_files_only=True)
            loaded = load_whole(
                AutoModelForSequenceClassification, Path(model.path), dtype=getattr(torch, config.dtype)
            )
        except (ValueError, OSError) as error:
            cause = " ".join(str(error).split())[:200]
            raise ConfigError(f"model.path = {model.name!r}: cannot be loaded as a classifier ({cause})") from None
        self._config, self._model_name, self._task = config, model.name, task
        self._threshold = classifier.threshold
        self._fails_overlong = generation.overlong == "fail"
        self._encoder = TextEncoder(tokenizer, classifier, task)
        self._device = torch.device("cuda" if num_gpus else "cpu")
        self._model = loaded.eval().to(self._device)
        self._computing = ThreadPoolExecutor(1)  # shards in flight take turns

    @property
    def description(self) -> dict[str, str]:
        """What answers, for the manifest."""
        import transformers

        is_gpu = self._device.type == "cuda"
        return {
            "engine": "encoder",
            "transformers": transformers.__version__,
            "model": self._model_name,
            "device": torch.cuda.get_device_name() if is_gpu else "cpu",
            "dtype": self._config.dtype,
        }

    async def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        """See `Engine.complete`. Posts of like length go together, long ones first."""
        texts = await asyncio.to_thread(self._encoder.encode, [request.post for request in requests])
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index].token_ids))
        loop = asyncio.get_running_loop()
        for start in range(0, len(order), self._config.batch_size):
            batch = order[start : start + self._config.batch_size]
            rows = await loop.run_in_executor(
                self._computing, self._probabilities, [texts[index].token_ids for index in batch]
            )
            for index, probabilities in zip(batch, rows, strict=True):
                text = texts[index]
                flags = ("text_truncated",) if text.is_truncated else ()
                completion = completion_of(
                    self._task, self._threshold, probabilities, num_tokens=len(text.token_ids), flags=flags
                )
                if text.is_truncated and self._fails_overlong:
                    completion = Completion("", "too_long")
                while follow_up is not None and follow_up(index, completion) is not None:
                    pass
                yield index, completion

    async def close(self) -> None:
        """Frees the thread; the model goes with the engine."""
        self._computing.shutdown()

    @torch.inference_mode()
    def _probabilities(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """(texts, labels). Raises: ConfigError where a batch does not fit into memory."""
        padded, mask = pad(token_ids, self._encoder.pad_id)
        try:
            logits = self._model(input_ids=padded.to(self._device), attention_mask=mask.to(self._device)).logits
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"engine.batch_size = {self._config.batch_size}: does not fit into the GPU's memory; lower it and run "
                "the same command again"
            ) from None
        logits = logits.double()
        rows: list[list[float]] = (logits.softmax(-1) if has_one_answer(self._task) else logits.sigmoid()).tolist()
        return rows


def pad(token_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(token ids, attention mask), both (texts, longest), padded on the right."""
    length = max(map(len, token_ids))
    padded = torch.full((len(token_ids), length), pad_id, dtype=torch.long)
    mask = torch.zeros(len(token_ids), length, dtype=torch.long)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return padded, mask
