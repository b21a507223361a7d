"""The report in a real browser: loads from disk, filters, enlarges pictures, links, reads well for everyone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from scripts import write_report
from scripts.lib.files import read_json, read_jsonl, write_json, write_jsonl
from scripts.make_demo_episodes import plan_episodes
from tests.report.results_folder import compare, make_results, page_arguments, score_model

WIDTHS = (390, 820, 1400)
LARGE = 1636  # questions of Open-EQA
MOST_FILLED = 60  # cards: a screen of 900 px and as much above and below hold about 20
COUNT_FILLED = """new MutationObserver((records) => {
  for (const one of records) for (const node of one.addedNodes) if (node.className === 'body') window.filled += 1;
}).observe(document.getElementById('list'), { childList: true, subtree: true })"""
COUNT_MOVED = """window.moved = 0; new MutationObserver((records) => {
  for (const one of records) window.moved += one.addedNodes.length + one.removedNodes.length;
}).observe(document.getElementById('list'), { childList: true })"""
HOSTILE = {
    "markup": '<script>window.hacked = 1</script></script><img src=x onerror="window.hacked = 1"><!-- <b>bold</b>',
    "arabic": "الأريكة بجانب النافذة (3 كراسي)",
    "chinese": "沙发在窗户旁边，上面有一个红色的垫子。",
    "long": " ".join(f"word{i}" for i in range(10_000)),
    "one_word": "w" * 5_000,
}


@pytest.fixture(scope="session")
def total(results_folder) -> int:
    """Questions of the test part."""
    return len(read_json(results_folder / "results/split/split.json")["parts"]["test"])


def visible(page) -> list[str]:
    return page.eval_on_selector_all(
        "#list > .card", "cards => cards.map(card => card.querySelector('h3').textContent)"
    )


def until(page, expression: str) -> None:
    """Wait until a JavaScript expression holds; Playwright's own way needs eval, which the page's policy forbids."""
    for _ in range(150):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never became true: {expression}")


def violations(page) -> list[str]:
    """axe-core's serious and critical findings."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:120]} {node.get('failureSummary', '')[:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]


def rewrite_answers(folder: Path, model: str, answers: dict[int, str]) -> list[str]:
    """Give the n-th predictions of a model other texts, score and compare again; returns their ids."""
    path = folder / f"results/predictions/{model}.jsonl"
    rows = read_jsonl(path)
    for position, text in answers.items():
        rows[position]["prediction"] = text
    write_jsonl(path, rows)
    score_model(folder, model)
    compare(folder)
    return [rows[position]["question_id"] for position in answers]


def test_page_opens_from_disk_with_every_question(page_file, total, open_page):
    page = open_page(page_file)
    assert len(visible(page)) == total
    assert f"{total} of {total} questions" in page.inner_text("#count")
    until(page, "document.querySelector('.frame img')?.naturalWidth === 192")
    assert page.locator("#card-0 .frame img").count() == 8


def test_search_leaves_the_questions_that_hold_all_words(page_file, results_folder, total, open_page):
    rows = read_jsonl(results_folder / "results/metrics/base.questions.jsonl")
    expected = sorted(row["question"] for row in rows if "kind of room is this" in row["question"].lower())
    page = open_page(page_file)
    page.fill("#f-text", "KIND room this of is")
    until(page, f"document.querySelector('#count').textContent.startsWith('{len(expected)} of {total}')")
    assert sorted(visible(page)) == expected != []
    page.fill("#f-text", "no such words at all")
    until(page, f"document.querySelector('#count').textContent.startsWith('0 of {total}')")
    page.click("button[type=reset]")
    until(page, f"document.querySelector('#count').textContent.startsWith('{total} of {total}')")


def test_filters_agree_with_the_scores_on_disk(page_file, results_folder, total, open_page):
    metrics = results_folder / "results/metrics"
    base, tuned = (
        {row["question_id"]: row for row in read_jsonl(metrics / f"{model}.questions.jsonl")}
        for model in ("base", "tuned")
    )
    better = sum(tuned[name]["exact_match"] > base[name]["exact_match"] for name in base)
    page = open_page(page_file)
    page.select_option("#f-change", "better")
    assert len(visible(page)) == better > 0
    for badge in page.locator("#list .badge").all_text_contents():
        assert badge == "▲ better"
    page.select_option("#f-change", "disagree")
    assert 0 < len(visible(page)) < total
    page.click("button[type=reset]")
    until(page, f"document.querySelectorAll('#list > .card').length === {total}")
    page.select_option("#f-source", index=2)
    assert page.locator("#f-source option").nth(2).inner_text() == f"scannet-v0 ({len(visible(page))})"
    assert len(visible(page)) == sum(row["source"] == "scannet-v0" for row in base.values())
    page.select_option("#f-category", index=1)
    name, count = page.locator("#f-category option").nth(1).inner_text().rsplit(" (", 1)
    expected = sum(row["category"] == name and row["source"] == "scannet-v0" for row in base.values())
    assert len(visible(page)) == expected <= int(count.rstrip(")"))


