"""The page in a real browser: quiet, complete without a network, readable on any screen, in light and dark."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mentalglm.config import ReportConfig
from mentalglm.report.job import write_report
from tests.report_runs import row, write_run
from tests.unit.report.test_page import ATTACK, KEPT, day, distortion_rows, hostile, metrics_of, risk_rows

__all__ = ["hostile"]  # the fixture

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

SCREENS = [(1400, "light"), (1400, "dark"), (390, "light"), (390, "dark")]
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((each) => each / 255);
  };
  const over = (top, below) => below.map((each, at) => top[at] * top[3] + each * (1 - top[3]));
  const luminance = (color) => {
    const [r, g, b] = color.map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const worst = [];
  for (const element of document.querySelectorAll('body *')) {
    const has_text = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!has_text || !element.checkVisibility()) continue;
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.push(rgba(getComputedStyle(each).backgroundColor));
    const ground = layers.reverse().reduce((below, top) => over(top, below), [1, 1, 1]);
    const style = getComputedStyle(element);
    const ink = over(rgba(element.closest('svg') ? style.fill : style.color), ground);
    const [high, low] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    worst.push([(high + 0.05) / (low + 0.05), element.tagName, element.textContent.slice(0, 40)]);
  }
  return worst.sort((a, b) => a[0] - b[0]).slice(0, 3);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two adapters with everything that a page may have: evaluations, a stage, failures, dates."""
    folder = tmp_path_factory.mktemp("report")
    rows = {}
    for at, name in enumerate(("trained", "base")):
        rows[f"suicide_risk/adapter={name}"] = risk_rows(300 + 40 * at, 640 - 40 * at, 60)
        rows[f"cognitive_distortion/adapter={name}"] = distortion_rows(
            {"labeling": 300, "mental_filter": 200, "magnification": 120 + 20 * at, "personalization": 4}, 376 - 20 * at
        )
    write_run(folder / "scored", rows, kept=KEPT, adapters=["trained", "base"])
    of = rows["suicide_risk/adapter=trained"]
    gold = {each["post_id"]: each["labels"] or ["low_risk"] for each in of}
    metrics = metrics_of("suicide_risk", gold, of, "scored")
    metrics["provenance"]["predictions"]["adapter"] = "trained"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    stage = folder / "trained" / "s1"
    stage.mkdir(parents=True)
    scores = [{"suicide_risk": 0.7 + at / 20, "cognitive_distortion": 0.4 + at / 20, "score": 0.6} for at in range(5)]
    record = {
        "name": "s1", "start_from": "base", "best_step": 40, "best_score": 0.6, "num_steps": 50, "seconds": 80.0,
        "fingerprint": {"tasks": {"suicide_risk": "0" * 64}, "train": {"digest": "1" * 64}, "model": "2" * 64},
        "validations": [{"step": 10 * at + 10, "scores": each, "seconds": 3.0, "error": None}
                        for at, each in enumerate(scores)],
        "data": {"num_train_records": 500, "num_validated_records": 60}, "unvalidated_tasks": [],
        "finished_at": "2026-11-27T00:00:00+00:00", "digest": "3" * 64, "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    (stage / "stage.json").write_text(json.dumps(record))
    lines = [json.dumps({"step": step, "loss": 3.0 / step}) for step in range(1, 51)]
    (stage / "metrics.jsonl").write_text("\n".join(lines))
    config = {
        "runs": [str(folder / "scored")],
        "evaluations": [str(folder)],
        "training": [str(folder / "trained")],
        "output": {"uri": str(folder / "report.html")},
    }
    return Path(write_report(ReportConfig.model_validate(config)))


def opened(browser: Any, file: Path, width: int = 1400, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and all that it has said or asked for."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (heard.append("dialog"), dialog.dismiss()))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    return page, heard


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_it_is_quiet_fits_the_screen_and_can_be_read(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page, heard = opened(browser, page_file, width, scheme)
    assert heard == [page_file.as_uri()], "nothing but the file itself"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for ratio, *where in page.evaluate(CONTRAST):
        assert ratio >= 4.5, where  # WCAG 2.2, 1.4.3, level AA
    page.context.close()


def test_links_headings_and_charts_are_whole(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file)
    broken = "[...document.querySelectorAll('a')].filter((a) => !document.getElementById(a.hash.slice(1))).length"
    assert page.evaluate(broken) == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))
    assert page.locator("h1").count() == 1
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((each) => +each.tagName[1])")
    assert all(after <= before + 2 for before, after in itertools.pairwise(levels))
    for svg in page.locator("svg").all():
        assert svg.get_attribute("role") == "img"
        assert len(svg.get_attribute("aria-label") or "") > 20
    assert page.locator("svg").count() >= 8
    for heading in (
        "What was run",
        "Posts over time",
        "Evaluation",
        "Agreement",
        "Throughput",
        "Training",
        "Provenance",
    ):
        assert page.get_by_role("heading", name=heading, exact=True).count() == 1, heading
    # Colours of charts are the page's: none of the placeholders is left.
    assert not re.search(r"#0000[0a][0-9]", page_file.read_text(encoding="utf-8"))
    page.context.close()


def test_names_of_runs_do_not_push_numbers_out_of_sight(browser: Any, tmp_path: Path) -> None:
    names = [f"chatglm3-6b-lora-r8-epochs-{number}-all-posts-of-2024-and-2025" for number in (1, 2)]
    runs = []
    for name in names:
        rows = distortion_rows({"labeling": 300, "mental_filter": 200}, 100)
        runs.append({"uri": str(write_run(tmp_path / name, {"cognitive_distortion": rows})), "name": name[:60]})
    config = {"runs": runs, "output": {"uri": str(tmp_path / "r.html")}}
    page, _ = opened(browser, Path(write_report(ReportConfig.model_validate(config))))
    out_of_sight = """() => {
      const area = document.querySelector('table.labels').closest('.scroll').getBoundingClientRect();
      return [...document.querySelectorAll('table.labels td')].filter(
        (each) => each.getBoundingClientRect().right > area.right + 1).length;
    }"""
    assert page.evaluate(out_of_sight) == 0
    page.context.close()


def test_a_wide_table_is_scrolled_with_the_keys(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file, width=390)
    area = page.locator(".scroll").filter(has=page.locator("table.heat")).first
    assert area.evaluate("(each) => each.scrollWidth > each.clientWidth")
    area.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(each) => each.scrollLeft > 0", arg=area.element_handle())
    assert page.get_by_role("region", name="Table: labels together").count() >= 1
    page.context.close()


def test_it_prints(browser: Any, page_file: Path, tmp_path: Path) -> None:
    page, _ = opened(browser, page_file)
    page.emulate_media(media="print")
    assert not page.locator("nav.toc").is_visible()
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    page.context.close()


def test_attacks_do_nothing(browser: Any, hostile: Path) -> None:
    target = hostile.parent / f"{ATTACK.replace('/', '')[:40]}.html"  # a file name as well
    config = {"runs": [str(hostile)], "output": {"uri": str(target)}, "num_examples": 3, "title": ATTACK}
    write_report(ReportConfig.model_validate(config))
    page, heard = opened(browser, target)
    assert heard == [target.as_uri()]
    assert page.locator("main script, main img, main iframe").count() == 0
    assert page.title() == ATTACK
    assert page.locator("blockquote").first.inner_text() == ATTACK
    page.context.close()


def test_small_cells_are_not_in_the_document_at_all(browser: Any, tmp_path: Path) -> None:
    """Neither as text nor in an attribute: 7 of 1,237 posts failed, 3 have a label."""
    rows = {
        "suicide_risk": risk_rows(411, 819, 7),
        "cognitive_distortion": [
            row(at, ["labeling"] if at < 600 else ["mind_reading"] if at < 603 else [], created_at=day(at))
            for at in range(1237)
        ],
    }
    write_run(tmp_path / "run", rows, kept=KEPT)
    config = {"runs": [str(tmp_path / "run")], "output": {"uri": str(tmp_path / "r.html")}}
    page, _ = opened(browser, Path(write_report(ReportConfig.model_validate(config))))
    told = page.evaluate(
        "[...document.querySelectorAll('main *:not(svg *)')].flatMap((each) => [...each.attributes].map((a) => a.value)"
        ".concat([...each.childNodes].filter((c) => c.nodeType === 3).map((c) => c.data.trim())))"
    )
    numbers = {number for each in told for number in re.findall(r"\d[\d,.]*\d", each)}
    assert not {"1,230", "1230", "819", "634", "99.4", "99.43", "66.2", "66.21", "51.3", "51.25"} & numbers
    cells = page.evaluate("[...document.querySelectorAll('td.n')].map((each) => each.textContent.trim())")
    assert not [each for each in cells if each.isdigit() and int(each) < 10]
    assert "1,228" in numbers
    page.context.close()
