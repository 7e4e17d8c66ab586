"""Synthetic Weibo-like posts with gold labels and explanations, so that the product can be tried without real posts.

`python -m mentalglm.corpus.synthetic --num-posts 300 --seed 1 --output posts.parquet` writes a corpus.

A post is put together from cue phrases, each of which decides labels, and neutral sentences, which decide none. All
phrases are invented (mentalglm/demo/phrases.yaml). The posts look like posts and carry labels that can be learned; they
say nothing about how people write or about how well a model does on real posts.
"""

import argparse
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from mentalglm.config import load_yaml
from mentalglm.tasks import load_task

TASKS = ("suicide_risk", "cognitive_distortion", "cognitive_pathway")

COMMON_CHARACTERS = "".join(
    bytes((row, cell)).decode("gb2312")
    for row in range(0xB0, 0xD8)
    for cell in range(0xA1, 0xFF)
    if (row, cell) < (0xD7, 0xFA)
)
"""The 3,755 characters of GB 2312 level 1, which the standard chose as the commonest of written Chinese."""

_SLOT = re.compile(r"\{([a-z]+)\}")
_PHRASES = Path(__file__).parents[1] / "demo" / "phrases.yaml"

# Which child of the cognitive pathway a distortion falls under (SocialCD's 12 labels, CP's 10 beliefs).
PATHWAY_OF_DISTORTION = {
    "all_or_nothing_thinking": "all_or_nothing_thinking",
    "overgeneralization": "overgeneralization",
    "mental_filter": "mental_filter",
    "disqualifying_the_positive": "disqualifying_the_positive",
    "mind_reading": "jumping_to_conclusions",
    "fortune_telling": "jumping_to_conclusions",
    "magnification": "magnification_minimization",
    "emotional_reasoning": "emotional_reasoning",
    "should_statements": "should_statements",
    "labeling": "labeling",
    "personalization": "personalization_blame",
    "blaming_others": "personalization_blame",
}

# Numbers of (distortion cues, other pathway cues) of a post, and how often.
_PLANS = {(0, 0): 14, (0, 1): 24, (1, 0): 34, (2, 0): 10, (3, 0): 3, (1, 1): 15}
_NUM_NEUTRAL = {0: 25, 1: 34, 2: 22, 3: 10, 5: 6, 9: 3}
_RISK = {"high": 36, "low": 18, "none": 46}
_ENDS = {"。": 50, "！": 10, "…": 10, "~": 5, "，": 15, "\n": 5, " ": 5}


@dataclass(frozen=True, slots=True)
class SyntheticPost:
    """One invented post and what is true of it."""

    post_id: str
    """16 digits, like an id of Weibo; rising with `created_at`."""
    text: str
    created_at: datetime
    """China Standard Time, without a zone."""
    labels: Mapping[str, tuple[str, ...]]
    """Task to slugs in the order of the label set; no slug where no label applies."""
    explanations: Mapping[str, str]
    """Task to one sentence that quotes the deciding phrase of the post, where one decides."""
    cues: tuple[str, ...]
    """Of each phrase of the post that decides a label, the part that an explanation quotes."""


@dataclass(frozen=True, slots=True)
class _Cue:
    kind: str
    """Section of the phrase file: distortions, pathway, suicide_risk."""
    label: str
    sentence: str
    quote: str
    """What the explanation quotes: a part of the sentence without slots. (A tiny model recognises a phrase well, but
    does not learn to copy words that it has never seen.)"""


