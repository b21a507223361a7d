"""`snakemake --report` shows every result with a caption, a category and labels, or this file says why not."""

from __future__ import annotations

import re

import pytest

from scripts.lib.report_data import RULES
from tests.lib.parsed_workflow import outputs
from tests.lib.project import ROOT

EXEMPT = {
    "results/frames/shards/{shard}.json": "a part of results/frames/manifest.json, which is shown",
    "results/frames/archive.json": "what lies in the user's archive; results/frames/manifest.json says what was taken",
    "results/sft/dataset_info.json": "the same for every run: where LLaMA-Factory finds the columns",
    "results/predictions/shards/{model}/{shard}.jsonl": "a part of results/predictions/{model}.jsonl, which is shown",
    "results/predictions/shards/{model}/{shard}.meta.json": "a part of results/predictions/{model}.meta.json, which is shown",
}
CATEGORIES = {"Data", "Training", "Answers", "Scores", "Delivery", "Report"}


def bare(path: str) -> str:
    """A path without the patterns of its wildcards."""
    return re.sub(r"\{(\w+),[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", r"{\1}", path)


@pytest.fixture(scope="module")
def every(tmp_path_factory) -> list[dict]:
    """Outputs of every rule: of the demo, and of a recipe whose user has the HM3D archive."""
    source = tmp_path_factory.mktemp("source")
    (source / "open-eqa-hm3d-frames-v0.tgz").write_bytes(b"")
    changes = {
        "data": {"source": str(source), "frames_remote": "unshared"},
        "report": {"dvc_remote": "unshared"},
    }
    found = {(one["rule"], bare(one["path"])): one for one in [*outputs(), *outputs(changes)]}
    return [{**one, "path": path} for (_, path), one in sorted(found.items())]


def test_every_result_is_in_the_report_or_exempt_with_a_reason(every):
    results = [one for one in every if one["path"].startswith("results/")]
    assert len(results) > 40
    assert "extract_archive" in {one["rule"] for one in every}
    forgotten = [f"{one['rule']}: {one['path']}" for one in results if not one["report"] and one["path"] not in EXEMPT]
    assert not forgotten, f"mark with report(...) or name in EXEMPT with the reason: {forgotten}"
    both = [one["path"] for one in results if one["report"] and one["path"] in EXEMPT]
    assert not both, f"marked, so take them out of EXEMPT: {both}"
    assert set(EXEMPT) <= {one["path"] for one in results}, "EXEMPT names what no rule makes"


def test_captions_exist_and_all_are_used(every):
    marks = [one["report"] for one in every if one["report"]]
    used = {(ROOT / mark["caption"]).resolve() for mark in marks}
    assert used == set((ROOT / "report").glob("*.rst"))
    for caption in used:
        text = caption.read_text()
        assert text.count("\n") == 1, f"{caption.name}: one line"
        assert text.endswith(".\n"), f"{caption.name}: a sentence"


def test_categories_are_known_and_labels_tell_results_apart(every):
    seen: dict[tuple, str] = {}
    for one in every:
        if one["report"]:
            mark = one["report"]
            assert mark["category"] in CATEGORIES, one
            assert "what" in mark["labels"], one
            key = (mark["category"], *sorted(mark["labels"].items()))
            assert key not in seen, f"{one['path']} and {seen[key]} look the same in the report"
            seen[key] = one["path"]


def test_one_category_has_one_set_of_labels(every):
    """Snakemake makes a column of each label: a row without it has a hole."""
    for category in CATEGORIES:
        kinds = {
            tuple(sorted(one["report"]["labels"])) for one in every if (one["report"] or {}).get("category") == category
        }
        assert len(kinds) == 1, (category, kinds)


def test_the_page_puts_every_rule_into_the_pipelines_order(every):
    assert {one["rule"] for one in every} <= set(RULES)


def test_log_and_benchmark_of_a_rule_have_the_same_name(every):
    """The page joins them by it."""
    for one in every:
        if one["benchmark"]:
            log = re.sub(r"^logs/(.*)\.log$", r"\1", one["log"][0])
            assert one["benchmark"] == f"benchmarks/{log}.tsv"
