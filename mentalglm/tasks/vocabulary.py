"""The closed vocabulary of a task: every name that an answer may use, compiled once into one matcher."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mentalglm.tasks.task import Label, Slug, Task
from mentalglm.tasks.text import fold

Kind = Literal["label", "parent", "topic", "foreign"]

QUOTES = "“”\"'‘’「」『』《》"
_SKIPPED = re.compile(rf"[\s\-{QUOTES}]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a name means."""

    kind: Kind
    slug: Slug
    """Of a label or parent; empty for topics and foreign labels."""
    strict: bool
    """Counts only where it stands as an item of the answer."""
    narrower: bool = False
    """The name is a finer label of another label set."""
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """A name found in an answer."""

    entry: Entry
    surface: str
    start: int
    end: int


class Vocabulary:
    """Finds the names of a task in folded text, longest first, never inside a longer word."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._entries: dict[str, Entry] = {}
        for label in task.labels:
            self._add_label(task, label)
        for name in task.topics:
            self._add(name, Entry("topic", "", strict=False))
        for name in task.foreign:
            self._add(name, Entry("foreign", "", strict=_is_everyday(name)))
        self._pattern = _compile(self._entries)
        is_yes_no = {label.slug for label in task.labels} == {"yes", "no"}
        self.opposite: dict[Slug, Slug] = {"yes": "no"} if is_yes_no else {}
        """Yes/no tasks: denying the statement is the answer no. No other label is ever the denial of one."""
        names = [fold(name) for label in task.labels for name in (label.zh, label.en)]
        self._prefixes = {name[:end] for name in names for end in range(1, len(name))}

    def tokens(self, text: str) -> Iterator[Token]:
        """Names in `text`, from left to right, not overlapping."""
        position = 0
        while match := self._pattern.search(text, position):
            start, end = match.span()
            surface = match.group()
            if start and _joined(text[start - 1], surface[0]):
                position = start + 1
                continue
            key = _key(surface)
            entry = self._entries.get(key) or self._entries.get(key.removesuffix("s"))
            assert entry is not None, "every alternative of the pattern is a key"
            yield Token(entry, surface, start, end)
            position = end

    def entry_of(self, text: str) -> Entry | None:
        """What `text` means when the whole of it is one name."""
        key = _key(fold(text))
        return self._entries.get(key) or self._entries.get(key.removesuffix("s"))

    def is_name_prefix(self, text: str) -> bool:
        """Whether `text` could be the beginning of a label name that goes on."""
        return text in self._prefixes

    def _add_label(self, task: Task, label: Label) -> None:
        kind: Kind = "parent" if task.kind == "hierarchical" and label.parent is None else "label"
        everyday = {_key(fold(name)) for name in label.ordinary}
        for names, narrower in (((label.zh, label.en, *label.aliases), False), (label.narrower, True)):
            for name in names:
                strict = _is_everyday(name) or _key(fold(name)) in everyday
                self._add(name, Entry(kind, label.slug, strict, narrower))
                for topic in task.topics:  # 高度自杀风险, 高度的自杀风险
                    if name.endswith(topic) and not name.isascii() and not name.removesuffix(topic).endswith("的"):
                        self._add(f"{name.removesuffix(topic)}的{topic}", Entry(kind, label.slug, strict, narrower))
        self._add(label.slug, Entry(kind, label.slug, strict=_is_everyday(label.slug)))
        self._add(label.slug.replace("_", " "), Entry(kind, label.slug, strict=_is_everyday(label.slug)))
        if label.code is not None:
            self._add(label.code, Entry(kind, label.slug, strict=True, is_code=True))

    def _add(self, name: str, entry: Entry) -> None:
        self._entries.setdefault(_key(fold(name)), entry)


def vocabulary_of(task: Task) -> Vocabulary:
    """The compiled vocabulary of `task`; made once per process."""
    vocabulary = _COMPILED.get(task.digest)
    if vocabulary is None:
        vocabulary = _COMPILED[task.digest] = Vocabulary(task)
    return vocabulary


_COMPILED: dict[str, Vocabulary] = {}


def spelling_key(name: str) -> str:
    """What is left of `name` for matching; names with one key are one name. May be empty."""
    return _key(fold(name))


def _key(folded: str) -> str:
    """What two spellings of a name share: hyphens, blanks and quotation marks do not count."""
    return _SKIPPED.sub("", folded)


def _is_everyday(name: str) -> bool:
    """Names this short are words of the language before they are labels."""
    key = _key(fold(name))
    return len(key) <= (4 if key.isascii() else 2)


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one Latin word or number."""
    if not (right.isascii() and right.isalnum() and left.isascii()):
        return False
    return left.isalnum() or left in "._" or (right.isdigit() and left in "+-")


def _compile(keys: Iterable[str]) -> re.Pattern[str]:
    by_first: dict[str, list[str]] = {}
    for key in sorted(keys, key=len, reverse=True):
        by_first.setdefault(key[0], []).append(key)
    return re.compile("|".join("(?:" + "|".join(map(_flexible, names)) + ")" for names in by_first.values()))


def _flexible(key: str) -> str:
    """A key as a pattern that lets blanks and hyphens stand between Latin letters and around a slash."""
    parts: list[str] = []
    for index, char in enumerate(key):
        if index and ((_is_latin(key[index - 1]) and _is_latin(char)) or "/" in (char, key[index - 1])):
            parts.append(r"\s*" if "/" in (char, key[index - 1]) else r"[\s\-'’]*")
        parts.append(re.escape(char))
    if _is_latin(key[-1]):
        parts.append(r"(?![.,/:]?\d|%)" if key[-1].isdigit() else "s?")
        parts.append(r"(?![a-z0-9_])")
    return "".join(parts)


def _is_latin(char: str) -> bool:
    return char.isascii() and char.isalnum()
