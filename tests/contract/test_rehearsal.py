"""The rehearsal calls scripts as the rules do; its page and its sums follow from its numbers."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from bench import rehearse
from scripts.lib.config import load_yaml
from scripts.lib.errors import EqaError
from tests.lib.project import ROOT, environment

# what the demo's rules do besides, and why a rehearsal needs none of it
NOT_REHEARSED = {
    "write_config",
    "write_plots",
    "write_report",
    "write_model_card",  # no time, no memory to speak of
    "export_openeqa",
    "export_gguf",
    "prepare_ollama",
    "import_ollama",  # needs no GPU
}


def rule_commands() -> set[tuple[str, tuple[str, ...]]]:
    """(environment, words after `python -m`) of every job that Snakemake plans for the demo."""
    done = subprocess.run(
        ["snakemake", "-n", "-p", "--forceall", "all", "results/serve/check_lmdeploy.json"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = set()
    for line in re.findall(r"^ *(uv run .* -m scripts\..*)$", done.stdout + done.stderr, flags=re.MULTILINE):
        words = shlex.split(re.sub(r'"\$\(dirname (\S+)/uv\.lock\)"', r"\1", line).replace('"$(dirname uv.lock)"', "."))
        words = words[: next(i for i, word in enumerate(words) if word.startswith((">", "2>")))]
        if "scripts.lib.devices" in words:  # picks a GPU where there are several, then starts the script
            words = words[words.index("--", words.index("scripts.lib.devices")) + 1 :]
        folder = words[words.index("--project") + 1] if "--project" in words else "."
        found.add((folder, tuple(words[words.index("-m") + 1 :])))
    return found


def test_each_step_is_the_command_line_of_its_rule():
    planned = rule_commands()
    steps = rehearse.plan(load_yaml(ROOT / "config/presets/demo.yaml"), cuda=True)
    ours = {(step.environment, words) for step in steps for words in step.commands}
    # the two that a recipe without LMDeploy runs in the light environment
    there = {words for _, words in planned}
    for folder, words in sorted(ours):
        assert words in there, words
        if words[0] not in ("scripts.bench_lmdeploy", "scripts.check_serving"):
            assert (folder, words) in planned, (folder, words)
    left = {words[0].removeprefix("scripts.") for words in there - {words for _, words in ours}}
    assert left <= NOT_REHEARSED


@pytest.mark.parametrize("preset", ["demo", "openeqa-80gb", "openeqa-t4"])
def test_steps_need_only_steps_before_them(preset):
    seen: set[str] = set()
    for step in rehearse.plan(load_yaml(ROOT / f"config/presets/{preset}.yaml"), cuda=True):
        assert set(step.needs) <= seen, step.name
        assert step.name not in seen
        seen.add(step.name)


def test_a_changed_command_changes_its_step_and_those_after_it():
    config = load_yaml(ROOT / "config/presets/demo.yaml")
    before = rehearse.step_keys(rehearse.plan(config, cuda=False), "")
    config["train"]["seed"] += 1
    after = rehearse.step_keys(rehearse.plan(config, cuda=False), "")
    changed = {name for name in before if before[name] != after[name]}
    assert {"build_sft", "train_adapter", "merge_adapter", "compare_models"} <= changed
    assert not changed & {"sample_frames", "make_demo_model", "predict_majority"}


def test_whole_training_adds_the_steps_and_validations_that_did_not_run():
    times = {"steps_run": 10, "step_s": 2.0, "validation_s": 5.0}
    # 90 more steps, and validations at 25, 50, 75, 100 in place of one
    assert rehearse.whole_training_s(60.0, times, 100, 25) == 60 + 90 * 2 + 3 * 5
    assert rehearse.whole_training_s(60.0, times, 10, 25) == 60


def test_steps_of_a_recipe():
    train = {"max_steps": -1, "batch_size": 4, "gradient_accumulation": 2, "epochs": 3.0}
    assert rehearse.whole_steps({"train": train}, 33) == 15  # 9 batches, 5 steps an epoch
    assert rehearse.whole_steps({"train": train | {"max_steps": 7}}, 33) == 7


def test_made_questions_have_open_eqas_counts():
    rows = rehearse.make_questions()
    assert len(rows) == 1636
    assert len({row["question_id"] for row in rows}) == 1636
    assert len({row["episode_history"] for row in rows}) == 152
    assert len({row["category"] for row in rows}) == 7


def test_unknown_key_of_a_preset_is_refused_by_name():
    with pytest.raises(EqaError, match=r"train\.nosuch: .*demo\.yaml"):
        rehearse.recipe("demo", {"train.nosuch": 1})


def test_page_is_made_from_the_results(tmp_path):
    rehearse.write_page(tmp_path / "rehearsal.md")
    assert (tmp_path / "rehearsal.md").read_text() == (ROOT / "docs/rehearsal.md").read_text(), (
        "run: python -m bench.rehearse --page docs/rehearsal.md"
    )


def test_page_tells_of_failed_and_missing_steps():
    rows = [
        {"step": "a", "status": "failed", "seconds": 3.0, "peak_mb": 512, "gpu_mb": 2048, "why": "a: no room"},
        {"step": "b", "status": "not run", "why": "a did not end well"},
    ]
    lines = rehearse.table({"steps": rows})
    assert "| a | 3.0 s |  | 0.5 GiB | 2.0 GiB | failed: a: no room |" in lines
    assert "| b | not run | | | | a did not end well |" in lines


def test_comparison_takes_the_longer_prediction_of_the_tutorials_number_of_questions():
    def row(step: str, seconds: float, **facts: float) -> dict:
        return {"step": step, "status": "ok", "whole_s": seconds, "facts": facts}

    steps = [
        row("train_adapter", 100.0, epochs=12.0),
        row("predict/base", 43.0, count=129),
        row("predict/tuned", 20.0, count=129),
    ]
    record = {"steps": steps, "tutorial": rehearse.TUTORIAL, "device": "X"}
    lines = rehearse.against_tutorial(record)
    assert "| training, 3 epochs there and 12 here | 2 h 27 min | 1 min 40 s | 88 |" in lines
    assert "| answers to 258 test questions | 2 h 55 min | 1 min 26 s | 122 |" in lines
    steps[0]["status"] = "failed"
    assert rehearse.against_tutorial(record) == []


@pytest.mark.parametrize(("seconds", "text"), [(4.24, "4.2 s"), (185, "3 min 05 s"), (8820, "2 h 27 min")])
def test_durations_read_as_people_say_them(seconds, text):
    assert rehearse.clock(seconds) == text