def generate_posts(
    num_posts: int, seed: int, *, held_out: bool = False, random_slot_share: float = 0.0, spacing: int = 1
) -> Iterator[SyntheticPost]:
    """Yields `num_posts` posts with distinct texts, the same for the same arguments on every machine.

    With `held_out`, every post has at least one slot value that no other post can have: no text is then ever that of
    a post made without it, whatever the seeds. `random_slot_share` of the slots hold a random two-character word
    instead of a listed value: nonsense, for training a model to copy words that it has never seen. The times between
    posts, of some minutes, are `spacing` times as long; nothing else is.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    number = 5_110_000_000_000_000 + rng.randrange(10**13)
    created_at = datetime(2025, 1, 1) + timedelta(seconds=rng.randrange(86_400))
    seen: set[str] = set()
    for _ in range(num_posts):
        while True:
            writer = _Writer(rng, held_out, random_slot_share)
            text, cues = writer.write()
            if text not in seen and writer.has_held_out_value == held_out:
                break
        seen.add(text)
        number += rng.randrange(10**6, 10**8)
        created_at += timedelta(seconds=spacing * rng.randrange(5, 900))
        labels, explanations = _annotate(cues)
        yield SyntheticPost(str(number), text, created_at, labels, explanations, tuple(cue.quote for cue in cues))


def unfamiliar_posts(num_posts: int, seed: int) -> Iterator[SyntheticPost]:
    """Yields texts from outside the phrase file, to which no label applies: random characters, words, digits, emoji,
    next to nothing, up to about a thousand characters. For training and testing that an answer always has its form."""
    rng = random.Random(seed)  # noqa: S311
    number = 5_110_000_000_000_000 + rng.randrange(10**13)
    created_at = datetime(2025, 1, 1)
    labels, explanations = _annotate([])
    for _ in range(num_posts):
        number += rng.randrange(10**6, 10**8)
        created_at += timedelta(seconds=rng.randrange(5, 900))
        yield SyntheticPost(str(number), _unfamiliar_text(rng), created_at, labels, explanations, ())


def phrase_fragments() -> Iterator[str]:
    """Yields what training posts and explanations are made of: the phrases, cut at their slots, the slots' `seen`
    values, and English words."""
    yield from (f" {word}" for word in _ENGLISH)
    for section, content in _phrases().items():
        if section == "slots":
            for slot in content.values():
                yield from slot["seen"]
        else:
            for phrase in _strings(content):
                yield from _SLOT.split(phrase)[::2]


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        for item in content.values() if isinstance(content, dict) else content:
            yield from _strings(item)


def write_corpus(
    path: str | Path,
    *,
    num_posts: int,
    seed: int,
    gold_path: str | Path | None = None,
    records_path: str | Path | None = None,
    spacing: int = 1,
) -> None:
    """Writes held-out posts as Parquet (post_id, text, created_at), and their gold labels apart, to `gold_path`:
    post_id, and for each task a column of its name (list of slugs) and `<task>_explanation`. To `records_path`: both
    together, to train on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    posts = list(generate_posts(num_posts, seed, held_out=True, spacing=spacing))
    ids = pa.array([post.post_id for post in posts], pa.string())
    table = {
        "post_id": ids,
        "text": pa.array([post.text for post in posts], pa.string()),
        "created_at": pa.array([post.created_at for post in posts], pa.timestamp("ms")),
    }
    _write_table(pa.table(table), Path(path), pq)
    gold = {"post_id": ids}
    for task in TASKS:
        gold[task] = pa.array([list(post.labels[task]) for post in posts], pa.list_(pa.string()))
        gold[f"{task}_explanation"] = pa.array([post.explanations[task] for post in posts], pa.string())
    if gold_path is not None:
        _write_table(pa.table(gold), Path(gold_path), pq)
    if records_path is not None:
        _write_table(pa.table(table | gold), Path(records_path), pq)


