"""Prediction shards in the pipeline: the same answers from more jobs, and a lost shard is one job's work."""

from __future__ import annotations

import re

import pytest

from tests.lib import project

pytestmark = pytest.mark.demo
TARGET = "results/predictions/blind.jsonl"
SHARDS = "results/predictions/shards/blind"


def planned(folder) -> list[str]:
    """Jobs that would run for the blind model's answers: "rule shard" each."""
    done = project.call(folder, "snakemake", "-n", TARGET)
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)+)", done.stdout + done.stderr, flags=re.M)
    return sorted(" ".join([rule, *re.findall(r"shard=(\d+)", text)]) for rule, text in jobs)


def test_more_shards_give_the_same_bytes_and_a_lost_one_is_redone_alone(demo_copy):
    """The demo's test part is more than one batch, so that both shards have something to do."""
    before = [(demo_copy / "results/predictions" / name).read_bytes() for name in ("blind.jsonl", "blind.meta.json")]
    config = demo_copy / "config/config.yaml"
    assert config.read_text().count("  shards: 1\n") == 1
    config.write_text(config.read_text().replace("  shards: 1\n", "  shards: 2\n"))
    assert planned(demo_copy) == ["join_predictions", "predict 0000", "predict 0001"]
    project.call(demo_copy, "snakemake", "--cores", "2", TARGET)
    assert all((demo_copy / SHARDS / f"{number:04d}.jsonl").stat().st_size for number in range(2))
    (demo_copy / SHARDS / "0001.jsonl").unlink()
    assert planned(demo_copy) == ["join_predictions", "predict 0001"]
    project.call(demo_copy, "snakemake", "--cores", "2", TARGET)
    after = [(demo_copy / "results/predictions" / name).read_bytes() for name in ("blind.jsonl", "blind.meta.json")]
    assert after == before
