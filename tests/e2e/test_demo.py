"""The whole demo, once, on real tools; then: what it made, and that a second run does nothing."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest

from scripts.lib.files import check_manifest, is_disabled, read_json, read_jsonl, sha256_file
from tests.lib import project

pytestmark = pytest.mark.demo
CATEGORIES = {
    "attribute recognition",
    "functional reasoning",
    "object localization",
    "object recognition",
    "object state recognition",
    "spatial understanding",
    "world knowledge",
}


def test_second_run_has_nothing_to_do(finished_demo):
    done = project.call(finished_demo, "snakemake", "--cores", "8")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_dvc_agrees_that_nothing_changed(finished_demo):
    assert "up to date" in project.call(finished_demo, "dvc", "status").stdout


def test_git_sees_only_the_files_that_the_readme_names(finished_demo):
    changed = {line[3:] for line in (finished_demo / ".git/status_after_run.txt").read_text().splitlines()}
    readme = (finished_demo / "README.md").read_text()
    for name in ("dvc.lock", "provenance.lock.json", "results/metrics.json", "results/plots/"):
        assert f"`{name}`" in readme
    assert {name for name in changed if not name.startswith("results/plots/")} <= {
        "dvc.lock",
        "provenance.lock.json",
        "results/metrics.json",
    }


def test_every_manifest_tells_the_truth(finished_demo):
    paths = [*sorted((finished_demo / "results").rglob("manifest.json")), finished_demo / "models/base/manifest.json"]
    assert len(paths) >= 4
    for path in paths:
        check_manifest(path)


def test_demo_data_is_big_enough_to_mean_something(finished_demo):
    episodes = read_json(finished_demo / "results/index/episodes.json")["episodes"]
    questions = {q["question_id"]: q for q in read_json(finished_demo / "results/index/questions.json")["questions"]}
    assert len(episodes) >= 40
    assert len({episode["space"] for episode in episodes}) >= 36
    assert {episode["kind"] for episode in episodes} == {"frames", "video", "sens"}
    assert min(sum(q["episode_history"] == e["episode_history"] for q in questions.values()) for e in episodes) >= 6
    split = read_json(finished_demo / "results/split/split.json")
    test = [questions[key] for key in split["parts"]["test"]]
    assert len(test) >= 36
    assert len({q["space"] for q in test}) >= 6
    assert {q["category"] for q in test} == CATEGORIES
    assert split["leakage"]["shared_spaces"] == 0


def test_each_episode_has_its_eight_frames_once(finished_demo):
    manifest = read_json(finished_demo / "results/frames/manifest.json")
    episodes = read_json(finished_demo / "results/index/episodes.json")["episodes"]
    assert set(manifest["episodes"]) == {episode["episode_history"] for episode in episodes}
    assert all(len(record["frames"]) == 8 for record in manifest["episodes"].values())
    pictures = list((finished_demo / "results/frames").rglob("*.jpg"))
    assert len(pictures) == 8 * len(episodes)


def test_training_was_really_four_bit_with_double_quantization(finished_demo):
    guards = read_json(finished_demo / "results/adapter/guards.json")
    assert guards["linear4bit"] == guards["linear_layers"] == guards["nested"] > 0
    assert guards["types"] == ["nf4"]
    assert guards["adapters"] == guards["adapters_language_model"] > 0
    assert guards["frozen_tensors_vision_tower"] > 0


def test_every_test_question_is_answered_by_every_model(finished_demo):
    wanted = sorted(read_json(finished_demo / "results/split/split.json")["parts"]["test"])
    for model in ("base", "tuned", "blind", "majority"):
        rows = read_jsonl(finished_demo / f"results/predictions/{model}.jsonl")
        assert [row["question_id"] for row in rows] == wanted


def test_base_and_tuned_were_scored_alike(finished_demo):
    base, tuned = (read_json(finished_demo / f"results/predictions/{model}.meta.json") for model in ("base", "tuned"))
    for key in ("engine", "dtype", "decoding", "max_new_tokens", "prompt"):
        assert base[key] == tuned[key]
    assert (base["weights"], tuned["weights"]) == ("base", "base+adapter")


def test_tuned_beats_base_beyond_its_interval(finished_demo):
    metrics = read_json(finished_demo / "results/metrics.json")
    assert metrics["tuned_minus_base_exact_match_low"] > 0
    pair = read_json(finished_demo / "results/metrics/comparison.json")["pairs"]["tuned_minus_base"]["overall"][
        "exact_match"
    ]
    assert pair["verdict"] == "better"


def test_tuned_model_looks_at_the_pictures(finished_demo):
    answers = {row["prediction"] for row in read_jsonl(finished_demo / "results/predictions/tuned.jsonl")}
    assert len(answers) >= 8


def test_merge_is_proven(finished_demo):
    verify = read_json(finished_demo / "results/merged/verify.json")
    assert verify["largest_logit_difference"] <= verify["tolerance"]
    assert verify["share_identical"] == 1.0


def test_switched_off_targets_say_so(finished_demo):
    for name in (
        "ollama/import.json",
        "serve/lmdeploy.json",
        "metrics/llm_match_base.json",
        "metrics/llm_match_tuned.json",
    ):
        assert is_disabled(read_json(finished_demo / "results" / name)), name


def test_config_is_kept_as_the_jobs_saw_it(finished_demo):
    from scripts.lib.config import load_yaml

    assert read_json(finished_demo / "results/config.json") == load_yaml(finished_demo / "config/config.yaml")


def test_no_artifact_holds_this_machines_path(finished_demo):
    needle = str(finished_demo).encode()
    found = []
    for top in ("results", "models", "data/raw"):
        for path in (finished_demo / top).rglob("*"):
            if path.is_file() and "train_log" not in path.parts and needle in path.read_bytes():
                found.append(path.relative_to(finished_demo).as_posix())
    assert not found


def test_report_holds_pictures_and_answers_of_every_test_question(finished_demo):
    page = (finished_demo / "results/report/index.html").read_text()
    assert "<html" in page
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S+", "", page)
    for key in read_json(finished_demo / "results/split/split.json")["parts"]["test"]:
        assert key in page


def lineage_table(page: str) -> dict[str, list[str]]:
    """Cells of the report's lineage by artifact."""
    table = page.partition('<details id="lineage">')[2].partition("</table>")[0]
    lines = re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", table, flags=re.DOTALL)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, flags=re.DOTALL) for line in lines]
    return {cells[0]: cells[1:] for cells in ([re.sub(r"<[^>]+>", "", cell) for cell in line] for line in found)}