def test_order_by_change_puts_the_largest_gain_first(page_file, open_page):
    page = open_page(page_file)
    page.select_option("#f-metric", label="Token F1")
    page.select_option("#f-sort", "up")
    page.wait_for_selector("#list .card:first-child .badge.better")
    page.select_option("#f-sort", "down")
    page.wait_for_selector("#list .card:first-child .badge.worse")


def other_scores(results_folder: Path) -> str:
    """Id of a question whose tuned answer has another token F1 than exact match."""
    rows = read_jsonl(results_folder / "results/metrics/tuned.questions.jsonl")
    return next(row["question_id"] for row in rows if row["f1"] not in (row["exact_match"], None))


def told_scores(page) -> set[str]:
    """Names of the metrics whose scores the filled cards show."""
    titles = page.eval_on_selector_all("#list .points", "nodes => nodes.map(node => node.title)")
    return {title.rsplit(" ", 3)[0] for title in titles if title != "no score"}


def test_reset_shows_the_first_metrics_scores_again(page_file, open_page):
    page = open_page(page_file)
    page.select_option("#f-metric", label="Token F1")
    until(page, "document.querySelectorAll('#list .points').length > 3")
    assert told_scores(page) == {"Token F1"}
    page.click("button[type=reset]")
    until(page, "document.querySelector('#list .points')?.title.startsWith('Exact match')")
    assert told_scores(page) == {"Exact match"}


def test_link_that_takes_filters_away_shows_the_first_metrics_scores(page_file, results_folder, open_page):
    page = open_page(page_file)
    page.select_option("#f-metric", label="Token F1")
    until(page, "document.querySelectorAll('#list .points').length > 3")
    page.fill("#f-text", "no such words at all")
    until(page, "document.querySelectorAll('#list > .card').length === 0")
    page.evaluate(f"location.hash = '#q={other_scores(results_folder)}'")
    page.wait_for_selector(".card.target .points")
    assert page.eval_on_selector("#f-metric", "node => node.selectedOptions[0].textContent") == "Exact match"
    assert told_scores(page) == {"Exact match"}


def test_link_opens_its_question(page_file, results_folder, open_page):
    split = read_json(results_folder / "results/split/split.json")
    wanted = split["parts"]["test"][40]
    page = open_page(page_file, f"#q={wanted}")
    page.wait_for_selector(".card.target .answers")
    until(page, "Math.abs(document.querySelector('.card.target').getBoundingClientRect().top) < 200")
    assert page.get_attribute(".card.target .meta a", "href") == f"#q={wanted}"
    page.fill("#f-text", "no such words at all")
    until(page, "document.querySelectorAll('#list > .card').length === 0")
    page.evaluate("location.hash = '#elsewhere'")
    page.evaluate(f"location.hash = '#q={wanted}'")
    page.wait_for_selector(".card.target .answers")  # a filter does not hide what a link asks for


def test_link_to_an_unknown_question_says_so(page_file, open_page):
    page = open_page(page_file, "#q=nobody%20%3Cb%3E%")
    assert "No test question has the id nobody%20%3Cb%3E%" in page.inner_text("#count")


def test_picture_opens_by_keyboard_and_arrows_move(page_file, open_page):
    page = open_page(page_file)
    first = page.locator("#card-0 .frame").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.is_visible("#viewer")
    assert page.inner_text("#viewer-caption").startswith("Frame 1 of 8, number 0 of 16")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#viewer-caption").startswith("Frame 2 of 8")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#viewer-caption").startswith("Frame 8 of 8")
    page.keyboard.press("Home")
    assert page.inner_text("#viewer-caption").startswith("Frame 1 of 8")
    page.keyboard.press("End")
    assert page.inner_text("#viewer-caption").startswith("Frame 8 of 8")
    assert not violations(page)
    page.keyboard.press("Escape")
    assert not page.is_visible("#viewer")
    assert page.evaluate("document.activeElement.className") == "frame"


def test_metric_buttons_change_the_tables(page_file, open_page):
    page = open_page(page_file)
    page.click("button[data-metric=rougeL]")
    assert page.get_attribute("button[data-metric=rougeL]", "aria-pressed") == "true"
    shown = page.locator("[data-panel]:visible caption").all_inner_texts()
    assert shown == ["Category, ROUGE-L", "Source, ROUGE-L"]


