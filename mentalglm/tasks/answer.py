"""Reading a model's answer: any string in, labels or a reason why not out. Never raises, never guesses.

The steps, in order: read the head by itself, and where it is an answer, be content with it; remove what cannot be seen;
cut where another speaker's turn begins; drop an echo of the prompt; read the task's own answer form exactly; read JSON,
tables and vectors; else read the head before the explanation as text; judge what was found.

Policy of the hard cases:

- An answer that is `ok` but does not begin exactly as `render_answer` would write it has the flag `free_form`, so that
  an evaluation can tell what was understood from what was answered as asked.
- Only the head counts, up to 理由, 解释, 原因, Reasoning, ...: explanations name other labels. A head that is an answer
  by itself stays one, whatever follows: so an engine may stop at the marker, and the labels are the same.
- A label named after a denial (没有体现, 不属于, not, no, without) is denied. A denied label asserts nothing: in
  "没有体现高自杀风险" alone no label is found, and never the other one. "No, ..." to a yes/no question is an answer.
- A yes/no question is the exception: denying its statement (does not suffer from ...) is the answer no.
- Denying the topic of a binary task (没有自杀风险) answers nothing, but agrees with the negative label beside it.
- 高 and low count as grades of the risk: those of a mood or of the model's confidence are skipped, and one end of a
  range (中低, moderate to high) is `ambiguous`. What a label is defined as (高自杀风险的标准是) asserts nothing.
- Two labels of a binary or multiclass task, or a label both asserted and denied, are `ambiguous`, not the first one.
- Labels joined by 或 / or are `ambiguous`; 可能 / may is an answer with the flag `hedged`.
- 无法判断, 是否, whether, if: nothing in that clause counts. A question counts for nothing.
- "No distortion" is `ok` with no labels where the task allows it, and `no_label` elsewhere. Silence is never none.
- Everyday words (放大, 情感, 生活, work) count only as items of the answer, not inside a sentence.
- A finer label of another set counts where the task says which label covers it (flag `alias_label`). A coarser one
  does not: which of the labels is meant is not known (`out_of_set_label`). Beside valid labels it is a flag.
- A child under a wrong parent: the child is believed (flag `hierarchy_conflict`). A parent without a child: `ok`
  (flag `parent_only`). A third level is ignored (flag `third_level`).
- At least three quarters of six or more labels: the list was echoed (`label_list_echoed`). Posts have five at most.
- A number between 0 and 1, a percentage or a step of a scale is no decision; a vector must have one bit for each label.
- Cut off inside a label, a list or JSON: `truncated`, with the labels that were complete. Cut off inside the
  explanation: `ok` (flag `explanation_truncated`).
- Apologies, hotlines and "as an AI" without a label: `refused`. With a label they are politeness; but "I cannot ..."
  is a refusal that may name the risk, unless a plain statement of the label stands before it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mentalglm.tasks import grammar
from mentalglm.tasks.prose import Findings, read_prose
from mentalglm.tasks.render import (
    answer_heads,
    candidate_answers,
    head_pattern,
    read_canonical_head,
    render_answer,
    split_canonical,
)
from mentalglm.tasks.structured import read_structured
from mentalglm.tasks.task import HIERARCHY_SEPARATOR, Slug, Task
from mentalglm.tasks.text import clean, fold
from mentalglm.tasks.vocabulary import vocabulary_of

PARSER_VERSION = "4"
"""Raised with every change that can change a status, a label or a flag that evaluation reads. Since 4 an answer without
the task's own form has the flag `free_form`."""

