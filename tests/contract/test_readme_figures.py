"""The figures of README.md, README.zh.md and the benches' records are the same."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from bench.rehearse import clock, since_then
from scripts.lib.config import load_yaml
from tests.lib.docs import blocks, commands, is_shell
from tests.lib.project import ROOT

ONLY_CHINESE = "与常见教程配方的不同"  # a section for readers of the tutorial


def sections(name: str) -> list[tuple[str, str]]:
    """(title, text) of a page, the opening without a title first."""
    parts = re.split(r"^## (.+)$", (ROOT / name).read_text(), flags=re.MULTILINE)
    return [("", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]


def figures(text: str) -> Counter[str]:
    """Every number of a text, but for those in links."""
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return Counter(re.findall(r"(?<![A-Za-z0-9_.])[+-]?\d[\d,]*(?:\.\d+)?(?![A-Za-z0-9_])", text))


def record(name: str) -> dict:
    """A committed result of a bench."""
    return json.loads((ROOT / f"bench/results/{name}.json").read_text())


def lines_of_several() -> dict[str, dict]:
    """{part: what it came to on two GPUs}."""
    text = (ROOT / "bench/results/several-2x-h100.jsonl").read_text()
    return {row["part"]: row for row in map(json.loads, text.splitlines())}


def test_both_readmes_have_the_same_figures_section_by_section():
    english = sections("README.md")
    chinese = [one for one in sections("README.zh.md") if one[0] != ONLY_CHINESE]
    assert len(english) == len(chinese) == len(sections("README.zh.md")) - 1
    assert sum(figures("".join(text for _, text in english)).values()) > 100
    for (title, left), (other, right) in zip(english, chinese, strict=True):
        ours, theirs = figures(left), figures(right)
        assert ours == theirs, (
            f"{title or 'the opening'} / {other}: {dict(ours - theirs)} against {dict(theirs - ours)}"
        )


def test_both_readmes_have_the_same_commands():
    def typed(page: str) -> list[str]:
        every = [command for block in blocks(ROOT / page) if is_shell(block) for command in commands(block)]
        return [re.sub(r"^(export OPENEQA_DATA=).*", r"\1", command) for command in every]

    assert typed("README.md") == typed("README.zh.md")


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_times_of_the_real_run_are_those_of_its_record(page):
    run = record("rehearsal-h100")
    text = dict(sections(page))
    (part,) = [body for body in text.values() if "train_adapter" in body]
    steps = {row["step"]: row for row in run["steps"]}
    train = steps["train_adapter"]
    assert since_then(run, load_yaml(ROOT / "config/presets/openeqa-80gb.yaml")) == [], (
        "the preset has other steps since"
    )

    def gib(mb: float) -> str:
        return f"{mb / 1024:.1f} GiB"

    lines = {
        "build_sft": ["10 s", gib(steps["build_sft"]["peak_mb"])],
        "train_adapter": [
            clock(train["whole_s"]),
            gib(train["peak_mb"]),
            gib(train["gpu_mb"]),
            gib(train["facts"]["torch_peak_mb"]),
            str(train["facts"]["steps_whole"]),
            "1,204",
        ],
        "predict": ["36 s", gib(steps["predict/base"]["peak_mb"]), gib(steps["predict/base"]["gpu_mb"]), "259"],
        "merge_adapter": [clock(steps["verify_merge"]["whole_s"]), gib(steps["verify_merge"]["gpu_mb"])],
        "bench_lmdeploy": [clock(steps["bench_lmdeploy"]["whole_s"]), gib(steps["bench_lmdeploy"]["gpu_mb"])],
    }
    for name, wanted in lines.items():
        (line,) = [line for line in part.splitlines() if re.match(rf"\| {name}\b", line)]
        assert [word for word in wanted if word not in line] == [], line
    assert any(clock(run["whole_s"]) in line for line in part.splitlines() if line.startswith("|"))
    assert train["facts"]["steps_run"] == train["facts"]["steps_whole"]


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_ratios_against_what_a_user_would_run_are_those_of_the_benches(page):
    train, answers = record("train_throughput-h100"), record("predict_throughput-h100")
    fast, small, t4 = train["runs"]
    two = record("train_throughput-2x-h100")["runs"][1]
    shards = lines_of_several()["predict"]
    sens, tokens = record("frames_sens-2core"), record("tokenize-2core")
    text = (ROOT / page).read_text()
    rows = [
        line
        for line in text.splitlines()
        if (line.startswith("| ") and ("H100" in line or "24 GiB" in line)) or "600" in line or "1,636" in line
    ]
    wanted = [
        *(
            [
                f"{train['baseline']:.2f}",
                f"{run['ours']:.1f}",
                f"{run['ratio']:.0f}",
                f"{run['gpu_mb']['ours_torch'] / 1024:.1f} GiB",
            ]
            for run in (fast, small)
        ),
        [
            f"{answers['baseline']:.2f}",
            f"{answers['ours']:.1f}",
            f"{answers['ratio']:.0f}",
            f"{answers['ours_gpu_mb'] / 1024:.1f} GiB",
        ],
        [f"{sens['baseline']:.1f} s", f"{sens['ours']:.2f} s", f"{sens['ratio']:.0f}", f"{sens['peak_mb']} MB"],
        [f"{tokens['baseline']:.0f} s", f"{tokens['ours']:.0f} s", f"{tokens['ratio']:.0f}", f"{tokens['peak_mb']} MB"],
    ]
    for figures_ in wanted:
        assert any(all(word in line for word in figures_) for line in rows), figures_
    assert (fast["gpus"], small["gpu_gib_limit"], t4["gpu_gib_limit"]) == (1, 24.0, 14.6)
    ends = f"{two['ratio_to_first']:.1f}", f"{shards['ratio']:.1f}", f"{t4['gpu_mb']['ours_torch'] / 1024:.1f} GiB"
    (end,) = [part for part in text.split("\n\n") if "openeqa-t4" in part and "14.6 GiB" in part]
    assert [word for word in ends if word not in end] == []


def test_speed_of_training_is_that_of_its_records():
    train, two = record("train_throughput-h100"), record("train_throughput-2x-h100")["runs"]
    wanted = [
        ["openeqa-80gb", "36,337 MiB, of which torch 34,057"],
        ["held to 24 GiB", "9,183 MiB, of which torch 6,755"],
        ["held to 14.6 GiB", "9,541 MiB, of which torch 6,755"],
    ]
    for words, run in zip(wanted, train["runs"], strict=True):
        memory = f"{run['gpu_mb']['ours']:,} MiB, of which torch {run['gpu_mb']['ours_torch']:,}"
        assert words[1] == memory
        words += [f"{run['ours']:.1f}", f"{run['step_s']:.2f} s", str(run["updates_an_epoch"])]
    wanted.append(["plain", f"{train['baseline']:.2f}", f"{train['runs'][0]['gpu_mb']['baseline']:,} MiB"])
    wanted.append(["DDP", *(f"{run['ours']:.1f}" for run in two), f"{two[1]['ratio_to_first']:.2f}"])
    steady = [f"{run['ours_without_vision_cache_time']:.1f}" for run in two]
    wanted.append(["steps alone", *steady, f"{two[1]['steady_ratio_to_first']:.2f}"])
    several = lines_of_several()
    shards = several["predict"]
    wanted.append(["264 questions", *(f"{s:.1f} s" for s in shards["seconds"]), f"{shards['ratio']:.2f}"])
    first = [f"{rate:.1f}" for rate in shards["steady_questions_per_s"]]
    wanted.append(["first batch", *first, f"{shards['steady_ratio']:.2f}"])
    for kind in ("ddp", "fsdp", "zero2"):
        facts = several[kind]
        assert facts["merge"]["share_identical"] == 1
        words = [f"| {kind} |", f"{facts['losses_apart']['largest']:.2%}".replace("%", " %")]
        words += [f"{max(facts['torch_peak_mb_each']) / 1024:.1f} GiB", "4 of 4"]
        if kind != "ddp":
            words.append(f"{facts['losses_apart_from_ddp']['largest']:.2%}".replace("%", " %"))
        wanted.append(words)
    rows = [line for line in (ROOT / "docs/training.md").read_text().splitlines() if line.startswith("| ")]
    for words in wanted:
        assert any(all(word in line for word in words) for line in rows), words


def test_page_says_what_a_preset_of_other_steps_would_take():
    run = record("rehearsal-h100")
    config = load_yaml(ROOT / "config/presets/openeqa-80gb.yaml")
    assert since_then(run, config) == []
    config["train"]["epochs"] = 24.0
    (told, _) = since_then(run, config)
    assert "12 epochs of training, 336 steps. The preset has 24 epochs, 672 steps" in told
    assert "286 s + 336 more steps x 0.49 s + 13 more validations x 3.8 s = 8 min 20 s" in told
    assert "and all steps 18 min 47 s" in told


def test_contributing_and_readme_agree_on_how_long_the_tests_take():
    found = [
        re.findall(r"make test .*; (?:about )?(\d+ to \d+) minutes on (\d) cores", (ROOT / name).read_text())
        for name in ("README.md", "CONTRIBUTING.md")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 1


def test_security_page_leads_to_the_way_to_report_a_hole():
    assert "CONTRIBUTING.md#reporting-a-hole" in (ROOT / "docs/security.md").read_text()
    assert "## Reporting a hole" in (ROOT / "CONTRIBUTING.md").read_text()
    assert "Reporting a hole" in (ROOT / ".github/ISSUE_TEMPLATE/bug.md").read_text()