def test_theme_button_changes_colours_and_is_remembered(page_file, open_page):
    page = open_page(page_file)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_its_width_and_has_no_serious_accessibility_fault(page_file, open_page, tmp_path, width, dark):
    page = open_page(page_file, width=width, dark=dark)
    page.wait_for_selector("#card-0 .answers")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    for details in page.locator("main details").all():
        details.evaluate("node => { node.open = true; }")
    assert not violations(page)
    for details in page.locator("main details").all():
        details.evaluate("node => { node.open = false; }")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=tmp_path / "page.png")
    looks_right(page, tmp_path / "page.png")


def looks_right(page, file: Path) -> None:
    """The first screen: the theme's paper, ink on it, each model's dot in its place, and nothing drawn over it."""
    import cv2
    import numpy as np

    picture = cv2.imread(str(file))[:, :, ::-1].astype(int)
    paper, ink, accent = (
        colour(page, expression)
        for expression in (
            "getComputedStyle(document.body).backgroundColor",
            "getComputedStyle(document.querySelector('h1')).color",
            "getComputedStyle(document.querySelector('.lane.right i')).backgroundColor",
        )
    )

    def share(part: np.ndarray, wanted: list[int]) -> float:
        return float((np.abs(part - wanted).max(axis=2) <= 12).mean())

    assert share(picture, paper) > 0.6
    title = page.locator("h1").bounding_box()
    top, left = int(title["y"]), int(title["x"])
    words = picture[top : top + int(title["height"]), left : left + int(title["width"])]
    assert 0.02 < share(words, ink) < 0.5
    for dot in page.locator(".lane i").all():
        box = dot.bounding_box()
        if box["y"] + box["height"] < picture.shape[0]:
            x, y = int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)
            fill = colour(page, "getComputedStyle(node).backgroundColor", dot)
            assert share(picture[y - 1 : y + 2, x - 1 : x + 2], fill) == 1.0
    assert max(abs(a - b) for a, b in zip(accent, paper, strict=True)) > 60


def colour(page, expression: str, locator=None) -> list[int]:
    """A computed colour as [red, green, blue]."""
    found = locator.evaluate(f"node => {expression}") if locator else page.evaluate(expression)
    return [int(float(part)) for part in re.findall(r"[\d.]+", found)[:3]]


def test_every_section_can_be_reached_from_the_top_of_a_phone(page_file, open_page):
    page = open_page(page_file, width=390)
    page.evaluate("scrollTo(0, 0)")
    links = page.locator("nav a").all()
    assert [link.inner_text() for link in links] == ["Results", "Questions", "Training", "Checks", "Run", "Recipe"]
    for link in links:
        box = link.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        link.click()


@pytest.mark.parametrize("best", [2, 10, 30, 50, 70, 120])
@pytest.mark.parametrize("width", [390, 1400])
def test_label_of_the_kept_step_is_inside_the_chart(run_folder, open_page, width, best):
    manifest = read_json(run_folder / "results/adapter/manifest.json")
    write_json(run_folder / "results/adapter/manifest.json", manifest | {"best_step": best})
    assert write_report.main(page_arguments(run_folder, "none")) == 0
    page = open_page(run_folder / "results/report/index.html", width=width)
    mark, chart = page.locator(".box .mark").bounding_box(), page.locator(".curve .box").bounding_box()
    assert mark["x"] >= chart["x"] - 1
    assert mark["x"] + mark["width"] <= chart["x"] + chart["width"] + 1
    assert page.locator(".box .mark").inner_text() == f"kept: step {best}"


def test_paper_shows_answers_without_controls(page_file, total, open_page):
    page = open_page(page_file)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#list .answers").count() == total
    assert not page.is_visible("form.filters")
    assert page.pdf()[:5] == b"%PDF-"


@pytest.mark.parametrize("chosen", ["system", "button"])
def test_paper_is_white_under_a_dark_theme(page_file, open_page, chosen):
    page = open_page(page_file, dark=chosen == "system")
    if chosen == "button":
        page.click("#theme")
    assert max(colour(page, "getComputedStyle(document.body).backgroundColor")) < 80
    page.emulate_media(media="print", color_scheme="dark" if chosen == "system" else "light")
    assert colour(page, "getComputedStyle(document.body).backgroundColor") == [255, 255, 255]
    assert max(colour(page, "getComputedStyle(document.querySelector('h1')).color")) < 40
    assert max(colour(page, "getComputedStyle(document.querySelector('.fine')).color")) < 110