Status = Literal["ok", "parse_failed", "truncated", "refused"]


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What an answer says."""

    status: Status
    labels: tuple[Slug, ...] = ()
    """In label-set order; children for a hierarchical task. With `truncated`, those that were complete."""
    parents: tuple[Slug, ...] = ()
    """Hierarchical tasks: parents of `labels`, and parents named alone."""
    explanation: str | None = None
    """As written, without its marker."""
    flags: tuple[str, ...] = ()
    reason: str | None = None
    """Why the status is not `ok`, as a machine word; never text of the answer."""
    explains_in_head: bool = False
    """The explanation begins before the task's own marker (at 原因, say), so what an engine counts as the answer's
    head is more than the labels."""


_ROLE_TOKEN = re.compile(
    r"<\|[a-z_]{1,24}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|\[(?:gMASK|MASK|sMASK)\]|<(?:sop|eop|eos|bos|s|pad)>|"
    r"</s>|\[/?INST\]|"
    r"<(?:start_of_turn|end_of_turn)>",
    re.IGNORECASE,
)
_ROLE_LINE = re.compile(
    r"\n[ \t]{0,8}(?:#{2,3} ?)?(?:用户|user|human|instruction|问题|question|input) ?[:：]", re.IGNORECASE
)
_THOUGHT_END = re.compile(r".*</think(?:ing)?>(?=.*\S)", re.DOTALL | re.IGNORECASE)
"""The end of a thought whose beginning is part of the prompt."""
_USER_TURN = re.compile(
    r"\s*(?:\[gMASK\]|<sop>|<s>|\s)*(?:\[INST\].*\[/INST\]|<\|(?:system|user)\|>.*<\|assistant\|>|"
    r"<\|im_start\|>(?:system|user)\b.*<\|im_start\|>assistant\b)",
    re.DOTALL | re.IGNORECASE,
)
"""The prompt with its role tokens, repeated before the answer."""
_THOUGHT_TAG = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_NOT_YET = re.compile(rf"{_THOUGHT_TAG.pattern}|{_ROLE_TOKEN.pattern}", re.IGNORECASE)
"""In a head: what follows may be the answer, and this only a thought or somebody else's words."""
_MAX_SCANNED = 4000
_STRUCTURE = re.compile(r"[{\[|\t]|[01]\D{0,3}[01]")


def parse_answer(task: Task, raw: str, *, finish_reason: str | None = None) -> ParsedAnswer:
    """What `raw` says. `finish_reason` is the engine's: with `length`, the answer was cut at `max_tokens`."""
    is_cut = finish_reason == "length"
    whole = _parse(task, raw, is_cut=is_cut)
    marker = find_marker(task.markers, raw)
    head = parse_head(task, raw[: marker[1]]) if marker else None
    if head is None:
        return replace(whole, explains_in_head=marker is None and whole.explanation is not None)
    agrees = (whole.status, whole.labels, whole.parents) == ("ok", head.labels, head.parents)
    assert marker is not None
    return replace(
        head,
        explanation=whole.explanation if agrees else clean(raw[marker[1] :]).strip(" \n:：*") or None,
        flags=(*head.flags, "explanation_truncated") if is_cut else head.flags,
    )


def parse_head(task: Task, text: str) -> ParsedAnswer | None:
    """What the beginning of an answer says, up to and with the first of the task's markers (`find_marker`).

    None where it takes more to know: the head is no answer by itself, or the marker does not begin an explanation
    there (没有理由认为). Else `parse_answer` has the same status, labels and parents for every answer that begins so.
    """
    marker = find_marker(task.markers, text)
    if marker is None or _NOT_YET.search(text):
        return None
    labels = read_canonical_head(task, clean(text[: marker[0]]).strip())
    if labels is not None and not _is_echoed(task, len(labels)):
        return ParsedAnswer("ok", labels, _parents_of(task, labels))
    opening = fold(task.prompt.partition("{text}")[0]).strip(' “"')
    folded = fold(clean(text))
    if len(opening) >= 6 and opening in folded:
        return None  # the prompt, echoed: the marker may be a word of the post
    answer = _parse(task, text, is_cut=False)
    if answer.status != "ok" or not _marker_pattern(task).search(folded):
        return None
    return replace(answer, explains_in_head=answer.explanation is not None)


def find_marker(markers: Sequence[str], text: str) -> tuple[int, int] | None:
    """Where the first of `markers` begins and ends in `text`, which is where an answer's head ends; None: nowhere."""
    return min(((at, at + len(marker)) for marker in markers if (at := text.find(marker)) >= 0), default=None)


def with_thought_opened(raw: str) -> str:
    """An answer of unknown origin that ends a thought which it does not begin: with the beginning, which was part of
    the prompt. Else nothing says that what stands first is a thought."""
    end = _THOUGHT_TAG.search(raw)
    return f"<think>{raw}" if end and end.group().startswith("</") else raw


