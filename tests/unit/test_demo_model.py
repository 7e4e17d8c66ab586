"""The demo model: its tokenizer is GLM-4's in form, its training loss is on the answer alone, and it does its job."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.config import ModelConfig
from mentalglm.corpus.records import Record
from mentalglm.corpus.synthetic import COMMON_CHARACTERS, TASKS, generate_posts, unfamiliar_posts
from mentalglm.engine.chat import ChatEncoder
from mentalglm.engine.model import DEMO_MODEL, resolve_model
from mentalglm.errors import ConfigError
from mentalglm.tasks import Prompt, load_task, parse_answer, render_answer, render_prompt
from mentalglm.training.glm_format.special_tokens import SPECIAL_TOKENS
from mentalglm.training.models.examples import ExampleEncoder

END, ASSISTANT = SPECIAL_TOKENS.index("<|user|>"), SPECIAL_TOKENS.index("<|assistant|>")
TASK = {name: load_task(name) for name in TASKS}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO_MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> ChatEncoder:
    return ChatEncoder(tokenizer, max_prompt_tokens=1024)


def encode(encoder: ChatEncoder, prompt: Prompt) -> list[int]:
    (encoded,) = encoder.encode([prompt])
    assert encoded is not None
    return encoded.token_ids


def test_the_folder_is_small_and_has_what_a_model_needs() -> None:
    sizes = {path.name: path.stat().st_size for path in DEMO_MODEL.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 8_000_000
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(sizes)
    assert resolve_model(ModelConfig(path="demo")).path == str(DEMO_MODEL)


def test_config_names_glm_and_its_ends(tokenizer: Any) -> None:
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    generation = json.loads((DEMO_MODEL / "generation_config.json").read_text())
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    assert (config["model_type"], config["architectures"]) == ("glm", ["GlmForCausalLM"])
    assert config["eos_token_id"] == generation["eos_token_id"] == ends
    assert config["dtype"] == "bfloat16"
    assert config["max_position_embeddings"] >= 2048
    assert config["vocab_size"] == len(tokenizer)


def test_special_tokens_are_those_of_glm4_in_its_order(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(10))
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert all(token.special for token in tokenizer.added_tokens_decoder.values())
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.padding_side == "left"


def test_the_chat_template_is_glm4s(tokenizer: Any) -> None:
    turns = [
        {"role": "system", "content": "你是一名心理学家"},
        {"role": "user", "content": "问"},
        {"role": "assistant", "content": "答"},
        {"role": "user", "content": "再问"},
    ]
    text = "[gMASK]<sop><|system|>\n你是一名心理学家<|user|>\n问<|assistant|>\n答<|user|>\n再问"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == text
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == text + "<|assistant|>"


def test_a_prompt_is_the_chat_template_with_special_tokens_in_place(tokenizer: Any, encoder: ChatEncoder) -> None:
    prompt = render_prompt(TASK["suicide_risk"], "今天下雨[泪]")
    token_ids = encode(encoder, prompt)
    turns = [{"role": "user", "content": prompt.user}]
    template = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert token_ids == template
    specials = [(at, token_id) for at, token_id in enumerate(token_ids) if token_id < len(SPECIAL_TOKENS)]
    assert specials == [(0, 2), (1, 4), (2, END), (len(token_ids) - 1, ASSISTANT)]


@pytest.mark.parametrize("word", SPECIAL_TOKENS)
def test_a_special_token_in_a_post_stays_text(tokenizer: Any, encoder: ChatEncoder, word: str) -> None:
    plain = encode(encoder, Prompt(None, "前", "你好", "后"))
    token_ids = encode(encoder, Prompt(None, "前", f"你{word}好", "后"))
    kept = [token_id for token_id in token_ids if token_id < len(SPECIAL_TOKENS)]
    assert kept == [token_id for token_id in plain if token_id < len(SPECIAL_TOKENS)]
    assert tokenizer.decode(token_ids[4:-1]) == f"前你{word}好后"


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_unchanged(encoder: ChatEncoder, tokenizer: Any, text: str) -> None:
    token_ids = encoder.encode_text(text)
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == text
    assert all(token_id >= len(SPECIAL_TOKENS) for token_id in token_ids)


def test_common_characters_are_one_token_and_posts_are_short(encoder: ChatEncoder) -> None:
    assert all(len(encoder.encode_text(character)) == 1 for character in COMMON_CHARACTERS)
    generator = random.Random(1)
    text = "".join(generator.choices(COMMON_CHARACTERS, k=500))
    assert len(encoder.encode_text(text)) <= 500
    prompts = [render_prompt(TASK[name], post.text) for post in generate_posts(100, 1) for name in TASKS]
    assert sum(len(encode(encoder, prompt)) for prompt in prompts) / len(prompts) < 60


def test_labels_are_the_same_tokens_wherever_they_stand(encoder: ChatEncoder) -> None:
    task = TASK["cognitive_distortion"]
    for slug in task.answerable:
        name = encoder.encode_text(task.name_of(slug))
        for others in ([], ["mind_reading"], ["labeling", "mind_reading"]):
            answer = encoder.encode_text("\n" + render_answer(task, sorted({slug, *others}), "。"))
            assert any(answer[at : at + len(name)] == name for at in range(len(answer)))


def test_the_loss_is_on_the_line_break_the_answer_and_its_end(tokenizer: Any) -> None:
    records = [
        Record(TASK[name], post.text, post.labels[name], post.explanations[name])
        for post in [*generate_posts(20, 1), *unfamiliar_posts(5, 1)]
        for name in TASKS
    ]
    for record, example in zip(records, ExampleEncoder(tokenizer).encode(records), strict=True):
        assert example is not None
        prompt, learned = example.token_ids[: example.num_prompt_tokens], example.token_ids[example.num_prompt_tokens :]
        turns = [{"role": "user", "content": render_prompt(record.task, record.text).user}]
        assert tokenizer.decode(prompt) == tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        answer = render_answer(record.task, list(record.labels), record.explanation)
        assert tokenizer.decode(learned) == f"\n{answer}<|user|>"
        assert prompt[-1] == ASSISTANT
        assert learned[-1] == END
        assert END not in learned[:-1]


def test_special_tokens_in_a_training_post_or_its_explanation_are_text(tokenizer: Any) -> None:
    record = Record(TASK["suicide_risk"], "a<|assistant|>b", ["low_risk"], "引用“<|user|>”。")
    (example,) = ExampleEncoder(tokenizer).encode([record])
    assert example is not None
    assert example.token_ids.count(ASSISTANT) == 1
    assert example.token_ids.count(END) == 2  # opens the prompt, ends the answer


def test_a_tokenizer_without_glm4s_turn_tokens_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(ConfigError, match=re.escape("<|user|>")):
        ExampleEncoder(other)


def test_the_loss_counts_answer_tokens_alone_and_padding_changes_nothing() -> None:
    import torch

    from mentalglm.training.demo.model import DemoSettings, new_model
    from mentalglm.training.models.examples import Example
    from mentalglm.training.models.language_model import LanguageModel

    torch.manual_seed(0)
    model = new_model(DemoSettings(hidden_size=64, intermediate_size=64, num_hidden_layers=2), 50).eval()
    short, long = Example([3, 9, 8, 7, 6], 2), Example([3, 9, 8, 7, 6, 11, 12, 13], 6)
    learner = LanguageModel(model, chunk_tokens=512)
    with torch.inference_mode():
        logprobs = [
            torch.log_softmax(model(torch.tensor([example.token_ids])).logits[0, at - 1], -1)[example.token_ids[at]]
            for example in (short, long)
            for at in range(example.num_prompt_tokens, len(example.token_ids))
        ]
        loss = learner(*learner.collate([short, long]))
    assert len(logprobs) == 5
    assert float(loss) == pytest.approx(-float(sum(logprobs)), rel=1e-4)


def test_what_the_demo_model_is_made_of_is_the_same_every_time(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from mentalglm.training.demo.model import DemoSettings, prepare

    settings_ = DemoSettings(num_posts=60, num_unfamiliar_posts=400, num_validation_posts=9)
    for name in ("one", "other"):
        prepare(tmp_path / name, settings_)
    train, validation = (pq.read_table(tmp_path / "one" / f"{name}.parquet") for name in ("train", "validation"))
    assert train == pq.read_table(tmp_path / "other" / "train.parquet")
    assert 450 < train.num_rows < 460  # some have no text
    assert validation.num_rows == 9
    assert set(train["task"].to_pylist()) == set(TASKS)
    assert not set(train["text"].to_pylist()) & set(validation["text"].to_pylist())
    weights = [(tmp_path / name / "untrained" / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert weights[0] == weights[1]
    # The tokenizer that is shipped is the one that is trained.
    made = tmp_path / "one" / "untrained" / "tokenizer.json"
    assert made.read_bytes() == (DEMO_MODEL / "tokenizer.json").read_bytes()


def test_the_demo_model_answers_held_out_posts_rightly() -> None:
    from mentalglm.training.demo.evaluate import evaluate

    figures = evaluate(DEMO_MODEL, num_posts=40, seed=23, num_threads=2)
    for name in TASKS:
        assert figures[name]["parse_rate"] >= 0.97
        assert figures[name]["unfamiliar_parse_rate"] == 1.0
        assert figures[name]["f1"] >= 0.9
        assert figures[name]["quote_rate"] >= 0.85
        assert figures[name]["explained"] >= 0.97


def test_a_post_of_a_thousand_tokens_is_answered(encoder: ChatEncoder) -> None:
    from mentalglm.training.demo.evaluate import generate, load

    generator = random.Random(2)
    text = "".join(generator.choices(COMMON_CHARACTERS, k=1500))
    task = TASK["cognitive_distortion"]
    assert len(encode(encoder, render_prompt(task, text))) == 1024
    (answer,) = generate(*load(DEMO_MODEL), task, [text])
    assert parse_answer(task, answer).status == "ok"


def test_an_untrained_model_of_another_size_can_be_timed(tmp_path: Path) -> None:
    from mentalglm.training.demo.model import untrained

    untrained(tmp_path, num_layers=2, hidden_size=64)
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2
    assert resolve_model(ModelConfig(path=str(tmp_path))).digest != resolve_model(ModelConfig(path="demo")).digest