def test_markup_in_answers_is_shown_as_text(run_folder, open_page):
    ids = rewrite_answers(run_folder, "tuned", dict(enumerate(HOSTILE.values())))
    index = read_json(run_folder / "results/index/questions.json")
    for row in index["questions"]:
        if row["question_id"] == ids[1]:
            row |= {"question": HOSTILE["markup"], "answer": HOSTILE["arabic"], "category": "</script><b>c"}
    write_json(run_folder / "results/index/questions.json", index)
    for model in ("base", "tuned", "blind", "majority"):
        score_model(run_folder, model)
    compare(run_folder)
    assert write_report.main(page_arguments(run_folder)) == 0
    path = run_folder / "results/report/index.html"
    for name, text in zip(ids, HOSTILE.values(), strict=True):
        page = open_page(path, f"#q={name}", width=390)
        page.wait_for_selector(".card.target .answers")
        assert page.locator(".card.target .answer.right .words").evaluate("node => node.textContent") == text
        assert page.evaluate("window.hacked") is None
        assert page.locator(".card.target b, .card.target script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.get_by_text("Show all").count() > 0


def test_right_to_left_answer_runs_from_the_right(run_folder, open_page):
    ids = rewrite_answers(run_folder, "tuned", {0: HOSTILE["arabic"]})
    assert write_report.main(page_arguments(run_folder)) == 0
    page = open_page(run_folder / "results/report/index.html", f"#q={ids[0]}")
    words = page.locator(".card.target .answer.right .words")
    assert words.evaluate("node => node.matches(':dir(rtl)')")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (["metrics"], "No scores yet"),
        (["metrics/base.json", "metrics/base.questions.jsonl", "metrics/comparison.json"], "base has no score yet"),
        (["metrics/comparison.json"], "Whether they differ is not known"),
        (["train_log"], "No loss curves yet"),
        (["frames"], "No pictures of this episode"),
        (["index", "split"], "is missing"),
        (["predictions", "metrics", "split", "index"], "No test questions yet"),
        (["."], "No scores yet"),
    ],
)
def test_page_says_what_is_missing(run_folder, open_page, gone, said):
    for name in gone:
        target = run_folder / "results" / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
    (run_folder / "results").mkdir(exist_ok=True)
    assert write_report.main(page_arguments(run_folder)) == 0
    page = open_page(run_folder / "results/report/index.html", wait=False)
    if page.locator("#list").count():
        page.wait_for_selector("html[data-ready]")
        page.evaluate("document.querySelector('#questions').scrollIntoView()")
        page.wait_for_selector("#card-0 .answers")
    text = page.inner_text("body")
    assert said in text
    assert "missing from this page" in text
    for name in gone:
        if name.endswith(".json"):
            assert f"results/{name}" in text
    assert not violations(page)


def test_missing_pictures_are_named_and_shown_as_missing(run_folder, open_page):
    manifest = read_json(run_folder / "results/frames/manifest.json")
    first = sorted(manifest["episodes"])[0]
    frames = manifest["episodes"][first]["frames"]
    (run_folder / "results/frames" / frames[0]).unlink()
    (run_folder / "results/frames" / frames[1]).write_bytes(b"no picture")
    for mode in ("embed", "link"):
        assert write_report.main(page_arguments(run_folder, mode)) == 0
        page = open_page(run_folder / "results/report/index.html")
        page.wait_for_selector("#card-0 .frames .gone")
        assert page.locator("#card-0 .gone").count() == 2
        assert f"results/frames/{frames[0]}" in page.inner_text(".warn")
        page.locator("#card-0 .frame").first.click()
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#viewer-caption").startswith("Frame 8")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#viewer-caption").startswith("Frame 3")  # steps over what is missing


@pytest.mark.parametrize("mode", ["embed", "link"])
def test_viewer_steps_over_pictures_that_fail_to_load(run_folder, open_page, mode):
    manifest = read_json(run_folder / "results/frames/manifest.json")
    frames = manifest["episodes"][sorted(manifest["episodes"])[0]]["frames"]
    for name in frames[1:3]:  # the head of a JPEG, so that the page takes it
        (run_folder / "results/frames" / name).write_bytes(b"\xff\xd8\xff" + bytes(50))
    assert write_report.main(page_arguments(run_folder, mode)) == 0
    page = open_page(run_folder / "results/report/index.html")
    until(page, "document.querySelectorAll('#card-0 .gone').length === 2")
    page.locator("#card-0 .frame").first.click()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#viewer-caption").startswith("Frame 4 of 8")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#viewer-caption").startswith("Frame 1 of 8")


