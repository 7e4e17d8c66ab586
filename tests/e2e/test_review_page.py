"""The page that experts rate in, used in a real browser without a network, and what it saves imported again."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from mentalglm.corpus.synthetic import generate_posts
from mentalglm.errors import InputError
from mentalglm.evaluation.review import export, import_ratings
from mentalglm.evaluation.review.export import Export
from tests.reviews import RUNS, review_config, write_demo_runs, write_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)")

DIMENSIONS = ("consistency", "reliability", "professionality")
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<!--<script>",
    "{{ 7 * 7 }} ]]> &lt;b&gt; \u2028 \\u003c",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that has seen nothing, offline; any request but that of the page itself fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 800})
    requests: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    yield context
    context.close()
    assert all(url.startswith(("file://", "blob:")) for url in requests), requests


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Export]:
    """Folder and export of four items."""
    folder = tmp_path_factory.mktemp("review")
    write_demo_runs(folder)
    return folder, export(review_config(folder, contact="研究组 <b>组长</b>"))


def opened(context: BrowserContext, review: tuple[Path, Export], expert: int = 0, *, reads_guide: bool = False) -> Page:
    """The page of an expert, the guide closed unless it is to be read."""
    page = context.new_page()
    page.errors = []  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.errors.append(str(error)))  # type: ignore[attr-defined]
    page.on("console", lambda line: page.errors.append(line.text) if line.type == "error" else None)  # type: ignore[attr-defined]
    page.goto(Path(review[1].pages[expert]).as_uri())
    if not reads_guide and page.get_by_role("dialog").is_visible():
        page.keyboard.press("Escape")
        expect(page.locator("fieldset :focus")).to_be_attached()  # where the page puts it once the guide is closed
    return page


def rate(page: Page, *scores: int) -> None:
    """Scores, and on to the next item, by keys alone."""
    for key in [*map(str, scores), "Enter"]:
        page.keyboard.press(key)


def saved(page: Page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("^(保存文件|Save file)$")).first.click()
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    return target


def test_all_items_are_rated_by_keyboard_kept_saved_and_imported(
    context: BrowserContext, review: tuple[Path, Export], tmp_path: Path
) -> None:
    folder, _ = review
    page = opened(context, review)
    rate(page, 3, 2, 1)
    page.keyboard.press("c")
    page.keyboard.type('引文 "不对"\n<b>&')
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    rate(page, 0, 1, 2)
    page.reload()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#position")).to_have_text("第 3 条，共 4 条")
    expect(page.locator("#progress")).to_have_attribute("value", "2")
    page.get_by_role("button", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator("#position")).to_have_text("Item 3 of 4")
    page.locator("body").click(position={"x": 5, "y": 700})
    rate(page, 3, 3, 3)
    page.keyboard.press("Shift+Enter")
    expect(page.get_by_role("radio", name="3").first).to_be_checked()
    page.keyboard.press("Enter")
    rate(page, 2, 2, 2)
    expect(page.get_by_role("dialog", name="All rated. Thank you")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#save-at-end").click()
    first = tmp_path / download.value.suggested_filename
    download.value.save_as(first)
    expect(page.locator("#in-file")).to_have_text("Everything is in a file")
    assert page.errors == []  # type: ignore[attr-defined]

    content = json.loads(first.read_text(encoding="utf-8"))
    assert {tuple(each[name] for name in DIMENSIONS) for each in content["ratings"].values()} == {
        (3, 2, 1), (0, 1, 2), (3, 3, 3), (2, 2, 2)
    }  # fmt: skip
    with pytest.raises(InputError, match="no file of expert_b"):
        import_ratings(review_config(folder), [str(first)])
    other = opened(context, review, expert=1)
    for _ in range(4):
        rate(other, 2, 2, 1)
    other.keyboard.press("Escape")
    result = import_ratings(review_config(folder), [str(first), str(saved(other, tmp_path))])
    assert result["experts"]["expert_a"]["num_complete"] == result["experts"]["expert_b"]["num_complete"] == 4
    assert result["experts"]["expert_a"]["num_comments"] == 1
    assert result["groups"][0]["scores"]["consistency"]["distribution"] == {"0": 1, "1": 0, "2": 5, "3": 2}
    assert {each["run"] for each in result["groups"]} == {None, *RUNS}


def test_a_saved_file_is_read_where_it_belongs_alone(
    browser: Browser, context: BrowserContext, review: tuple[Path, Export], tmp_path: Path
) -> None:
    page = opened(context, review)
    rate(page, 1, 2, 3)
    file = saved(page, tmp_path)
    content = json.loads(file.read_text(encoding="utf-8"))
    fresh = browser.new_context(offline=True)
    page = opened(fresh, review)
    changed: list[tuple[str, Any]] = [
        ("这不是本页面保存的评分文件。", {"format": "other"}),
        ("这个文件属于另一个样本，不能用在这里。", content | {"sample": "0" * 64}),
        ("这个文件是另一位专家（expert_b）的，不能用在这里。", content | {"expert": "expert_b"}),
        ("这个文件在保存之后被改动过，因此没有读入。", content | {"ratings": {"i1": {"consistency": 0}}}),
        ("这不是本页面保存的评分文件。", {"format": "other"}),
        ("这个文件在保存之后被改动过，因此没有读入。", content | {"saved_at": "2026-01-31T12:00:00Z"}),
    ]
    for message, data in changed:
        (tmp_path / "other.json").write_text(json.dumps(data), encoding="utf-8")
        page.set_input_files("#file", tmp_path / "other.json")
        expect(page.get_by_role("alert")).to_have_text(message)
    file.write_text(json.dumps(content), encoding="utf-8")  # the same in another layout
    page.set_input_files("#file", file)
    expect(page.locator("#progress")).to_have_attribute("value", "1")
    expect(page.locator("#position")).to_have_text("第 2 条，共 4 条")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("fieldset[data-dimension=reliability] input[value='2']")).to_be_checked()
    page.keyboard.press("0")  # what differs is only replaced on demand
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.set_input_files("#file", file)
    expect(page.locator("fieldset[data-dimension=consistency] input[value='0']")).to_be_checked()
    assert page.errors == []  # type: ignore[attr-defined]
    fresh.close()


def test_it_says_so_where_the_browser_keeps_nothing(
    browser: Browser, review: tuple[Path, Export], tmp_path: Path
) -> None:
    context = browser.new_context(offline=True)
    context.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    page = opened(context, review)
    warning = page.get_by_role("alert").filter(has_text="这个浏览器不会保留您的评分")
    expect(warning).to_be_visible()
    rate(page, 1, 1, 1)
    expect(page.locator("#progress")).to_have_attribute("value", "1")
    page.set_input_files("#file", saved(page, tmp_path))  # neither a file that is read nor one that is refused hides it
    expect(page.get_by_role("status")).to_have_text("已从文件读入 1 条。")
    expect(warning).to_be_visible()
    (tmp_path / "other.json").write_text("{}")
    page.set_input_files("#file", tmp_path / "other.json")
    expect(page.get_by_role("alert").filter(has_text="这不是本页面保存的评分文件。")).to_be_visible()
    expect(warning).to_be_visible()
    rate(page, 1, 1, 1)
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    assert asked == ["beforeunload"]
    expect(page.locator("#progress")).to_have_attribute("value", "0")
    context.close()


def test_it_asks_before_scores_that_are_in_no_file_are_left(
    context: BrowserContext, review: tuple[Path, Export], tmp_path: Path
) -> None:
    page = opened(context, review)
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    assert asked == []
    rate(page, 1, 1, 1)
    page.reload()
    assert asked == ["beforeunload"]  # a private window forgets what it keeps until then
    expect(page.locator("#progress")).to_have_attribute("value", "1")
    saved(page, tmp_path)
    page.reload()
    assert asked == ["beforeunload"]


def test_when_all_is_in_a_file_scores_and_comments_can_be_removed(
    context: BrowserContext, review: tuple[Path, Export]
) -> None:
    page, other = opened(context, review), opened(context, review)
    page.set_viewport_size({"width": 320, "height": 800})
    for _ in range(4):
        rate(page, 2, 2, 1)
    finished = page.get_by_role("dialog", name="全部评完了，谢谢")
    forget = finished.get_by_role("button", name="从浏览器中删除评分")
    expect(forget).to_be_disabled()
    expect(finished.get_by_role("status")).to_have_text("有 4 条的改动还没有存入文件")
    assert page.evaluate("finished.scrollWidth <= finished.clientWidth")
    with page.expect_download():
        page.locator("#save-at-end").click()
    expect(finished.get_by_role("status")).to_have_text("已全部存入文件")
    expect(other.locator("#progress")).to_have_attribute("value", "4")
    page.once("dialog", lambda dialog: dialog.dismiss())
    forget.click()
    expect(page.locator("#progress")).to_have_attribute("value", "4")
    page.once("dialog", lambda dialog: dialog.accept())
    forget.click()
    expect(finished).to_be_hidden()
    expect(page.get_by_role("status")).to_have_text("这个浏览器里已没有您的评分和备注。")
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.endsWith('expert_a'))") == []
    for each in (page, other):
        expect(each.locator("#progress")).to_have_attribute("value", "0")
        expect(each.locator("input:checked")).to_have_count(0)
    rate(other, 3)
    assert "expert_a" in str(page.evaluate("Object.keys(localStorage)"))
    assert page.evaluate("Object.values(localStorage).join().match(/consistency/g).length") == 1
    assert page.errors == []  # type: ignore[attr-defined]


def test_a_slip_of_the_last_score_is_mended_by_another_digit(
    context: BrowserContext, review: tuple[Path, Export]
) -> None:
    page = opened(context, review)
    for key in "3213":
        page.keyboard.press(key)
    for dimension, score in zip(DIMENSIONS, (3, 2, 3), strict=True):
        expect(page.locator(f"fieldset[data-dimension={dimension}] input[value='{score}']")).to_be_checked()
    page.keyboard.press("Enter")
    page.locator("#next").focus()
    page.keyboard.press("0")  # where nothing is rated yet it is the first score
    expect(page.locator("fieldset[data-dimension=consistency] input[value='0']")).to_be_checked()


def test_what_posts_and_answers_hold_is_text_and_nothing_else(context: BrowserContext, tmp_path: Path) -> None:
    posts = list(generate_posts(len(HOSTILE), seed=3))
    hostile = [
        type(post)(post.post_id, text, post.created_at, post.labels, dict.fromkeys(post.explanations, text), post.cues)
        for post, text in zip(posts, HOSTILE, strict=True)
    ]
    write_runs(tmp_path, hostile)
    config = review_config(tmp_path, RUNS[:1], sample={"suicide_risk": 4}, contact=HOSTILE[0])
    found = export(config)
    page = opened(context, (tmp_path, found))
    shown = set()
    for _ in HOSTILE:
        assert page.locator("#post").text_content() == page.locator("#explanation").text_content()
        shown.add(page.locator("#post").text_content())
        page.keyboard.press("Enter")
    assert shown == {text.strip() for text in HOSTILE}
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    blocked = page.evaluate("""() => new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
        document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.hacked = 3'>");
    })""")
    assert blocked.startswith(("img-src", "script-src"))
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_the_window_and_can_be_read(
    browser: Browser, review: tuple[Path, Export], scheme: Any, width: int
) -> None:
    context = browser.new_context(offline=True, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = opened(context, review)
    for language in ("zh", "en"):
        for dialog in ("guide", "overview", None):
            if dialog:
                page.locator(f"#open-{dialog}").click()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (language, dialog)
            assert page.evaluate(FAINT) == [], (language, dialog)
            page.keyboard.press("Escape")
        page.locator("#language").click()
    page.keyboard.press("3")
    assert page.evaluate(FAINT) == []
    context.close()


FAINT = """() => {
    // Visible text whose contrast to its background is below 4.5 (WCAG 2.2, 1.4.3).
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const isClear = (node) => parse(getComputedStyle(node).backgroundColor)[3] === 0;
    const dialog = document.querySelector("dialog[open]");
    const found = [];
    for (const node of (dialog ?? document.body).querySelectorAll("*")) {
        const holdsText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
        if (!holdsText || !node.checkVisibility() || (!dialog && node.closest("dialog"))) continue;
        if (node.closest(":disabled, script, style, .unseen, .skip")) continue;
        let back = node;
        while (isClear(back)) back = back.parentElement;
        const colours = [getComputedStyle(node).color, getComputedStyle(back).backgroundColor];
        const [dark, bright] = colours.map(parse).map(light).sort((one, other) => one - other);
        const ratio = (bright + 0.05) / (dark + 0.05);
        if (ratio < 4.5) found.push([node.tagName, node.id, node.className, ratio.toFixed(2)]);
    }
    return found;
}"""


def test_every_control_has_a_name_and_a_visible_focus(context: BrowserContext, review: tuple[Path, Export]) -> None:
    page = opened(context, review, reads_guide=True)
    expect(page.get_by_text("研究组 <b>组长</b>")).to_be_visible()
    page.keyboard.press("Escape")
    for name in ("一致性", "可靠性", "专业性"):
        group = page.get_by_role("group", name=name)
        expect(group).to_have_accessible_description(re.compile("？$"))
        assert group.get_by_role("radio").count() == 4
        expect(group.get_by_role("radio").last).to_have_accessible_name(re.compile("^3.+"))
    expect(page.get_by_role("textbox")).to_have_accessible_name("备注（可不填）")
    expect(page.get_by_role("progressbar")).to_have_accessible_name("已完成 0 / 4")
    expect(page.get_by_role("form")).to_have_accessible_name("请评价这条解释")
    expect(page.locator("#post")).to_have_attribute("lang", "zh-Hans")
    assert page.evaluate("""() => {
        const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
        return ids.length === new Set(ids).size;
    }""")
    reached = set()
    for _ in range(16):
        page.keyboard.press("Tab")
        at, outline = page.evaluate("""() => {
            const node = document.activeElement;
            const shown = node.type === "radio" ? node.parentElement : node;
            return [node.id || node.name || node.tagName, getComputedStyle(shown).outlineStyle];
        }""")
        reached.add(at)
        assert outline == "solid" or at == "BODY", at
    assert reached >= {*DIMENSIONS, "comment", "next", "save", "load", "language", "open-guide", "open-overview"}
    page.locator("#open-overview").click()
    expect(page.get_by_role("button", name="第 2 条，共 4 条, 未评")).to_be_visible()
    page.get_by_role("button", name="第 2 条，共 4 条, 未评").click()
    expect(page.locator("#position")).to_have_text("第 2 条，共 4 条")
    expect(page.get_by_role("status")).to_have_text(re.compile("第 2 条，自杀风险，未评"))


def test_two_tabs_of_one_page_do_not_undo_each_other(context: BrowserContext, review: tuple[Path, Export]) -> None:
    first = opened(context, review)
    second = opened(context, review)
    rate(first, 1, 1, 1)
    expect(second.locator("#progress")).to_have_attribute("value", "1")
    second.keyboard.press("Enter")
    rate(second, 2, 2, 2)
    expect(first.locator("#progress")).to_have_attribute("value", "2")
