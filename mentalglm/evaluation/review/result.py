"""`mentalglm review import`: what the experts said, how far they agree, and how runs compare."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mentalglm import storage
from mentalglm.config import ReviewConfig
from mentalglm.evaluation.bootstrap import interval, resampled_sums
from mentalglm.evaluation.metrics import Bits, Floats, Integers
from mentalglm.evaluation.review.agreement import (
    Resampling,
    intraclass_correlation,
    krippendorff_alpha,
    weighted_kappa,
)
from mentalglm.evaluation.review.dimensions import DIMENSIONS, OVERALL, SCORES
from mentalglm.evaluation.review.export import RATINGS, RESULT, read_key
from mentalglm.evaluation.review.plot import distributions
from mentalglm.evaluation.review.ratings import RatingFile, read_rating_files
from mentalglm.evaluation.review.table import markdown
from mentalglm.manifest import code_version

_NUM_SUMS = (len(SCORES) - 1) * len(DIMENSIONS) + 1
"""Values that the sum of the three scores can have: the overall score, in thirds."""


def import_ratings(
    config: ReviewConfig, files: Sequence[str] = (), *, partial: bool = False, edited: bool = False
) -> dict[str, Any]:
    """Reads the rating files (default: all in the folder `ratings`), writes the result beside them, and returns what
    `review.json` holds.

    Raises: InputError; see `read_rating_files`.
    """
    storage.configure(config.s3)
    key = read_key(config)
    folder = storage.join(config.output.uri, RATINGS)
    uris = list(files) or [storage.join(folder, name) for name in storage.list_names(folder) if name.endswith(".json")]
    found = read_rating_files(uris, key, partial=partial, edited=edited)
    review = Review(key, found, config.num_bootstrap)
    result = review.to_json()
    place = storage.join(config.output.uri, RESULT)
    storage.put(storage.join(place, "ratings.parquet"), _parquet(review, keep_comments=config.output.keep_comments))
    storage.put(
        storage.join(place, "review.json"), json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False).encode()
    )
    storage.put(storage.join(place, "review.md"), markdown(result).encode())
    storage.put(storage.join(place, "scores.svg"), distributions(result))
    return result


@dataclass(frozen=True)
class Group:
    """Items that are told of together."""

    task: str | None
    """None: all tasks."""
    run: str | None
    is_in: Bits
    """(num_items,)."""


class Review:
    """All ratings of a sample."""

    def __init__(self, key: Mapping[str, Any], files: Mapping[str, RatingFile], num_bootstrap: int) -> None:
        self.key, self.files, self.num_bootstrap = key, files, num_bootstrap
        self.items: list[dict[str, Any]] = key["items"]
        shape = (len(files), len(self.items))
        self.scores: dict[str, Floats] = {
            name: np.array(
                [[_score(file, item["id"], name) for item in self.items] for file in files.values()]
            ).reshape(shape)
            for name in DIMENSIONS
        }
        """Dimension -> (num_experts, num_items), NaN where there is no score."""
        self.scores[OVERALL] = np.mean(list(self.scores.values()), axis=0)
        ids = [item["post_id"] for item in self.items]
        self.posts: Integers = np.unique(ids, return_inverse=True)[1]
        """(num_items,): number of the post; its items are resampled together."""

    def to_json(self) -> dict[str, Any]:
        """What `review.json` holds. No text of a post, of an explanation or of a comment."""
        runs = list(self.key["runs"])
        return {
            "sample": self.key["sample"],
            "num_items": len(self.items),
            "num_posts": len(set(self.posts.tolist())),
            "experts": {name: self._expert(number, file) for number, (name, file) in enumerate(self.files.items())},
            "experts_without_file": [name for name in self.key["experts"] if name not in self.files],
            "groups": [self._told(group) for group in self.groups()],
            "comparisons": [self._comparison(*pair) for pair in combinations(runs, 2)],
            "num_bootstrap": self.num_bootstrap,
            "seed": self.key["seed"],
            "provenance": {
                "runs": self.key["runs"],
                "strata": self.key["strata"],
                "exported_with": self.key["versions"],
                "versions": code_version() | {"numpy": np.__version__},
                "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        }

    def groups(self) -> Iterator[Group]:
        """All; each task; each run; each run of each task; those alone that are not all of another one."""
        tasks, runs = list(dict.fromkeys(each["task"] for each in self.key["strata"])), list(self.key["runs"])
        for task in [None, *(tasks if len(tasks) > 1 else [])]:
            for run in [None, *(runs if len(runs) > 1 else [])]:
                found = [task in (None, item["task"]) and run in (None, item["run"]) for item in self.items]
                yield Group(task, run, np.array(found))

    def _expert(self, number: int, file: RatingFile) -> dict[str, Any]:
        return {
            "num_complete": file.num_complete(),
            "num_partial": sum(bool(each.scores) and not each.is_complete for each in file.ratings.values()),
            "num_comments": sum(bool(each.comment) for each in file.ratings.values()),
            "was_edited": file.was_edited,
            "saved_at": file.saved_at,
            "mean": {name: _mean(scores[number]) for name, scores in self.scores.items()},
        }

    def _told(self, group: Group) -> dict[str, Any]:
        return {
            "task": group.task,
            "run": group.run,
            "num_items": int(group.is_in.sum()),
            "scores": {name: self._described(name, scores, group) for name, scores in self.scores.items()},
            "agreement": {name: self._agreement(name, scores, group) for name, scores in self.scores.items()},
        }

    def _described(self, name: str, scores: Floats, group: Group) -> dict[str, Any]:
        values = scores[:, group.is_in]
        given = values[~np.isnan(values)]
        counts = {str(score): int((given == score).sum()) for score in SCORES}
        return {
            "num_ratings": len(given),
            "mean": _mean(given),
            "ci95": self._ends(np.nansum(values, axis=0), (~np.isnan(values)).sum(axis=0), self.posts[group.is_in]),
            "standard_deviation": float(given.std(ddof=1)) if len(given) > 1 else None,
            "quartiles": [float(each) for each in np.percentile(given, [25, 50, 75])] if len(given) else None,
            **({} if name == OVERALL else {"distribution": counts}),
        }

    def _ends(self, sums: Floats, counts: Floats, posts: Integers) -> list[float] | None:
        """Interval of sum / count, over posts."""
        if not self.num_bootstrap or len(np.unique(posts[counts != 0])) < 2:
            return None
        clusters = np.unique(posts, return_inverse=True)[1]
        drawn = resampled_sums(np.stack([sums, counts], axis=1), clusters, self.num_bootstrap, self.key["seed"])
        drawn = drawn[drawn[:, 1] != 0]
        return list(interval(drawn[:, 0] / drawn[:, 1]))

    def _agreement(self, name: str, scores: Floats, group: Group) -> dict[str, Any] | None:
        """None of one expert alone."""
        if len(self.files) < 2:
            return None
        clusters = np.unique(self.posts[group.is_in], return_inverse=True)[1]
        resampling = Resampling(self.num_bootstrap, self.key["seed"], clusters)
        values = scores[:, group.is_in]
        correlation = intraclass_correlation(values, resampling)
        found = {"icc_single": correlation["single"], "icc_average": correlation["average"]}
        if name == OVERALL:
            sums = np.round(values * len(DIMENSIONS))
            found["krippendorff_alpha"] = krippendorff_alpha(sums, _NUM_SUMS, "interval", resampling)
        else:
            found["krippendorff_alpha"] = krippendorff_alpha(values, len(SCORES), "ordinal", resampling)
            found["weighted_kappa"] = weighted_kappa(values, len(SCORES), resampling)
            if len(self.files) > 2:
                point = Resampling(0, 0, clusters)
                for (first, one), (second, other) in combinations(zip(self.files, values, strict=True), 2):
                    found[f"weighted_kappa: {first}, {second}"] = weighted_kappa(
                        np.stack([one, other]), len(SCORES), point
                    )
        return {statistic: asdict(each) for statistic, each in found.items()}

    def _comparison(self, run: str, other: str) -> dict[str, Any]:
        """Mean difference between two runs' explanations of the same posts, in the eyes of the same expert."""
        pairs: dict[tuple[str, str], dict[str, int]] = {}
        for number, item in enumerate(self.items):
            pairs.setdefault((item["task"], item["post_id"]), {})[item["run"]] = number
        one, two = (np.array([each[name] for each in pairs.values()]) for name in (run, other))
        found: dict[str, Any] = {}
        for name, scores in self.scores.items():
            differences = scores[:, one] - scores[:, two]
            counts = (~np.isnan(differences)).sum(axis=0)
            found[name] = {
                "num_pairs": int(counts.sum()),
                "difference": _mean(differences),
                "ci95": self._ends(np.nansum(differences, axis=0), counts, self.posts[one]),
            }
        return {"run": run, "minus": other, "scores": found}


def _score(file: RatingFile, item: str, dimension: Any) -> float:
    rating = file.ratings.get(item)
    return np.nan if rating is None else rating.scores.get(dimension, np.nan)


def _mean(values: Floats) -> float | None:
    given = values[~np.isnan(values)]
    return float(given.mean()) if len(given) else None


def _parquet(review: Review, *, keep_comments: bool) -> bytes:
    """A row for each rating."""
    rows = [
        {"expert": expert, **item, **rating.scores, "comment": rating.comment or None}
        for expert, file in review.files.items()
        for item in review.items
        if (rating := file.ratings.get(item["id"])) is not None
    ]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("expert", "id", "task", "run", "post_id")),
            ("labels", pa.list_(pa.string())),
            *((name, pa.int8()) for name in DIMENSIONS),
            *([("comment", pa.string())] if keep_comments else []),
        ]
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    return buffer.getvalue()
