"""Which explanations are rated: a stratified sample of the posts that every run has explained."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mentalglm.errors import ConfigError
from mentalglm.tasks import NO_LABEL, Task
from mentalglm.tasks.task import Slug


@dataclass(frozen=True, slots=True)
class Candidate:
    """A post that can be drawn for a task."""

    post_id: str
    text_hash: str
    labels: tuple[Slug, ...]
    """Parents too; `none` where no label applies."""


@dataclass(slots=True)
class Stratum:
    """Where a number of posts is drawn from."""

    task: str
    label: Slug | None
    """None: the whole task."""
    num_asked: int
    drawn: list[Candidate] = field(default_factory=list)


def rank(seed: int, *names: str) -> bytes:
    """A place in an order that follows from the seed and what is ordered, not from how it came."""
    return hashlib.blake2b("\0".join((str(seed), *names)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def draw(
    task: Task, candidates: Iterable[Candidate], size: int | Mapping[Slug, int], *, name: str, seed: int
) -> list[Stratum]:
    """So many posts of the task, or of each of its labels; no text twice. As many as there can be: where a label finds
    no more posts, it takes over one that another label can replace. The same candidates give the same sample in
    whatever order they come, and another number of posts of the task only adds some or leaves some out.

    Labels with the fewest candidates draw first, so that common ones do not use up the posts of rare ones.
    `candidates`: each post once; of these, no more are held than the sample can need.
    Raises: ConfigError where `size` names a label that the task does not have.
    """
    strata = _strata(task, size, name)
    firsts = [_Firsts(sum(stratum.num_asked for stratum in strata)) for _ in strata]
    for each in candidates:
        place = rank(seed, task.name, each.post_id)
        for stratum, first in zip(strata, firsts, strict=True):
            if stratum.label is None or stratum.label in each.labels:
                first.add(place, each)
    places = _Places([first.by_text() for first in firsts])
    for number in sorted(range(len(strata)), key=lambda number: firsts[number].num_seen):
        for _ in range(strata[number].num_asked):
            if not places.add(number, {number}):
                break
    for number, stratum in enumerate(strata):
        stratum.drawn = places.of(number)
    return strata


class _Firsts:
    """The candidates of one stratum that come first, one for each text: as many as the whole sample has places, since
    other strata can have taken all but one of them. A stratum of fewer texts is held in full."""

    def __init__(self, num_kept: int) -> None:
        self.num_kept = num_kept
        self.num_seen = 0
        self._kept: dict[str, tuple[bytes, Candidate]] = {}
        self._last: bytes | None = None
        """What comes after it is not needed."""

    def add(self, place: bytes, candidate: Candidate) -> None:
        self.num_seen += 1
        if self._last is not None and place > self._last:
            return
        kept = self._kept.get(candidate.text_hash)
        if kept is None or place < kept[0]:
            self._kept[candidate.text_hash] = place, candidate
        if len(self._kept) > 2 * self.num_kept:
            self._shorten()

    def by_text(self) -> dict[str, Candidate]:
        """In their order."""
        self._shorten()
        return {text: candidate for text, (_, candidate) in self._kept.items()}

    def _shorten(self) -> None:
        in_order = sorted(self._kept.items(), key=lambda item: item[1][0])
        self._kept = dict(in_order[: self.num_kept])
        if len(in_order) > self.num_kept:
            self._last = in_order[self.num_kept - 1][1][0]


class _Places:
    """Which stratum each drawn text is for. A text that is drawn once stays drawn; it may move to another stratum."""

    def __init__(self, by_text: Sequence[Mapping[str, Candidate]]) -> None:
        """`by_text`: for each stratum its texts, in their order."""
        self.by_text = by_text
        self.unseen = [iter(texts) for texts in by_text]
        self.stratum_of: dict[str, int] = {}

    def add(self, stratum: int, asked: set[int]) -> bool:
        """One text more for the stratum: the next that is free, else one of another stratum that can itself get one
        more (an augmenting path, so that in the end no larger sample exists). `asked`: strata not to ask again."""
        for text in self.unseen[stratum]:
            if text not in self.stratum_of:
                self.stratum_of[text] = stratum
                return True
        for text, other in self.stratum_of.items():
            if text in self.by_text[stratum] and other not in asked:
                asked.add(other)
                if self.add(other, asked):
                    self.stratum_of[text] = stratum
                    return True
        return False

    def of(self, stratum: int) -> list[Candidate]:
        """What is drawn for it, in the order of the candidates."""
        return [each for text, each in self.by_text[stratum].items() if self.stratum_of.get(text) == stratum]


def shortfalls(strata: Sequence[Stratum]) -> Iterator[str]:
    """What could not be drawn, a line for each stratum."""
    for each in strata:
        if len(each.drawn) < each.num_asked:
            where = each.task if each.label is None else f"{each.task}, {each.label}"
            yield f"{where}: asked for {each.num_asked} explained posts with different texts, found {len(each.drawn)}"


def _strata(task: Task, size: int | Mapping[Slug, int], name: str) -> list[Stratum]:
    if isinstance(size, int):
        return [Stratum(task.name, None, size)]
    known = [label.slug for label in task.labels] + ([NO_LABEL] if task.none_allowed else [])
    if unknown := [slug for slug in size if slug not in known]:
        raise ConfigError(f"sample.{name}: {unknown[0]!r} is no label of {task.name}; use {', '.join(known)}")
    return [Stratum(task.name, slug, number) for slug, number in size.items()]