def _write_table(table: Any, path: Path, pq: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


class _Writer:
    """Writes one post."""

    def __init__(self, rng: random.Random, held_out: bool, random_slot_share: float) -> None:
        self._rng = rng
        self._held_out = held_out
        self._random_slot_share = random_slot_share
        self.has_held_out_value = False

    def write(self) -> tuple[str, list[_Cue]]:
        rng, phrases = self._rng, _phrases()
        cues = self._cues()
        sentences = [cue.sentence for cue in cues]
        num_neutral = max(_draw(rng, _NUM_NEUTRAL), 0 if cues else 1)
        sentences += [self._fill(template) for template in rng.sample(phrases["neutral"], num_neutral)]
        rng.shuffle(sentences)
        text = "".join(map(self._finish_sentence, sentences))
        text = text.rstrip("，\n ") if rng.random() < 0.7 else text.rstrip("，。\n ")
        if rng.random() < 0.25:
            tag = rng.choice(phrases["hashtags"])
            text = f"{tag}{text}" if rng.random() < 0.7 else f"{text}{tag}"
        if rng.random() < 0.03:
            text += " http://t.cn/A6" + "".join(rng.choices("abcdefghijkmnpqrstuvwxyzABCDEFGH23456789", k=6))
        if rng.random() < 0.15:  # some people type half-width commas
            text = text.replace("，", ",")
            cues = [replace(cue, quote=cue.quote.replace("，", ",")) for cue in cues]
        return text, cues

    def _cues(self) -> list[_Cue]:
        rng, phrases = self._rng, _phrases()
        num_distortions, num_others = _draw(rng, _PLANS)
        chosen = [("distortions", label) for label in rng.sample(sorted(phrases["distortions"]), num_distortions)]
        chosen += [("pathway", label) for label in rng.sample(sorted(phrases["pathway"]), num_others)]
        risk = _draw(rng, _RISK)
        # Pain is an emotional effect already: one cue of it is enough for both tasks.
        if risk == "high" or (risk == "low" and ("pathway", "emotional_effect") not in chosen):
            chosen.append(("suicide_risk", risk))
        return [self._cue(kind, label, rng.choice(phrases[kind][label]["cues"])) for kind, label in chosen]

    def _cue(self, kind: str, label: str, template: str) -> _Cue:
        return _Cue(kind, label, self._fill(template), _quote(template))

    def _finish_sentence(self, sentence: str) -> str:
        rng, phrases = self._rng, _phrases()
        opener = rng.choice(phrases["openers"]) + "，" if rng.random() < 0.1 else ""
        emoji = rng.choice(phrases["emoji"]) * rng.choice((1, 1, 1, 2, 3)) if rng.random() < 0.12 else ""
        return f"{opener}{sentence}{emoji}{_draw(rng, _ENDS)}"

    def _fill(self, template: str) -> str:
        """The template with a value for each slot; a slot named twice has one value."""
        for name in dict.fromkeys(_SLOT.findall(template)):
            template = template.replace(f"{{{name}}}", self._value(_phrases()["slots"][name]))
        return template

    def _value(self, slot: Mapping[str, Sequence[str]]) -> str:
        rng = self._rng
        if rng.random() < self._random_slot_share:
            if rng.random() < 0.1:
                return "".join(chr(rng.randrange(0x4E00, 0x9FA6)) for _ in range(2))
            return "".join(rng.choices(COMMON_CHARACTERS, k=2))
        if self._held_out and rng.random() < 0.5:
            self.has_held_out_value = True
            return rng.choice(slot["held_out"])
        return rng.choice(slot["seen"])


_ENGLISH = tuple(
    word
    for line in (
        "the a of to and in is that it for on was with my this have but not you at from they we all just so can more",
        "when day work time home night friend people school really today week think know feel good new old walk rain",
    )
    for word in line.split()
)


def _unfamiliar_text(rng: random.Random) -> str:
    kind = rng.choices(("characters", "mixed", "english", "short"), weights=(45, 25, 20, 10))[0]
    length = min(rng.randrange(1, 60) * rng.choice((1, 1, 1, 2, 4, 16)), 900)
    if kind == "short":
        return rng.choice(
            ("。", "？", "……", "嗯", "哈哈哈", "转发微博", "1", "[泪]", "？？", "好", "早", "😀", "　", "ok", "/")
        )
    if kind == "english":
        return " ".join(rng.choices(_ENGLISH, k=1 + length // 5)).capitalize() + rng.choice((".", "!", "", "..."))
    if kind == "characters":
        marks = "，。！？" if rng.random() < 0.8 else ",. "
        return "".join(
            rng.choice(COMMON_CHARACTERS) if rng.random() < 0.9 else rng.choice(marks) for _ in range(length)
        )
    # Planes of Unicode that posts draw on: ASCII, accents, punctuation, kana, rare and extension characters, emoji.
    ranges = ((0x20, 0x7F), (0xA1, 0x250), (0x3001, 0x30FF), (0x4E00, 0x9FFF), (0xFF01, 0xFF5E), (0x1F300, 0x1F64F))
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(1 + length // 3))


def _annotate(cues: Sequence[_Cue]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Labels and explanations of a post with these cues, by task."""
    phrases = _phrases()
    risk = next((cue for cue in cues if cue.kind == "suicide_risk"), None)
    order = _label_order("cognitive_distortion")
    distortions = sorted((cue for cue in cues if cue.kind == "distortions"), key=lambda cue: order[cue.label])
    order = _label_order("cognitive_pathway")
    # High risk is no step of the pathway; the other cues are one each.
    steps = [(_pathway_label(cue), cue) for cue in cues if cue != risk or cue.label == "low"]
    steps.sort(key=lambda step: (order[step[0]], step[1].quote))

    risk_reason = phrases["suicide_risk"][risk.label if risk else "none"]["reason"]
    risk_explanation = f"“{risk.quote}”{risk_reason}。" if risk else f"{risk_reason}。"
    if distortions:
        distortion_explanation = _explain(
            (cue.quote, phrases["distortions"][cue.label]["reason"]) for cue in distortions
        )
    elif steps:
        label, cue = steps[0]
        distortion_explanation = _explain([(cue.quote, phrases["not_distorted"][_pathway_parents()[label]])])
    else:
        distortion_explanation = phrases["none"]["cognitive_distortion"] + "。"
    if steps:
        pathway_explanation = _explain((cue.quote, _step_reason(label, cue)) for label, cue in steps)
    else:
        pathway_explanation = phrases["none"]["cognitive_pathway"] + "。"
    return {
        "suicide_risk": ("high_risk" if risk and risk.label == "high" else "low_risk",),
        "cognitive_distortion": tuple(cue.label for cue in distortions),
        "cognitive_pathway": tuple(dict.fromkeys(label for label, _ in steps)),
    }, {
        "suicide_risk": risk_explanation,
        "cognitive_distortion": distortion_explanation,
        "cognitive_pathway": pathway_explanation,
    }


def _quote(template: str) -> str:
    """The longest part of a phrase between slots, of whole clauses where there are any."""
    parts = _SLOT.split(template)[::2]
    # A part in the middle ends at its last comma, and one that does not begin the phrase begins after its first, so
    # that clauses cut by a slot are left out; the words after a slot at the very beginning are a whole clause.
    clauses = []
    for index, part in enumerate(parts):
        begins = index == 0 or not any(parts[:index])
        whole = part if begins else part.partition("，")[2]
        clauses.append(whole if index == len(parts) - 1 else whole.rpartition("，")[0])
    best = max(clauses, key=len) or max(parts, key=len)
    return best.strip("，").lstrip("的")


def _explain(quotes: Iterable[tuple[str, str]]) -> str:
    return "；".join(f"“{quote}”{reason}" for quote, reason in quotes) + "。"


def _pathway_label(cue: _Cue) -> str:
    if cue.kind == "distortions":
        return PATHWAY_OF_DISTORTION[cue.label]
    return "emotional_effect" if cue.kind == "suicide_risk" else cue.label


def _step_reason(label: str, cue: _Cue) -> str:
    section = _phrases()["distortions"] if cue.kind == "distortions" else _phrases()["pathway"]
    reason: str = section[cue.label if cue.kind == "distortions" else label]["reason"]
    return reason


@cache
def _label_order(task: str) -> dict[str, int]:
    return {label.slug: index for index, label in enumerate(load_task(task).labels)}


@cache
def _pathway_parents() -> dict[str, str]:
    return {label.slug: label.parent for label in load_task("cognitive_pathway").labels if label.parent}


@cache
def _phrases() -> Any:
    return load_yaml(_PHRASES)


def _draw(rng: random.Random, weights: Mapping[Any, int]) -> Any:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m mentalglm.corpus.synthetic", description="Writes invented posts.")
    parser.add_argument("--num-posts", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, help="Parquet file: post_id, text, created_at")
    parser.add_argument("--gold", help="Parquet file for the gold labels and explanations")
    parser.add_argument("--records", help="Parquet file for posts, gold labels and explanations together, to train on")
    parser.add_argument(
        "--spacing", type=int, default=1, help="Times between posts, some minutes, so many times longer"
    )
    arguments = parser.parse_args()
    write_corpus(
        arguments.output,
        num_posts=arguments.num_posts,
        seed=arguments.seed,
        gold_path=arguments.gold,
        records_path=arguments.records,
        spacing=arguments.spacing,
    )


if __name__ == "__main__":
    main()
