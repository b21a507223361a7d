"""What a rule asks for grows with what it reads: planned with files of the sizes that many episodes would have."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from scripts.lib.sources import questions_size
from tests.lib import project

MB = 1_000_000


def sized(path, size: int) -> None:
    """A file of so many bytes that occupies none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def asked(plan: str) -> dict[str, str]:
    """{rule: mem_mb} of a dry run."""
    blocks = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", plan, flags=re.MULTILINE)
    return {rule: found[1] for rule, block in blocks if (found := re.search(r"resources: .*\bmem_mb=([^,\s]+)", block))}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Plan of a clone whose user has a question file of 100 MB; and what it was before."""
    clone = project.make_clone(tmp_path_factory.mktemp("large") / "clone")
    small = asked(project.call(clone, "snakemake", "-n").stdout)
    source = clone.parent / "user"
    sized(source / "data/open-eqa-v0.json", 100 * MB)
    recipe = clone / "config/config.yaml"
    config = yaml.safe_load(recipe.read_text())
    config["data"] |= {"source": str(source), "frames_remote": "unshared"}
    config["report"] |= {"frames": "link", "dvc_remote": "unshared"}
    recipe.write_text(yaml.safe_dump(config))
    for shard in ("0000", "0001"):
        sized(clone / f"results/frames/shards/{shard}.json", 20 * MB)
    weights = {"model.safetensors": {"size": 4300 * MB, "sha256": "0" * 64}}
    (clone / "models/base").mkdir(parents=True)
    (clone / "models/base/manifest.json").write_text(json.dumps({"files": weights}))
    (clone / "results/merged").mkdir(parents=True)
    (clone / "results/merged/manifest.json").write_text('{"files": ')
    return small, asked(project.call(clone, "snakemake", "-n", "--resources", "mem_mb=100000").stdout)


@pytest.mark.parametrize(
    ("rule", "small_mb", "large_mb"),
    [
        ("list_source", 600, 600 + 12 * 100),
        ("index_episodes", 600, 600 + 16 * 100),
        ("split_questions", 600, 600 + 9 * 100),
        ("predict_majority", 600, 600 + 9 * 100),
        ("score", 600, 600 + 8 * 100),
        ("compare_models", 600, 600 + 12 * 100),
    ],
)
def test_memory_follows_the_question_file_before_any_job_ran(large, rule, small_mb, large_mb):
    small, big = large
    assert (small[rule], big[rule]) == (str(small_mb), str(large_mb))


def test_memory_follows_the_shards_once_they_are_there(large):
    small, big = large
    assert small["join_frames"] == "<TBD>"
    assert big["join_frames"] == str(600 + 11 * 40)


def test_memory_of_model_steps_holds_the_weights(large):
    small, big = large
    assert small["train_adapter"] == "<TBD>"
    assert [big[rule] for rule in ("train_adapter", "predict", "verify_merge")] == ["7800", "6800", "6800"]


def test_a_damaged_manifest_does_not_stop_the_plan(large):
    _, big = large
    assert big["export_gguf"] == "2500"


def test_memory_that_hangs_on_a_file_to_be_made_is_asked_for_later(large):
    small, big = large
    assert small["build_sft"] == big["build_sft"] == "<TBD>"
    assert small["write_report"] == "<TBD>"


def test_the_question_file_is_found_where_the_rules_find_it(tmp_path):
    recorded = tmp_path / "recorded.json"
    assert questions_size("", "q.json", recorded) == 0
    sized(recorded, 7)
    assert questions_size("", "q.json", recorded) == 7
    assert questions_size(str(tmp_path / "gone"), "q.json", recorded) == 7
    sized(tmp_path / "user/data/q.json", 9)
    assert questions_size(str(tmp_path / "user"), "q.json", recorded) == 9
    sized(tmp_path / "user/q.json", 11)
    assert questions_size(str(tmp_path / "user"), "q.json", recorded) == 11
