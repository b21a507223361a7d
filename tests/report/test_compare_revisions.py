"""compare_revisions over a real git and DVC repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scripts import compare_revisions
from scripts.lib.files import read_json, read_jsonl, write_json, write_jsonl
from tests.lib.project import call
from tests.report.results_folder import compare, score_model
from tests.report.test_report_in_browser import WIDTHS, violations

STORED = ("results/metrics", "results/index", "results/split", "results/config.json", "results/frames", "models")
WRONG = "quite another answer"


def store(folder: Path, message: str) -> None:
    call(folder, "dvc", "add", "-q", *STORED)
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-q", "-m", message)


@pytest.fixture(scope="session")
def repository(results_folder, tmp_path_factory) -> Path:
    """Two commits: in the second the tuned model answers 20 questions wrong, and the recipe has another rank."""
    folder = tmp_path_factory.mktemp("history") / "run"
    shutil.copytree(results_folder, folder, ignore=shutil.ignore_patterns("report", "adapter", "gguf", "merged"))
    call(folder, "git", "init", "-q", "-b", "main")
    call(folder, "dvc", "init", "-q")
    (folder / ".gitignore").write_text("/work\n/logs\n/benchmarks\n/results/[!mifsc]*\n")
    store(folder, "one")
    path = folder / "results/predictions/tuned.jsonl"
    rows = read_jsonl(path)
    for row in rows[:20]:
        row["prediction"] = WRONG
    write_jsonl(path, rows)
    score_model(folder, "tuned")
    compare(folder)
    config = read_json(folder / "results/config.json")
    config["train"]["lora_rank"] += 4
    write_json(folder / "results/config.json", config)
    store(folder, "two")
    return folder


def compare_pages(folder: Path, a: str, b: str, output: Path) -> int:
    return compare_revisions.main(["--a", a, "--b", b, "--root", str(folder), "--output", str(output)])


def test_page_of_two_revisions_shows_answers_scores_and_recipe_of_both(repository, tmp_path, open_page):
    before = call(repository, "git", "status", "--porcelain").stdout
    assert compare_pages(repository, "HEAD~1", "HEAD", tmp_path / "compare.html") == 0
    assert call(repository, "git", "status", "--porcelain").stdout == before
    page = open_page(tmp_path / "compare.html")
    assert page.inner_text("h1").startswith("HEAD is worse than HEAD~1 by")
    rank = read_json(repository / "results/config.json")["train"]["lora_rank"]
    changed = page.locator("#recipe table tbody tr").all_inner_texts()
    assert [row.split() for row in changed] == [["train.lora_rank", str(rank - 4), str(rank)]]
    page.select_option("#f-change", "worse")
    page.wait_for_selector("#list .card:first-child .answers")
    assert page.locator("#list .card:first-child .answer.right .words").text_content() == WRONG
    page.wait_for_selector("#list .card:first-child .frame img")


def test_same_revision_twice_has_no_difference(repository, tmp_path, open_page):
    assert compare_pages(repository, "HEAD", "HEAD", tmp_path / "compare.html") == 0
    page = open_page(tmp_path / "compare.html")
    assert page.inner_text("h1") == "No detectable difference between HEAD (B) and HEAD (A)"
    assert "Both revisions have the same recipe" in page.inner_text("#recipe")


def test_workspace_counts_as_a_revision(repository, tmp_path):
    assert compare_pages(repository, "HEAD~1", "workspace", tmp_path / "compare.html") == 0
    assert "workspace is worse than HEAD~1" in (tmp_path / "compare.html").read_text()


def test_without_the_cache_the_scores_of_git_are_shown(repository, tmp_path, open_page):
    copy = tmp_path / "clone"
    call(tmp_path, "git", "clone", "-q", str(repository), str(copy))
    assert compare_pages(copy, "HEAD~1", "HEAD", tmp_path / "compare.html") == 0
    page = open_page(tmp_path / "compare.html", wait=False)
    text = page.inner_text("body")
    assert "Exact match" in page.inner_text("#results table")
    assert "dvc fetch" in text
    assert "Whether they differ is not known" in text


@pytest.mark.parametrize("revision", ["", "no-such-branch", "--help", "HEAD:results"])
def test_unknown_revision_is_refused_in_one_line(repository, tmp_path, capsys, revision):
    assert (
        compare_revisions.main(
            [f"--a={revision}", "--b", "HEAD", "--root", str(repository), "--output", str(tmp_path / "x")]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "revision" in told
    assert not (tmp_path / "x").exists()


def test_revision_without_results_is_refused(tmp_path, capsys):
    call(tmp_path, "git", "init", "-q")
    call(tmp_path, "dvc", "init", "-q")
    call(tmp_path, "git", "commit", "-q", "-m", "empty")
    assert compare_pages(tmp_path, "HEAD", "HEAD", tmp_path / "x.html") == 2
    assert "no results at this revision" in capsys.readouterr().err


def with_confidence(repository: Path, folder: Path, value: float) -> Path:
    """A clone whose last commit scores the same answers with another confidence."""
    shutil.copytree(repository, folder)
    config = read_json(folder / "results/config.json")
    config["score"]["confidence"] = value
    write_json(folder / "results/config.json", config)
    for model in ("base", "tuned", "blind", "majority"):
        score_model(folder, model, {"confidence": value})
    compare(folder, {"confidence": value})
    store(folder, "other confidence")
    return folder


def test_intervals_of_both_sides_have_the_confidence_that_the_caption_names(repository, tmp_path, open_page):
    folder = with_confidence(repository, tmp_path / "run", 0.5)
    stored = [call(folder, "git", "show", f"{rev}:results/metrics.json").stdout for rev in ("HEAD~1", "HEAD")]
    wide, narrow = ({key: json.loads(text)[f"tuned_exact_match_{key}"] for key in ("low", "high")} for text in stored)
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]
    assert compare_pages(folder, "HEAD~1", "HEAD", tmp_path / "compare.html") == 0
    page = open_page(tmp_path / "compare.html")
    assert "with 50% intervals over rooms" in page.inner_text("figure.strip figcaption")
    told = page.inner_text(".hero")
    assert "score.confidence is 0.95 in HEAD~1, 0.5 in HEAD" in told
    assert "All intervals here are computed with the settings of HEAD." in told
    spans = page.locator(".lane.left .span, .lane.right .span").all_inner_texts()
    assert spans == [f"{narrow['low']:.1f}–{narrow['high']:.1f}"] * 2  # the same answers in both


def test_equal_score_settings_need_no_word(repository, tmp_path):
    assert compare_pages(repository, "HEAD~1", "HEAD", tmp_path / "compare.html") == 0
    assert "computed with the settings" not in (tmp_path / "compare.html").read_text()


def test_intervals_that_cannot_be_computed_anew_are_left_out(repository, tmp_path, open_page):
    folder = with_confidence(repository, tmp_path / "run", 0.5)
    sides = [compare_revisions.read_side(folder, {}, name) for name in "AB"]
    sides[0]["config"]["score"]["confidence"] = 0.95
    sides[0]["rows"] = {model: [] for model in sides[0]["rows"]}
    context = compare_revisions.combine(*sides, ("A", "B"))
    top = context["overall"][0]["scores"]
    assert top["a"]["low"] is None
    assert top["b"]["low"] is not None
    said = " ".join(context["notes"])
    assert "its own could not be computed anew and are left out" in said
    assert "The scored questions of A are not here" in said
    assert "share no question" not in said


def test_marks_of_a_judge_get_new_intervals_too():
    row = {"category": "c", "source": "s", "question": "?", "answer": "a", "accepted": ["a"], "prediction": "a"}
    metrics = dict.fromkeys(("exact_match", "f1", "bleu4", "rouge1", "rouge2", "rougeL", "chrf", "yes_no"), 100.0)
    rows = [{**row, **metrics, "question_id": f"q{i}", "space": f"space{i}", "llm_match": 25.0 * i} for i in range(5)]
    settings = {"bootstrap_draws": 400, "confidence": 0.9, "seed": 7}
    wide = compare_revisions.recomputed(rows, settings)["overall"]["llm_match"]
    narrow = compare_revisions.recomputed(rows, settings | {"confidence": 0.5})["overall"]["llm_match"]
    assert wide["value"] == narrow["value"] == 50.0
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


@pytest.mark.parametrize(
    ("revision", "heading"),
    [
        ("0123456789abcdef0123456789abcdef01234567", "0123456789"),
        ("0123456789abcdef0123456789abcdef01234567~2", "0123456789~2"),
        ("0123456789", "0123456789"),
        ("feature/decade", "feature/decade"),
        ("b" * 9, "b" * 9),
        ("long-" * 20, ("long-" * 20)[:39] + "…"),
    ],
)
def test_headings_shorten_a_commit_to_ten_digits(revision, heading):
    assert compare_revisions.short(revision) == heading


def test_two_revisions_never_have_one_heading():
    same = "0123456789" + "a" * 30, "0123456789" + "b" * 30
    assert compare_revisions.headings(*same) == ("0123456789 (A)", "0123456789 (B)")


@pytest.mark.parametrize("width", WIDTHS)
def test_comparison_fits_its_width_whatever_revisions_are_called(repository, tmp_path, open_page, width):
    call(repository, "git", "branch", "-f", "a" * 100, "HEAD~1")
    commit = call(repository, "git", "rev-parse", "HEAD").stdout.strip()
    for a, b in ((f"{commit}~1", commit), ("a" * 100, "HEAD")):
        assert compare_pages(repository, a, b, tmp_path / "compare.html") == 0
        page = open_page(tmp_path / "compare.html", width=width)
        page.wait_for_selector("#card-0 .answers")
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        for part in ("h1", ".lead", ".lane .who", ".groups thead th", "#recipe th", ".answer .who span"):
            for box in page.locator(part).all():
                if box.is_visible():
                    assert box.evaluate("node => node.scrollWidth - node.clientWidth") <= 1 or not box.evaluate(
                        "node => node.clientWidth"
                    ), part
        assert not violations(page)


def test_other_test_questions_are_compared_on_the_shared_ones():
    row = {"category": "c", "source": "s", "question": "?", "answer": "a", "accepted": ["a"], "prediction": "a"}
    metrics = dict.fromkeys(("exact_match", "f1", "bleu4", "rouge1", "rouge2", "rougeL", "chrf", "yes_no"), 100.0)
    rows = [{**row, **metrics, "question_id": f"q{i}", "space": f"space{i}"} for i in range(6)]

    def side(part):
        scores = {"tuned": {"overall": {}}, "base": {"overall": {}}}
        parts = {"index": {}, "episodes": {}, "config": {}, "base": {}, "missing": [], "flat": {}}
        return {**parts, "scores": scores, "rows": {"tuned": part, "base": part}}

    other = [{**rows[3], "accepted": ["b"]}, *rows[4:]]
    context = compare_revisions.combine(side(rows[:5]), side(other), ("A", "B"))
    assert [record["id"] for record in context["gallery"]["questions"]] == ["q4"]
    assert "5 questions in A, 3 in B" in context["notes"][0]
    assert "the 1 that both hold" in context["notes"][0]
    assert context["notes"][1].startswith("1 question has other accepted answers in B and is left out")
