"""Export and import over files: what goes into pages and key, what comes back, what is refused."""

import copy
import json
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mentalglm.config import ReviewConfig
from mentalglm.errors import ConfigError, InputError
from mentalglm.evaluation.review import export, import_ratings, markdown
from mentalglm.evaluation.review.dimensions import DIMENSIONS
from mentalglm.evaluation.review.ratings import checksum
from tests.reviews import RUNS, review_config, write_demo_runs

SAMPLE = {"suicide_risk": 3, "cognitive_distortion": 4, "cognitive_pathway": {"activating_event": 4, "none": 1}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_demo_runs(folder)
    return folder


@pytest.fixture
def config(runs: Path, tmp_path: Path) -> ReviewConfig:
    return review_config(runs, sample=SAMPLE, output={"uri": str(tmp_path / "review")})


def shown(page: str) -> dict[str, Any]:
    """The data in a page."""
    found: dict[str, Any] = json.loads(page.split('id="data">')[1].split("</script>")[0])
    return found


def write_ratings(
    config: ReviewConfig,
    expert: str,
    score: Callable[[int, str], int | None],
    changes: dict[str, Any] | None = None,
    *,
    seal: bool = True,
) -> Path:
    """A file as the page of `expert` saves it. `score`: of the number of an item in the key, and a dimension."""
    folder = Path(config.output.uri)
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    ratings = {
        item["id"]: {name: value for name in DIMENSIONS if (value := score(number, name)) is not None}
        for number, item in enumerate(key["items"])
    }
    ratings = {item: rating for item, rating in ratings.items() if rating}
    content = {
        "format": key["format"],
        "sample": key["sample"],
        "expert": expert,
        "saved_at": "2026-11-27T02:22:14.672Z",
        "ratings": ratings,
    }
    content["checksum"] = checksum(key["sample"], expert, content["saved_at"], ratings)
    content |= copy.deepcopy(changes or {})
    if seal and changes and all(isinstance(each, dict) for each in dict(content["ratings"]).values()):
        content["checksum"] = checksum(content["sample"], content["expert"], content["saved_at"], content["ratings"])
    (folder / "ratings").mkdir(exist_ok=True)
    path = folder / "ratings" / f"{expert}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def scored(number: int, dimension: str) -> int:
    return (number + len(dimension)) % 4


def test_pages_hold_what_is_rated_and_nothing_that_tells_whose_it_is(config: ReviewConfig, runs: Path) -> None:
    found = export(config)
    assert (found.num_items, len(found.pages)) == (24, 2)
    pages = [Path(page).read_text(encoding="utf-8") for page in found.pages]
    key = json.loads(Path(found.key).read_text(encoding="utf-8"))
    texts = pq.read_table(runs / "posts.parquet").to_pylist()
    for page in pages:
        data = shown(page)
        assert len(data["items"]) == 24
        assert data["sample"] == key["sample"] == found.digest
        assert data["items"][0].keys() == {"id", "task", "language", "post", "labels", "explanation"}
        for secret in (*RUNS, "0.87", "-9b", str(runs), *(row["post_id"] for row in texts)):
            assert secret not in page
        assert "http" not in page.replace('meta http-equiv="Content-Security-Policy"', "")
    orders = [[item["id"] for item in shown(page)["items"]] for page in pages]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [item["id"] for item in key["items"]]
    by_id = {item["id"]: item for item in key["items"]}
    assert {item["run"] for item in by_id.values()} == set(RUNS)
    for order in orders:  # every post once before any comes again
        posts = [by_id[each]["post_id"] for each in order]
        num_before = [posts[:number].count(post) for number, post in enumerate(posts)]
        assert num_before == sorted(num_before)
        assert {by_id[each]["run"] for each in order[: num_before.count(0)]} == set(RUNS)
    assert not any(row["text"] in json.dumps(key, ensure_ascii=False) for row in texts)
    labels = [path for item in shown(pages[0])["items"] for path in item["labels"]]
    assert any(path["zh"][0] == "触发性事件" and len(path["zh"]) == len(path["en"]) == 2 for path in labels)


def test_the_same_command_writes_the_same_and_never_another_sample_in_its_place(config: ReviewConfig) -> None:
    first = export(config)
    before = [Path(path).read_bytes() for path in (*first.pages, first.key)]
    assert export(config) == first
    assert [Path(path).read_bytes() for path in (*first.pages, first.key)] == before
    other = config.model_copy(update={"seed": 1})
    assert export(other, dry_run=True).digest != first.digest
    with pytest.raises(ConfigError, match="is of another sample"):
        export(other)


def test_a_dry_run_writes_nothing_and_shortfalls_are_told(config: ReviewConfig) -> None:
    found = export(config.model_copy(update={"sample": {"suicide_risk": 5000}}), dry_run=True)
    assert found.pages == ()
    assert not Path(config.output.uri).exists()
    assert [each.partition(":")[0] for each in found.warnings()] == ["suicide_risk"]
    assert "warning" not in "".join(found.describe())


def test_posts_that_are_not_those_that_were_scored_are_refused(
    config: ReviewConfig, runs: Path, tmp_path: Path
) -> None:
    table = pq.read_table(runs / "posts.parquet").to_pandas()
    table["text"] += "。改"
    table.to_parquet(tmp_path / "changed.parquet")
    changed = ReviewConfig.model_validate(config.model_dump() | {"posts": {"uri": str(tmp_path / "changed.parquet")}})
    with pytest.raises(InputError, match=r"posts: 12 of 12 posts are not there .* posts\.uri"):
        export(changed)
    assert not Path(config.output.uri).exists()


def test_labels_that_the_task_does_not_have_are_named_and_do_not_block_the_folder(
    config: ReviewConfig, runs: Path, tmp_path: Path
) -> None:
    copied = tmp_path / RUNS[1]
    shutil.copytree(runs / RUNS[1], copied)
    part = copied / "data" / "task=suicide_risk" / "part-0.parquet"
    table = pq.read_table(part)
    labels = pa.array([["old_label"]] * len(table), pa.list_(pa.string()))
    pq.write_table(table.set_column(table.column_names.index("labels"), "labels", labels), part)
    changes = {"runs": {RUNS[0]: {"uri": str(runs / RUNS[0])}, RUNS[1]: {"uri": str(copied)}}}
    changed = ReviewConfig.model_validate(config.model_dump() | changes)
    with pytest.raises(InputError, match=r"beta_system has labels that suicide_risk does not have: old_label; "):
        export(changed)
    assert not Path(config.output.uri).exists()
    pq.write_table(table, part)
    assert export(changed).pages


def test_a_page_that_cannot_be_made_leaves_no_key(config: ReviewConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise KeyError("old_label")

    monkeypatch.setattr(sys.modules[export.__module__], "render_page", fail)
    with pytest.raises(KeyError):
        export(config)
    assert not Path(config.output.uri).exists()


def test_posts_that_the_runs_do_not_share_are_not_drawn(config: ReviewConfig, runs: Path, tmp_path: Path) -> None:
    for run, change in zip(RUNS, (twice, otherwise), strict=True):
        shutil.copytree(runs / run, tmp_path / run)
        part = tmp_path / run / "data" / "task=suicide_risk" / "part-0.parquet"
        pq.write_table(pa.Table.from_pylist(change(pq.read_table(part).to_pylist()), pq.read_schema(part)), part)
    changes = {"runs": {run: {"uri": str(tmp_path / run)} for run in RUNS}, "sample": {"suicide_risk": 5000}}
    found = export(ReviewConfig.model_validate(config.model_dump() | changes))
    ids = [row["post_id"] for row in pq.read_table(runs / "posts.parquet").to_pylist()]
    key = json.loads(Path(found.key).read_text(encoding="utf-8"))
    assert sorted(item["post_id"] for item in key["items"]) == sorted([*ids[4:], *ids[4:]])
    assert list(key["runs"]) == list(RUNS)


def twice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first post again, as it is; the second one with another text."""
    return [*rows, rows[0], rows[1] | {"text_hash": "0" * 64}]


def otherwise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The third post with another text, the fourth without an explanation."""
    return [*rows[:2], rows[2] | {"text_hash": "0" * 64}, rows[3] | {"explanation": " "}, *rows[4:]]


def test_an_import_tells_scores_agreement_and_differences(config: ReviewConfig) -> None:
    export(config)
    key = json.loads((Path(config.output.uri) / "key.json").read_text(encoding="utf-8"))
    better = [number for number, item in enumerate(key["items"]) if item["run"] == RUNS[1]]
    for expert, off in (("expert_a", 0), ("expert_b", 1)):
        write_ratings(
            config,
            expert,
            lambda number, name, off=off: 2 + (number in better) if name != "reliability" else (number + off) % 4,
        )  # type: ignore[misc]
    result = import_ratings(config)
    folder = Path(config.output.uri) / "result"
    assert json.loads((folder / "review.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert (folder / "review.md").read_text(encoding="utf-8") == markdown(result)
    assert len(result["groups"]) == 12
    everything = result["groups"][0]
    scores = everything["scores"]["consistency"]
    assert (scores["num_ratings"], scores["mean"], scores["quartiles"]) == (48, 2.5, [2, 2.5, 3])
    assert scores["distribution"] == {"0": 0, "1": 0, "2": 24, "3": 24}
    agreement = everything["agreement"]
    assert {name: each["value"] for name, each in agreement["consistency"].items()} == pytest.approx(
        dict.fromkeys(["icc_single", "icc_average", "krippendorff_alpha", "weighted_kappa"], 1)
    )
    assert agreement["reliability"]["weighted_kappa"]["value"] < 0.5
    assert "weighted_kappa" not in agreement["overall"]
    of_run = next(each for each in result["groups"] if (each["task"], each["run"]) == (None, RUNS[1]))
    assert of_run["agreement"]["consistency"]["krippendorff_alpha"] == {
        "value": None,
        "ci95": None,
        "num_items": 12,
        "reason": "the scores vary too little to tell agreement from chance",
    }
    [comparison] = result["comparisons"]
    assert (comparison["run"], comparison["minus"]) == RUNS
    assert comparison["scores"]["professionality"] == {"num_pairs": 24, "difference": -1, "ci95": [-1, -1]}
    picture = ET.fromstring((folder / "scores.svg").read_text(encoding="utf-8"))
    assert picture.tag.endswith("svg")
    table = pq.read_table(folder / "ratings.parquet")
    assert (table.num_rows, set(table["run"].to_pylist())) == (48, set(RUNS))
    assert "comment" not in table.column_names
    told = markdown(result)
    assert "| all | alpha_system | 12 | 2.00 [2.00, 2.00], 2 |" in told
    assert "the scores vary too little" in told


def test_comments_are_kept_where_asked_for(config: ReviewConfig) -> None:
    asked = ReviewConfig.model_validate(
        config.model_dump() | {"output": config.output.model_dump() | {"keep_comments": True}}
    )
    export(asked)
    key = json.loads((Path(config.output.uri) / "key.json").read_text(encoding="utf-8"))
    rating = dict.fromkeys(DIMENSIONS, 1) | {"comment": "他说“不”\ud83d"}
    write_ratings(asked, "expert_a", scored, {"ratings": {key["items"][0]["id"]: rating}})
    result = import_ratings(asked, partial=True)
    assert result["experts"]["expert_a"] | {"mean": 0, "saved_at": 0} == {
        "num_complete": 1, "num_partial": 0, "num_comments": 1, "was_edited": False, "saved_at": 0, "mean": 0
    }  # fmt: skip
    table = pq.read_table(Path(config.output.uri) / "result" / "ratings.parquet")
    assert table["comment"].to_pylist() == ["他说“不”\ufffd"]
    assert "他说" not in json.dumps(result, ensure_ascii=False)
    assert result["groups"][0]["agreement"]["consistency"] is None
    assert "Of one expert there is none to tell." in markdown(result)


def test_three_experts_and_missing_scores(config: ReviewConfig) -> None:
    three = ReviewConfig.model_validate(config.model_dump() | {"experts": ["a", "b", "c"]})
    export(three)
    write_ratings(three, "a", scored)
    write_ratings(three, "b", lambda number, name: None if number % 5 == 0 else scored(number, name))
    write_ratings(three, "c", lambda number, name: None if name == "reliability" else scored(number + number % 2, name))
    with pytest.raises(InputError, match=r"b\.json: 19 of 24 items have all their scores; .* --partial"):
        import_ratings(three)
    result = import_ratings(three, partial=True)
    assert [each["num_partial"] for each in result["experts"].values()] == [0, 0, 24]
    agreement = result["groups"][0]["agreement"]
    assert agreement["consistency"]["icc_single"]["num_items"] == 19
    assert agreement["consistency"]["krippendorff_alpha"]["num_items"] == 24
    assert agreement["consistency"]["weighted_kappa: a, b"]["value"] == pytest.approx(1)
    assert agreement["reliability"]["icc_single"]["value"] is None
    assert agreement["reliability"]["icc_single"]["reason"]
    assert "NaN" not in (Path(config.output.uri) / "result" / "review.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is no file of ratings"),
        ({"ratings": []}, "is no file of ratings"),
        ({"ratings": {"i01": 3}}, "is no file of ratings"),
        ({"sample": "0" * 64}, "is of another sample"),
        ({"expert": "nobody"}, "expert = 'nobody' is none of this review; it has expert_a, expert_b"),
        (
            {"saved_at": "2026 | <img src=x>\n\n# injected"},
            r"saved_at = '2026 \| <img src=x>\\n\\n# injected' is no date",
        ),
        ({"saved_at": ""}, "saved_at = '' is no date and time; give one like"),
        ({"ratings": {"i99": {"consistency": 1}}}, "'i99' is no item of this review"),
        ({"ratings": {"i01": {"consistency": 4}}}, r"i01\.consistency is out of range; use a whole number from 0 to 3"),
        ({"ratings": {"i01": {"consistency": True}}}, "out of range"),
        ({"ratings": {"i01": {"consistency": "3"}}}, "out of range"),
        ({"ratings": {"i01": {"beauty": 1}}}, "is no dimension"),
        ({"ratings": {"i01": {"comment": 7}}}, "is no text"),
    ],
)
def test_a_file_that_is_not_right_is_refused_by_name(config: ReviewConfig, changes: Any, message: str) -> None:
    export(config)
    path = write_ratings(config, "expert_a", scored, changes)
    with pytest.raises(InputError, match=message) as caught:
        import_ratings(config, [str(path)], partial=True, edited=True)
    assert path.name in str(caught.value)
    assert not (Path(config.output.uri) / "result").exists()


def test_edited_files_and_second_files_of_an_expert_are_found(config: ReviewConfig) -> None:
    export(config)
    write_ratings(config, "expert_a", scored)
    edited = write_ratings(config, "expert_b", scored, {"ratings": {"i01": {"consistency": 3}}}, seal=False)
    with pytest.raises(InputError, match="has been changed since the page saved it"):
        import_ratings(config, partial=True)
    assert import_ratings(config, partial=True, edited=True)["experts"]["expert_b"]["was_edited"]
    write_ratings(config, "expert_b", scored, {"saved_at": "2026-11-28\n02:22:14.672Z"}, seal=False)
    with pytest.raises(InputError, match="has been changed since the page saved it"):
        import_ratings(config)
    found = import_ratings(config, edited=True)["experts"]["expert_b"]
    assert (found["was_edited"], found["saved_at"]) == (True, "2026-11-28T02:22:14+00:00")
    again = edited.with_name("again.json")
    write_ratings(config, "expert_b", scored).rename(again)
    write_ratings(config, "expert_b", scored)
    with pytest.raises(InputError, match="expert_b has another file"):
        import_ratings(config)
    with pytest.raises(InputError, match="no such file"):
        import_ratings(config, [str(again), "missing.json"])
    again.write_bytes(b"\xff")
    with pytest.raises(InputError, match="is no file of ratings"):
        import_ratings(config)


def test_without_an_export_or_files_it_says_what_to_do(config: ReviewConfig) -> None:
    with pytest.raises(InputError, match="run `mentalglm review export` first"):
        import_ratings(config)
    export(config)
    with pytest.raises(InputError, match="ratings: there are none"):
        import_ratings(config)