def test_viewer_closes_where_no_picture_of_an_episode_is_left(run_folder, open_page):
    assert write_report.main(page_arguments(run_folder, "link")) == 0
    page = open_page(run_folder / "results/report/index.html")
    page.wait_for_selector("#card-0 .frame")
    page.evaluate("""() => {
        const image = document.getElementById('viewer-image');
        document.querySelector('#card-0 .frame').click();
        for (let i = 0; i < 8; i += 1) image.dispatchEvent(new Event('error'));
    }""")
    assert not page.is_visible("#viewer")


@pytest.fixture(scope="module")
def large_page(tmp_path_factory) -> Path:
    """As many questions as Open-EQA has in all."""
    folder = make_results(tmp_path_factory.mktemp("large"), copies=28, pictures=2, most=LARGE)
    assert write_report.main(page_arguments(folder, "link")) == 0
    return folder / "results/report/index.html"


def test_filter_sort_and_score_of_many_questions_fill_only_cards_near_the_screen(large_page, open_page):
    page = open_page(large_page)
    assert page.inner_text("#count").startswith("1,636 of 1,636 questions")
    page.wait_for_selector("#list .body")
    steps = (
        lambda: page.fill("#f-text", "what color"),
        lambda: page.fill("#f-text", ""),
        lambda: page.select_option("#f-category", index=2),
        lambda: page.select_option("#f-category", ""),
        lambda: page.select_option("#f-change", "better"),
        lambda: page.select_option("#f-change", ""),
        lambda: page.select_option("#f-sort", "up"),
        lambda: page.select_option("#f-metric", label="Token F1"),
        lambda: page.select_option("#f-source", index=1),
        lambda: page.click("button[type=reset]"),
    )
    page.evaluate(COUNT_FILLED)
    for number, step in enumerate(steps):
        page.evaluate("window.filled = 0")
        step()
        page.wait_for_timeout(400)
        # a card's shell is an article and a heading; what is near the screen has answers and pictures too
        assert page.evaluate("window.filled") <= MOST_FILLED, number
        assert page.locator("#list .body").count() <= MOST_FILLED, number
    assert page.evaluate("document.querySelectorAll('#list *').length") < 3 * LARGE


def test_choice_that_changes_nothing_moves_no_card(large_page, open_page):
    page = open_page(large_page)
    page.evaluate(COUNT_MOVED)
    page.select_option("#f-metric", label="Token F1")  # by room: the order stays
    page.wait_for_timeout(300)
    assert page.evaluate("window.moved") == 0


def test_linked_pictures_lie_beside_the_page(run_folder, open_page):
    assert write_report.main(page_arguments(run_folder, "link")) == 0
    report = run_folder / "results/report"
    assert "base64,/9j/" not in (report / "index.html").read_text()
    moved = Path(shutil.move(report, run_folder / "elsewhere"))
    shutil.rmtree(run_folder / "results")
    page = open_page(moved / "index.html")
    until(page, "document.querySelector('.frame img')?.naturalWidth === 192")


def test_page_without_pictures_says_so(run_folder, open_page):
    assert write_report.main(page_arguments(run_folder, "none")) == 0
    page = open_page(run_folder / "results/report/index.html")
    page.wait_for_selector("#card-0 .gone.wide")
    assert "report.frames: none" in page.text_content("#card-0")
    assert page.locator(".frame").count() == 0


def test_one_question_is_no_questions(tmp_path, open_page):
    folder = make_results(tmp_path, episodes=8, test_episodes=1, pictures=1, most=1)
    assert write_report.main(page_arguments(folder)) == 0
    page = open_page(folder / "results/report/index.html")
    assert page.inner_text("#count").startswith("1 of 1 question:")
    page.wait_for_selector("#card-0 .answers")
    assert not re.search(
        r"\b1 (?:test )?(?:questions|rooms|pictures|artifacts|jobs|episodes|files)\b", page.inner_text("body")
    )


def test_page_tells_real_from_drawn_rooms(tmp_path, open_page):
    name = plan_episodes(8, 7)[-1].history
    folder = make_results(tmp_path, episodes=8, test_episodes=1, real=name, pictures=2)
    assert write_report.main(page_arguments(folder)) == 0
    page = open_page(folder / "results/report/index.html")
    assert f"The test part holds 1 real episode ({name})" in page.inner_text(".hero")
    assert "of all 8 episodes 1 is real and 7 are drawn" in page.inner_text(".hero")
    page.wait_for_selector("#card-0 .answers")
    assert "real" in page.locator("#card-0 .meta span").all_text_contents()