def _parse(task: Task, raw: str, *, is_cut: bool) -> ParsedAnswer:
    """What `raw` says, read as a whole."""
    text = _own_turn(clean(raw))
    if not text.strip():
        return ParsedAnswer("truncated" if is_cut else "parse_failed", reason="empty_answer")
    head, explanation = split_canonical(task, text)
    labels = read_canonical_head(task, head)
    if labels is not None and not _is_echoed(task, len(labels)):
        flags = ("explanation_truncated",) if is_cut else ()
        return ParsedAnswer("ok", labels, _parents_of(task, labels), explanation, flags)

    vocabulary = vocabulary_of(task)
    structured = read_structured(vocabulary, text, _head_end(task, text))
    if structured is not None:
        found, explanation = structured
        is_cut = is_cut and (found.cut is not None or not found.ends_complete)
        saw_marker = found.ends_complete
        return _judge(task, found, explanation, fold(text), is_cut=is_cut, saw_marker=saw_marker)
    text = _without_prompt(task, text)
    folded = fold(text)
    found, explanation, saw_marker = _read_head(task, text, folded)
    return _judge(task, found, explanation, folded, is_cut=is_cut, saw_marker=saw_marker)


def _head_end(task: Task, text: str) -> int:
    """Where the explanation begins, if the answer says something before it, else the end: a list or an object
    behind that place is part of the explanation."""
    folded = fold(text)
    marker = _marker_pattern(task).search(folded)
    if marker is None or not _STRUCTURE.search(text):
        return len(text)
    head = read_prose(vocabulary_of(task), folded[: marker.start()].strip())
    return marker.start() if head.mentions else len(text)


def label_rows(task: Task) -> list[dict[str, Any]]:
    """The label set as plain data, for `mentalglm labels`."""
    return [
        {
            "slug": label.slug,
            "zh": label.zh,
            "en": label.en,
            "parent": label.parent,
            "aliases": [*label.aliases, *label.narrower],
        }
        for label in task.labels
    ]


def parse_row(task: Task, raw: str) -> dict[str, Any]:
    """A parsed answer as plain data, for `mentalglm parse`."""
    answer = parse_answer(task, with_thought_opened(raw))
    return {
        "status": answer.status,
        "labels": list(answer.labels),
        "labels_zh": _names_zh(task, answer),
        "parents": list(answer.parents),
        "explanation": answer.explanation,
        "reason": answer.reason,
        "flags": list(answer.flags),
    }


def _names_zh(task: Task, answer: ParsedAnswer) -> list[str]:
    """Chinese names in label-set order: a child as parent##child, a parent without a child by itself."""
    covered = {task.by_slug[slug].parent for slug in answer.labels}
    names = []
    for label in task.labels:
        if label.slug in answer.labels:
            prefix = f"{task.by_slug[label.parent].zh}{HIERARCHY_SEPARATOR}" if label.parent else ""
            names.append(prefix + label.zh)
        elif label.slug in answer.parents and label.slug not in covered:
            names.append(label.zh)
    return names


# --- Whose words


def _own_turn(text: str) -> str:
    """The model's own turn: without its thoughts, its leading role tokens and everything after the next one."""
    if "<" in text or "[" in text:
        text = _THOUGHT.sub("", text)
        text = text[match.end() :] if (match := _THOUGHT_END.match(text)) else text
        text = text[match.end() :] if (match := _USER_TURN.match(text)) else text
        start = 0
        while (match := _ROLE_TOKEN.match(text, _skip_blank(text, start))) is not None:
            start = match.end()
            role = re.compile(r"\s*(?:assistant|model)\s*\n").match(text, start)
            start = role.end() if role else start
        following = _ROLE_TOKEN.search(text, start)
        text = text[start : following.start() if following else len(text)]
    return text


