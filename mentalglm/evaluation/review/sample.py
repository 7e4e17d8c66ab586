"""Which explanations are rated: a stratified sample of the posts that every run has explained."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    task: Task, candidates: Sequence[Candidate], size: int | Mapping[Slug, int], *, name: str, seed: int
) -> list[Stratum]:
    """So many posts of the task, or of each of its labels; no text and no post twice. The same candidates give the same
    sample in whatever order they come, and another size only adds posts or leaves some out.

    Labels with the fewest candidates draw first, so that common ones do not use up the posts of rare ones.
    Raises: ConfigError where `size` names a label that the task does not have.
    """
    strata = _strata(task, size, name)
    order = sorted(candidates, key=lambda each: rank(seed, task.name, each.post_id))
    drawn: set[str] = set()
    drawn_ids: set[str] = set()
    by_scarcity = sorted(strata, key=lambda stratum: sum(_is_in(stratum)(each) for each in order))
    for stratum in by_scarcity:
        for each in filter(_is_in(stratum), order):
            if len(stratum.drawn) == stratum.num_asked:
                break
            if each.text_hash not in drawn and each.post_id not in drawn_ids:
                drawn.add(each.text_hash)
                drawn_ids.add(each.post_id)
                stratum.drawn.append(each)
    return strata


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


def _is_in(stratum: Stratum) -> Callable[[Candidate], bool]:
    return lambda candidate: stratum.label is None or stratum.label in candidate.labels
