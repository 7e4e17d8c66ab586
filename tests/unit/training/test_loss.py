"""Loss and schedule: the same however a batch is cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from mentalglm.config import TrainConfig
from mentalglm.config.train import OptimizerConfig
from mentalglm.engine.model import DEMO_MODEL
from mentalglm.errors import ConfigError
from mentalglm.training.demo.model import untrained
from mentalglm.training.loop.sampler import micro_batches
from mentalglm.training.loop.schedule import learning_rate
from mentalglm.training.models.examples import Example
from mentalglm.training.models.language_model import LanguageModel, collate
from mentalglm.training.models.loss import chunked_cross_entropy

MINIMAL = {"output": {"uri": "out"}, "stages": {"s1": {"train": [{"uri": "r.jsonl"}]}}, "dtype": "float32"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    untrained(folder, num_layers=2, hidden_size=64)
    return folder


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(8, 60, count)
    return [Example(rng.integers(5, 4000, n).tolist(), int(rng.integers(2, n - 2))) for n in lengths]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 50, 64, 1000])
def test_chunks_change_neither_loss_nor_gradients(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(50, 16, dtype=torch.float64, requires_grad=True), torch.nn.Linear(16, 300).double()
    targets = torch.randint(0, 300, (50,))
    expected = cross_entropy(head(hidden).float(), targets, reduction="sum")
    expected.backward()
    wanted = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    loss = chunked_cross_entropy(hidden, targets, head, chunk_tokens=chunk_tokens)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(hidden.grad, wanted[0], rtol=1e-5)
    assert torch.allclose(head.weight.grad, wanted[1], rtol=1e-5)


def gradients(model: LanguageModel, batch: list[Example], num_workers: int, size: int) -> torch.Tensor:
    """Of the mean loss over the batch's learned tokens, from micro-batches of `size`."""
    lengths = np.array([len(example.token_ids) for example in batch])
    num_learned = sum(len(example.token_ids) - example.num_prompt_tokens for example in batch)
    model.zero_grad()
    for mine in micro_batches(np.arange(len(batch)), lengths, num_workers=num_workers, micro_batch_size=size):
        for indices in mine:
            if len(indices):
                (model(*collate([batch[index] for index in indices])) / num_learned).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True, "loss_chunk_tokens": 16}])
def test_eight_micro_batches_of_four_are_one_of_thirty_two(small: Path, changes: dict[str, object]) -> None:
    """And padding, several workers, and computing activations anew change nothing either."""
    model = LanguageModel.load(TrainConfig.model_validate(MINIMAL | changes), small, None)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = examples(32)
    whole = gradients(model, batch, 1, 32)
    assert whole.abs().max() > 0
    for num_workers, size in [(1, 4), (2, 4), (3, 5), (1, 1)]:
        assert torch.allclose(gradients(model, batch, num_workers, size), whole, atol=1e-6, rtol=1e-4)


def test_the_loss_is_that_of_transformers(small: Path) -> None:
    model = LanguageModel.load(TrainConfig.model_validate(MINIMAL), small, None)
    batch = examples(5, seed=1)
    expected = 0.0
    for example in batch:
        labels = [-100] * example.num_prompt_tokens + example.token_ids[example.num_prompt_tokens :]
        output = model.base(input_ids=torch.tensor([example.token_ids]), labels=torch.tensor([labels]))
        expected += output.loss.item() * (len(example.token_ids) - example.num_prompt_tokens)
    assert model(*collate(batch)).item() == pytest.approx(expected, rel=1e-5)


def test_a_model_with_other_logits_is_refused(small: Path) -> None:
    model = LanguageModel.load(TrainConfig.model_validate(MINIMAL), small, None)
    [example] = examples(1)
    model.check(example)
    forward = model.base.forward

    def capped(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = 5 * torch.tanh(output.logits * 10)
        return output

    model.base.forward = capped
    with pytest.raises(ConfigError, match="does not make its logits of its last hidden state"):
        model.check(example)


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
def test_the_schedule_is_that_of_transformers(schedule: str, theirs: object) -> None:
    """But for the warm-up's steps, which begin at 1 / n of the rate, not at 0: the first step learns."""
    config = OptimizerConfig(schedule=schedule, learning_rate=1.0, warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = theirs(optimizer, 10, 100)
    for step in range(100):
        expected = (step + 1) / 10 if step < 10 else scheduler.get_last_lr()[0]
        assert learning_rate(config, step, 100) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_paper_s_warm_up() -> None:
    """1 % of 7,310 steps are 74 (73.1, rounded up); the rate is highest at their end."""
    rates = [learning_rate(OptimizerConfig(), step, 7_310) for step in range(7_310)]
    assert rates.index(max(rates)) in (73, 74)
    assert max(rates) == 1e-4
    assert rates[-1] < 1e-9


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ConfigError, match=r"model\.path = demo: cannot be trained"):
        LanguageModel.load(TrainConfig.model_validate(MINIMAL), tmp_path, None)


def test_modules_that_the_model_does_not_have_are_named() -> None:
    config = TrainConfig.model_validate(MINIMAL | {"lora": {"target_modules": ["query_key_value"]}})
    with pytest.raises(ConfigError, match=r"lora.target_modules = \['query_key_value'\]"):
        LanguageModel.load(config, DEMO_MODEL, None)
