"""`mentalglm review export`: a sample of finished runs as one page for each expert, and the key to it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mentalglm import storage
from mentalglm.config import PostsConfig, ReviewConfig, ReviewedRunConfig
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.posts import read_posts
from mentalglm.evaluation.predictions import Predictions, StoredPredictions, find_predictions
from mentalglm.evaluation.review.page import FORMAT, Item, render_page
from mentalglm.evaluation.review.sample import Candidate, Stratum, draw, rank, shortfalls
from mentalglm.manifest import code_version
from mentalglm.tasks import NO_LABEL, Task, load_task

KEY, PAGES, RATINGS, RESULT = "key.json", "pages", "ratings", "result"
"""Names in the output folder."""
WARNING = (
    "the pages hold the texts of posts: give each to its expert alone, over a safe way, and delete them when the "
    f"review is over. {KEY} tells which explanation is whose: keep it"
)

_NEEDED = ("post_id", "labels", "text_hash")
_COLUMNS = (*_NEEDED, "parents")
_TEXT = ("post_id", "text_hash")
Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Export:
    """What was drawn, and where it went."""

    strata: tuple[Stratum, ...]
    num_items: int
    digest: str
    """Of what is rated: pages, rating files and key of one sample have the same."""
    pages: tuple[str, ...]
    """Their addresses, one for each expert; none after a dry run."""
    key: str

    def describe(self) -> Iterator[str]:
        """Lines for people."""
        for each in self.strata:
            where = each.task if each.label is None else f"{each.task}, {each.label}"
            yield f"{where}: {len(each.drawn)} of {each.num_asked} posts"
        yield f"{self.num_items} explanations, sample {self.digest[:12]}"
        yield from (f"page: {page}" for page in self.pages)
        if self.pages:
            yield f"key: {self.key}"

    def warnings(self) -> Iterator[str]:
        """What people must know."""
        yield from shortfalls(self.strata)
        if self.pages:
            yield WARNING


def export(config: ReviewConfig, *, dry_run: bool = False) -> Export:
    """Draws the sample and writes pages and key; with `dry_run` writes nothing. The same command writes the same again.

    Raises: ConfigError, InputError; also where the folder holds another sample, whose ratings would fit no key.
    """
    storage.configure(config.s3)
    drawn: list[tuple[Task, Candidate]] = []
    strata: list[Stratum] = []
    provenance: dict[str, dict[str, Any]] = {}
    for name, size in config.sample.items():
        task = load_task(name)
        if any(task.name == each.task for each in strata):
            raise ConfigError(f"sample.{name}: {task.name} is named twice; name each task once")
        of_task = draw(task, _candidates(task, config.runs, provenance), size, name=name, seed=config.seed)
        strata += of_task
        drawn += [(task, candidate) for stratum in of_task for candidate in stratum.drawn]
    if not drawn:
        raise InputError("runs: no post of the sample is explained by every run; see to `explain` of the score jobs")
    items = _items(config, drawn)
    digest = _digest(items)
    pages = {expert: storage.join(config.output.uri, PAGES, f"{expert}.html") for expert in config.experts}
    key = storage.join(config.output.uri, KEY)
    found = Export(tuple(strata), len(items), digest, () if dry_run else tuple(pages.values()), key)
    if dry_run:
        return found
    _check_same(key, digest)
    told = _key(config, found, items, provenance)
    rendered = {
        page: render_page(
            digest, expert, _order(items, config.seed, expert), language=config.language, contact=config.contact
        )
        for expert, page in pages.items()
    }
    # The key last of what can fail and first of what is written: it holds the folder, so none without pages may stay.
    storage.put(key, json.dumps(told, ensure_ascii=False, indent=1).encode())
    for page, html in rendered.items():
        storage.put(page, html.encode())
    return found


def read_key(config: ReviewConfig) -> dict[str, Any]:
    """The key that `export` wrote. Raises: InputError where there is none."""
    place = storage.join(config.output.uri, KEY)
    data = storage.read_bytes(place)
    try:
        key: dict[str, Any] = json.loads(data or b"")
        if key["format"] == FORMAT:
            return key
    except (ValueError, TypeError, KeyError):
        pass
    raise InputError(f"output.uri: {place} is not there, or no key of a review; run `mentalglm review export` first")


def _explained(
    run: ReviewedRunConfig, task: Task, columns: Sequence[str], only: Sequence[str] | None = None
) -> StoredPredictions:
    """The rows of a run that have an explanation."""
    found = find_predictions(run.uri, task, run.adapter, only, columns=columns, which="explained")
    if missing := [column for column in _NEEDED if column in columns and column not in found.columns]:
        raise InputError(f"runs: {run.uri} has no column {', '.join(missing)}; give a run, or Parquet like one")
    return found


def _candidates(
    task: Task, runs: Mapping[str, ReviewedRunConfig], provenance: dict[str, dict[str, Any]]
) -> Iterator[Candidate]:
    """The posts that every run has explained, each with the same text; labels are those of the first run. Ids that come
    twice are left out. Puts what made each run into `provenance`.

    Of each explained post there are but eight bytes in memory, so that two different posts are taken for one with a
    chance of one in thousands, even of a hundred million; then both are left out.
    """
    first, *others = runs.items()
    shared: Digests | None = None
    for run, each in others:
        once, provenance[run] = _texts_once(task, each)
        shared = once if shared is None else np.intersect1d(shared, once, assume_unique=True)
    once = _once(_digests(batch, "post_id") for batch in _explained(first[1], task, ["post_id"]).batches())
    found = _explained(first[1], task, _COLUMNS)
    provenance[first[0]] = found.provenance
    for batch in found.batches():
        is_shared = _is_in(_digests(batch, "post_id"), once)
        if shared is not None:
            is_shared &= _is_in(_digests(batch, *_TEXT), shared)
        for row in batch.filter(pa.array(is_shared)).to_pylist():
            labels = (*(row["labels"] or ()), *(row.get("parents") or ()))
            yield Candidate(str(row["post_id"]), row["text_hash"], labels or (NO_LABEL,))


def _texts_once(task: Task, run: ReviewedRunConfig) -> tuple[Digests, dict[str, Any]]:
    """Ids with their texts that do not come twice in the run, and what made it."""
    found = _explained(run, task, _TEXT)
    return _once(_digests(batch, *_TEXT) for batch in found.batches()), found.provenance


def _digests(batch: pa.RecordBatch, *names: str) -> Digests:
    """A number for each row: the same where the columns hold the same, as text."""
    columns = [batch[name].cast(pa.string()).to_pylist() for name in names]
    spelled = (repr(row).encode("utf-8", "surrogatepass") for row in zip(*columns, strict=True))
    numbers = (int.from_bytes(hashlib.blake2b(each, digest_size=8).digest()) for each in spelled)
    return np.fromiter(numbers, np.uint64, len(batch))


def _once(parts: Iterable[Digests]) -> Digests:
    """Those that do not come twice, in ascending order."""
    digests = np.concatenate([np.empty(0, np.uint64), *parts])
    digests.sort()
    is_new = np.concatenate([[True], digests[1:] != digests[:-1], [True]])
    found: Digests = digests[is_new[:-1] & is_new[1:]] if len(digests) else digests
    return found


def _is_in(digests: Digests, ascending: Digests) -> npt.NDArray[np.bool_]:
    places = np.searchsorted(ascending, digests)
    places[places == len(ascending)] = 0
    return ascending[places] == digests if len(ascending) else np.zeros(len(digests), bool)


def _items(config: ReviewConfig, drawn: Sequence[tuple[Task, Candidate]]) -> list[Item]:
    """One for each drawn post and run, numbered in an order of chance."""
    texts: dict[tuple[str, str], str] = {}
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for task in {task.name: task for task, _ in drawn}.values():
        hashes = {candidate.post_id: candidate.text_hash for each, candidate in drawn if each.name == task.name}
        for number, (name, run) in enumerate(config.runs.items()):
            columns = (*_COLUMNS, "explanation", *(["text"] if number == 0 else []))
            found = _with_text_ids(_explained(run, task, columns, list(hashes)).read())
            of_posts = [row for row in found.table.to_pylist() if hashes[row["post_id"]] == row["text_hash"]]
            _check_labels(task, run.uri, of_posts)
            rows |= {(task.name, name, row["post_id"]): row for row in of_posts}
            if number == 0:
                of_task = read_posts(config.posts, found)
                of_task = read_posts(PostsConfig(), found) if of_task is None else of_task
                texts |= {(task.name, post_id): text for post_id, text in (of_task or {}).items()}
    if missing := [each.post_id for task, each in drawn if (task.name, each.post_id) not in texts]:
        raise InputError(
            f"posts: {len(missing)} of {len(drawn)} posts are not there with the text that was scored "
            f"({', '.join(missing[:5])}); name the input of the run with posts.uri, posts.id_column, posts.text_column"
        )
    chosen = [(task, name, each) for task, each in drawn for name in config.runs]
    chosen.sort(key=lambda which: rank(config.seed, "item", which[0].name, which[2].post_id, which[1]))
    width = len(str(len(chosen)))
    items = []
    for number, (task, name, each) in enumerate(chosen, 1):
        row = rows[task.name, name, each.post_id]
        items.append(
            Item(
                id=f"i{number:0{width}}",
                task=task,
                run=name,
                post_id=each.post_id,
                labels=tuple(row["labels"] or ()),
                parents=tuple(row.get("parents") or ()),
                explanation=row["explanation"].strip(),
                text=texts[task.name, each.post_id],
            )
        )
    return items


def _with_text_ids(found: Predictions) -> Predictions:
    ids = found.table["post_id"].cast(pa.string())
    return replace(found, table=found.table.set_column(found.table.column_names.index("post_id"), "post_id", ids))


def _check_labels(task: Task, uri: str, rows: Sequence[Mapping[str, Any]]) -> None:
    slugs = {slug for row in rows for slug in (*(row["labels"] or ()), *(row.get("parents") or ()))}
    if unknown := sorted(slugs - task.by_slug.keys()):
        raise InputError(
            f"runs: {uri} has labels that {task.name} does not have: {', '.join(unknown)}; score it again with the "
            "task as it is now, or review it with the task that it was scored with"
        )


def _order(items: Sequence[Item], seed: int, expert: str) -> list[Item]:
    """By chance, in rounds: every post once, then those again that are there for another run or task. So nobody sees
    two explanations of one post side by side."""
    num_before: Counter[str] = Counter()
    rounds: dict[str, int] = {}
    shuffled = sorted(items, key=lambda item: rank(seed, expert, item.id))
    for item in shuffled:
        rounds[item.id] = num_before[item.post_id]
        num_before[item.post_id] += 1
    return sorted(shuffled, key=lambda item: rounds[item.id])


def _digest(items: Sequence[Item]) -> str:
    shown = [[each.id, each.task.name, each.labels, each.parents, each.explanation, each.text] for each in items]
    return hashlib.sha256(json.dumps([FORMAT, shown]).encode()).hexdigest()


def _key(
    config: ReviewConfig, found: Export, items: Sequence[Item], provenance: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "sample": found.digest,
        "seed": config.seed,
        "experts": config.experts,
        "runs": {run: {**config.runs[run].model_dump(), **provenance[run]} for run in config.runs},
        "strata": [
            {"task": each.task, "label": each.label, "num_asked": each.num_asked, "num_drawn": len(each.drawn)}
            for each in found.strata
        ],
        "items": [
            {
                "id": each.id,
                "task": each.task.name,
                "run": each.run,
                "post_id": each.post_id,
                "labels": [*each.parents, *each.labels],
            }
            for each in items
        ],
        "versions": code_version(),
    }


def _check_same(key: str, digest: str) -> None:
    data = storage.read_bytes(key)
    if data is not None and f'"sample": "{digest}"'.encode() not in data:
        raise ConfigError(
            f"output.uri: {key} is of another sample, whose ratings would fit no key then; name another folder"
        )
