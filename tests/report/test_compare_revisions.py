"""compare_revisions over a real git and DVC repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import compare_revisions
from scripts.lib.files import read_json, read_jsonl, write_json, write_jsonl
from tests.lib.project import call
from tests.report.results_folder import compare, score_model

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
    assert context["notes"][1].startswith("1 questions have other accepted answers")
