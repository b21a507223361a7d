"""Preset hm3d-clip: one real HM3D clip with its three questions is the test part, the demo's rooms are train and val."""

from __future__ import annotations

import json

import pytest

from scripts.lib.files import read_json, read_jsonl
from tests.lib import project

pytestmark = pytest.mark.demo
CLIP = "assets/open-eqa-hm3d-demo"


@pytest.fixture(scope="module")
def clip_run(finished_demo, openeqa, tmp_path_factory):
    """The finished demo, switched to the clip and run: what the switch does not touch is not made again."""
    folder = project.copy_clone(finished_demo, tmp_path_factory.mktemp("clip") / "clone")
    project.call(folder, "python", "-m", "scripts.use_preset", "--preset", "hm3d-clip")
    done = project.call(folder, "snakemake", "--cores", "8", OPENEQA_DATA=str(openeqa))
    (folder / ".git/clip_run.txt").write_text(done.stdout + done.stderr)
    return folder


def test_the_test_part_is_the_clip_alone(clip_run):
    questions = {q["question_id"]: q for q in read_json(clip_run / "results/index/questions.json")["questions"]}
    parts = read_json(clip_run / "results/split/split.json")["parts"]
    assert {questions[key]["episode_history"] for key in parts["test"]} == {CLIP}
    assert len(parts["test"]) == 3
    assert {questions[key]["root"] for part in ("train", "val") for key in parts[part]} == {"demo"}


def test_eight_frames_came_from_the_video(clip_run):
    record = next(
        e for e in read_json(clip_run / "results/index/episodes.json")["episodes"] if e["episode_history"] == CLIP
    )
    assert (record["kind"], record["frames"], record["width"], record["height"]) == ("video", 168, 1280, 720)
    frames = read_json(clip_run / "results/frames/manifest.json")["episodes"][CLIP]
    assert frames["indices"] == [0, 24, 48, 72, 95, 119, 143, 167]
    assert len(list((clip_run / "results/frames" / CLIP).glob("*.jpg"))) == 8


def test_every_model_answers_the_three_real_questions(clip_run):
    for model in ("base", "tuned", "blind", "majority"):
        assert len(read_jsonl(clip_run / f"results/predictions/{model}.jsonl")) == 3


def test_report_tells_real_from_rendered_episodes(clip_run):
    page = (clip_run / "results/report/index.html").read_text()
    assert "real" in page.lower()
    assert "drawn" in page.lower()
    assert "How many chairs are around the dining table?" in page


def test_users_folder_stands_in_no_artifact(clip_run, openeqa):
    needle = str(openeqa).encode()
    for path in sorted((clip_run / "results").rglob("*")):
        if path.is_file() and "train_log" not in path.parts:
            assert needle not in path.read_bytes(), path


def test_base_model_and_rooms_were_not_made_again(clip_run):
    said = (clip_run / ".git/clip_run.txt").read_text()
    assert "rule make_demo_model" not in said
    assert "rule make_demo_episodes" not in said


def test_results_stay_valid_where_the_users_folder_is_not(clip_run, tmp_path):
    """Pulled onto a laptop: no OPENEQA_DATA there."""
    done = project.call(clip_run, "snakemake", "-n")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_config_that_was_used_names_the_variable_not_the_folder(clip_run):
    assert json.loads((clip_run / "results/config.json").read_text())["data"]["source"] == "$OPENEQA_DATA"