def _skip_blank(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _without_prompt(task: Task, text: str) -> str:
    """`text` without the task's prompt, repeated before or after the answer."""
    folded = fold(text)
    before, _, after = (fold(part) for part in task.prompt.partition("{text}"))
    opening, question = before.strip(' “"'), after.strip(' ”"\n')
    if question and (at := folded.find(question)) >= 0:
        rest = text[at + len(question) :]
        prompt_start = found if 0 <= (found := folded.find(opening)) < at else at
        answer_first = any(token.entry.kind != "topic" for token in vocabulary_of(task).tokens(folded[:prompt_start]))
        return text[:prompt_start] if answer_first or not rest.strip(' ”"\n:：。') else rest
    if len(opening) >= 6 and (at := folded.find(opening)) >= 0:
        if folded[:at].strip():
            return text[:at]  # the answer, then the prompt again
        if not question:  # the question comes first, then the post, then the answer
            rest = text[at + len(opening) :]
            lead = task.answer.partition("{labels}")[0] if task.answer else ""
            if lead and lead in rest:
                return rest[rest.rindex(lead) :]
            return rest.partition("\n")[2]
    match = _ROLE_LINE.search(text)
    return text[: match.start()] if match and text[: match.start()].strip() else text


# --- Head and explanation


def _read_head(task: Task, text: str, folded: str) -> tuple[Findings, str | None, bool]:
    """Findings in the head, the explanation as written, and whether there was a marker."""
    vocabulary = vocabulary_of(task)
    marker = _marker_pattern(task).search(folded)
    head = folded[: marker.start() if marker else None].strip()
    found = read_prose(vocabulary, head)
    found.is_refused = _is_refused(task, head)
    if marker is None:
        return found, None, False
    explanation = text[marker.end() :].strip().strip("*").strip()
    if not found.mentions and not found.says_none:
        fields = list(grammar.ANSWER_FIELD.finditer(folded, marker.end()))
        if fields:  # reasoning first, then `标签：...`
            start = fields[-1].start()
            end_marker = _marker_pattern(task).search(folded, fields[-1].end())
            late = read_prose(
                vocabulary, folded[start : end_marker.start() if end_marker else len(folded)].strip(" \n。.;!,*")
            )
            if not late.is_empty:
                late.is_refused = found.is_refused
                return late, text[marker.end() : start].strip() or None, True
    elif found.cut is not None:
        found.cut = None  # what is followed by an explanation is complete
    found.ends_complete = True
    return found, explanation or None, True


def _is_refused(task: Task, head: str) -> bool:
    """Whether the head says `I cannot`, unless a plain statement of a label stands before that."""
    head = head[:_MAX_SCANNED]
    inability = grammar.INABILITY.search(head)
    if inability is None:
        return False
    first = next(vocabulary_of(task).tokens(head), None)
    if first is None or inability.start() < first.start:
        before = fold(task.answer or "").partition("{labels}")[0].strip()
        return not (before and before in head[inability.end() :])
    if first.surface in grammar.YES_NO or not re.search(r"[。.!?;\n]", head[first.end : inability.start()]):
        return True  # No, I cannot answer
    lead = head[: first.start].strip()
    templates = [task.answer, task.none_answer, *(label.answer for label in task.labels)]
    openings = [fold(each).partition("{labels}")[0].strip() for each in templates if each]
    is_plain = grammar.STATEMENT_LEAD.fullmatch(lead) or any(lead and each.startswith(lead) for each in openings)
    return not is_plain or re.match(r"的?\s*(?:内容|话题|content|topic)", head[first.end :]) is not None


def _marker_pattern(task: Task) -> re.Pattern[str]:
    """Where an explanation begins. A word that the task's own question or answers use (原因) is no marker there."""
    pattern = _MARKER_PATTERNS.get(task.digest)
    if pattern is None:
        own = fold(" ".join([task.prompt, task.answer or "", *(label.answer or "" for label in task.labels)]))
        anywhere = [*map(fold, task.markers), *(word for word in grammar.MARKER_WORDS["anywhere"] if word not in own)]
        clause = [word for word in grammar.MARKER_WORDS["clause"] if word not in own]
        anywhere = sorted({re.escape(word.strip(" :")) for word in anywhere}, key=len, reverse=True)
        clause = sorted(map(re.escape, clause), key=len, reverse=True)
        edge = r"(?:^|(?<=[\s。.;!?,、…)\]】*#_>“”\"'|:(【\[{\-]))"
        colon = r"(?:是|为|如下|在于)?[ \t]{0,4}[】\])*_”’\"]{0,4}[ \t]{0,4}(?:[:=]|\n|—|--?(?=\s))"
        pattern = re.compile(
            rf"(?:(?:判断|分析|具体)?(?:{'|'.join(anywhere)}){colon}|{edge}(?:{'|'.join(anywhere)})(?:是|为|"
            rf"如下|[,，】\])]|(?=[\u3400-\u9fff])(?!充分|不))"
            rf"|(?<=[。.;!?\n])[*#_【\[\- ]{{0,6}}(?:判断|分析|具体)?(?:{'|'.join(anywhere)})\s*\Z"
            rf"|{edge}(?:{'|'.join(clause)}){colon}|{edge}(?:{'|'.join(clause)})[】\]])"
            r"[\s:*_]*"
        )
        _MARKER_PATTERNS[task.digest] = pattern
    return pattern


_MARKER_PATTERNS: dict[str, re.Pattern[str]] = {}

# --- Judgement


def _judge(
    task: Task, found: Findings, explanation: str | None, folded: str, *, is_cut: bool, saw_marker: bool
) -> ParsedAnswer:
    """The status that the findings amount to."""
    labels = tuple(slug for slug in task.answerable if slug in found.asserted)
    covered = set(_parents_of(task, labels))
    alone = {slug for slug in found.parents if slug not in covered}
    parents = tuple(label.slug for label in task.labels if label.slug in covered | alone)
    if alone:
        found.flags.add("parent_only")
    if found.has_foreign:
        found.flags.add("out_of_set_label")
    all_denied = bool(found.denied) and task.kind in ("multilabel", "hierarchical") and _denies_all(task, found.denied)
    says_none = found.says_none or (all_denied and not labels)

    def end(status: Status, reason: str | None = None, *, with_labels: bool = False) -> ParsedAnswer:
        flags = set(found.flags) - {"undecided"}
        if reason == "no_label" and found.denied:
            flags.add("label_denied")
        if status == "ok":
            flags.add("free_form")  # else it would not have come here
            if is_cut:
                flags.add("explanation_truncated")
        kept = labels if with_labels else ()
        kept_parents = (parents if status == "ok" else _parents_of(task, labels)) if with_labels else ()
        return ParsedAnswer(status, kept, kept_parents, explanation, tuple(sorted(flags)), reason)

    if found.is_refused:
        return end("refused", "refusal")
    cut = found.cut or ("cut_in_list" if is_cut and not saw_marker and not found.ends_complete else None)
    if _is_echoed(task, len(labels)):
        return end("parse_failed", "label_list_echoed")
    contradicts = says_none and labels and labels != (task.negative,)  # no risk at all agrees with a low one
    if found.is_ambiguous or set(labels) & found.denied or contradicts:
        return end("parse_failed", "ambiguous")
    if len(labels) > 1 and task.kind in ("binary", "multiclass"):
        return end("parse_failed", "ambiguous")
    if labels and found.has_foreign and task.kind in ("binary", "multiclass"):
        return end("parse_failed", "ambiguous")
    if cut is not None:
        return end("truncated", cut, with_labels=True)
    if labels or alone:
        return end("ok", with_labels=True)
    if "out_of_set_label" in found.flags:
        return end("parse_failed", "out_of_set_label")
    if says_none:
        return end("ok", with_labels=True) if task.none_allowed else end("parse_failed", "no_label")
    if grammar.REFUSAL.search(folded[:_MAX_SCANNED]):
        return end("refused", "refusal")
    if is_cut and not saw_marker:
        return end("truncated", "cut_before_answer")
    return end("parse_failed", "no_label")


def _denies_all(task: Task, denied: set[Slug]) -> bool:
    tops = {label.slug for label in task.labels if label.parent is None}
    return tops <= denied or set(task.answerable) <= denied


def _is_echoed(task: Task, num_labels: int) -> bool:
    num_answerable = len(task.answerable)
    return num_answerable >= 6 and 4 * num_labels >= 3 * num_answerable


def _parents_of(task: Task, labels: Sequence[Slug]) -> tuple[Slug, ...]:
    parents = {task.by_slug[slug].parent for slug in labels}
    return tuple(label.slug for label in task.labels if label.slug in parents) if parents - {None} else ()


__all__ = [
    "PARSER_VERSION",
    "ParsedAnswer",
    "answer_heads",
    "candidate_answers",
    "find_marker",
    "head_pattern",
    "label_rows",
    "parse_answer",
    "parse_head",
    "parse_row",
    "render_answer",
    "with_thought_opened",
]
