"""Rules, scripts and dvc.yaml agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from scripts.draw_rulegraph import rule_files
from scripts.lib.imports import code_files
from tests.lib.project import ROOT, environment

NOT_SCRIPTS = {"all", "envs"}
RULES = sorted(set(rule_files(ROOT)) - NOT_SCRIPTS)


def rule_text(name: str) -> str:
    """Source of one rule."""
    file = ROOT / f"rules/{rule_files(ROOT)[name]}.smk"
    return re.search(rf"^( *)rule {name}:\n(?:\1 +.*\n|\n)+", file.read_text(), flags=re.MULTILINE).group(0)


@pytest.mark.parametrize("name", RULES)
def test_rule_runs_the_script_of_its_own_name(name):
    text = rule_text(name)
    assert f"python -m scripts.{name} " in text
    assert f'code=code("{name}")' in text
    assert (ROOT / f"scripts/{name}.py").is_file()


@pytest.mark.parametrize("name", RULES)
def test_rule_names_its_log_and_lock(name):
    text = rule_text(name)
    assert re.search(rf'"logs/{name}[./]', text)
    assert re.search(r"lock=", text)
    assert not re.search(r"^ *run:", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", RULES)
def test_rule_quotes_what_it_puts_into_the_shell(name):
    shell = rule_text(name).split("shell:")[1]
    for field in re.findall(r"\{([^}]+)\}", shell):
        assert field.endswith(":q") or field.startswith("params."), field


@pytest.mark.parametrize("name", RULES)
def test_script_shows_its_help_without_heavy_imports(name):
    """Door 3 parses arguments before it imports models: a helper must work in the light environment."""
    done = subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", "--help"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_packages_have_empty_init_files():
    """`code_files` leaves __init__ out, so nothing may live there."""
    for path in (ROOT / "scripts").rglob("__init__.py"):
        assert path.read_bytes() == b"", path


def test_code_of_a_rule_holds_the_modules_it_imports():
    files = code_files("scripts.use_preset", ROOT)
    assert "scripts/use_preset.py" in files
    assert "scripts/lib/config.py" in files
    assert "scripts/lib/tokens.py" in files  # imported by config: the second step
    assert list(files) == sorted(files)


def test_dry_run_plans_every_rule_of_the_demo():
    done = subprocess.run(
        ["snakemake", "-n", "--forceall", "--quiet", "rules"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    planned = set(re.findall(r"^(\w+) +\d+$", done.stdout + done.stderr, flags=re.MULTILINE))
    by_name_only = {"check_serving", "export_parquet", "fetch_episodes", "fetch_base_model", "extract_archive"}
    assert set(RULES) - planned <= by_name_only


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["train={lora_rnak: 8}"], ["config: "]),
        (["nosuch=1"], ["unknown key nosuch"]),
        (
            ["frames={count: 0, choice: uniform, short: refuse, jpeg_quality: 95, shards: 2}"],
            ["frames.count", "integer is wanted"],
        ),
    ],
)
def test_bad_config_stops_before_any_job_in_one_line(override, words):
    done = subprocess.run(
        ["snakemake", "-n", "--config", *override], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("config: ")]
    assert len(told) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in told[0]