def test_report_of_the_first_run_shows_lineage_from_raw_data_to_metrics(finished_demo):
    """No lock was there yet, and nobody called `make lineage`."""
    page = (finished_demo / "results/report/index.html").read_text()
    found = lineage_table(page)
    chain = {
        "data/raw/demo/questions.json": "make_demo_episodes",
        "results/index/questions.json": "index_episodes",
        "results/split/split.json": "split_questions",
        "results/frames/manifest.json": "join_frames",
        "results/sft/train.json": "build_sft",
        "results/adapter/manifest.json": "train_adapter",
        "results/predictions/tuned.jsonl": "join_predictions",
        "results/metrics/tuned.json": "score",
        "results/metrics.json": "compare_models",
    }
    assert [name for name in found if name in chain] == list(chain)
    for name, rule in chain.items():
        assert found[name][0] == rule
    for name, cells in found.items():
        assert cells[-1] == sha256_file(finished_demo / name)[:12], name
    assert "Not what their job wrote" not in page


def test_single_target_by_name_works(finished_demo):
    done = project.call(finished_demo, "snakemake", "--cores", "2", "results/merged/verify.json")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_snakemakes_own_report_holds_every_result_with_caption_and_category(demo_copy):
    project.call(demo_copy, "snakemake", "--report", "work/report.zip")
    with zipfile.ZipFile(demo_copy / "work/report.zip") as report:
        page = report.read("report/report.html").decode()
        held = {Path(name).name for name in report.namelist()}
    results, categories = (
        json.JSONDecoder().raw_decode(page.partition(f'<script id="{name}">')[2].partition(" = ")[2])[0]
        for name in ("results", "categories")
    )
    assert set(categories) == {"Data", "Training", "Answers", "Scores", "Delivery", "Report"}
    sorted_in = {name for part in categories.values() for names in part.values() for name in names}
    assert (
        sorted_in
        == set(results)
        >= {
            "results/index/questions.json",
            "results/sft/train.json",
            "results/predictions/tuned.openeqa.json",
            "results/metrics.json",
            "results/ollama/Modelfile",
            "results/report/index.html",
        }
    )
    for name, entry in results.items():
        assert Path(name).name in held
        assert re.fullmatch(r"<p>.+[.]</p>\n", entry["caption"], flags=re.DOTALL), name
        assert "{{" not in entry["caption"]
        assert entry["labels"]["what"], name
    assert "<em>blind</em>" in results["results/metrics/blind.json"]["caption"]
    assert results["results/metrics/blind.json"]["labels"]["model"] == "blind"
