"""What a person at a terminal sees of a run, and what a log file gets."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.terminal import Ending, failure_lines
from tests.lib.project import ROOT, environment

SNAKEFILE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts.lib import terminal
terminal.watch(workflow)

rule all:
    input: "b"

rule first_step:
    output: "a"
    log: "logs/a.log"
    shell: "echo 'first_step: a.json: 7 rows, 8 wanted; run it again' > {{log}}; ! rm broken 2> /dev/null && touch {{output}}"

rule second_step:
    input: "a"
    output: "b"
    shell: "touch {{output}}"

rule fetch_episodes:
    output: "c"
    shell: "touch {{output}}"
"""
METRICS = '{"base_exact_match": 7.5, "tuned_exact_match": 27.5}'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/metrics.json").write_text(METRICS)
    return tmp_path


def at_terminal(folder: Path, *options: str) -> tuple[int, str]:
    """Snakemake with a terminal for stdout and stderr: exit code and everything that it wrote there."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [ROOT / ".venv/bin/snakemake", "--cores", "1", *options],
        cwd=folder,
        env=environment(TERM="xterm-256color", COLUMNS="120", LINES="40"),
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    text = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not block:
            break
        text += block
    os.close(master)
    return process.wait(timeout=300), text.decode()


def in_pipe(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".venv/bin/snakemake", "--cores", "1", *options],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_terminal_gets_a_view_and_one_summary_last(project):
    code, text = at_terminal(project)
    assert code == 0
    assert "Total Progress" in text
    assert "second step" in text
    assert text.count("results/metrics.json") == 1
    assert text.index("Total Progress") < text.index("base      exact match   7.5 %")


def test_a_terminal_gets_the_summary_where_nothing_is_to_be_done(project):
    assert at_terminal(project)[0] == 0
    _, text = at_terminal(project)
    assert "Nothing to be done" in text
    assert "tuned     exact match  27.5 %" in text


def test_one_target_has_no_summary(project):
    code, text = at_terminal(project, "a")
    assert code == 0
    assert "exact match" not in text


def test_a_failed_job_is_told_at_the_terminal_with_its_log(project):
    (project / "broken").touch()
    code, text = at_terminal(project)
    assert code == 1
    end = text[text.rindex("failed: first_step") :]
    assert "logs/a.log" in end
    assert "a.json: 7 rows, 8 wanted" in end
    assert "exact match" not in text, "old numbers are not told after a failure"


def test_a_job_that_succeeded_when_tried_again_has_not_failed(project):
    (project / "broken").touch()  # removed by the first try
    code, text = at_terminal(project, "--retries", "1")
    assert code == 0
    assert "failed: first_step" not in text
    assert "tuned     exact match  27.5 %" in text


def test_a_dry_run_at_a_terminal_keeps_the_reasons(project):
    code, text = at_terminal(project, "-n")
    assert code == 0
    assert "reason: Missing output files: a" in text
    assert "Total Progress" not in text
    assert "exact match" not in text


def test_the_download_that_draws_its_own_bar_has_the_terminal_for_itself(project):
    code, text = at_terminal(project, "fetch_episodes")
    assert code == 0
    assert "Total Progress" not in text


def test_a_cluster_keeps_snakemakes_own_words(project):
    """The Slurm plugin ends at once where there is no Slurm: what it said until then came from Snakemake's own handler."""
    code, text = at_terminal(project, "--executor", "slurm", "--jobs", "1")
    assert code == 1
    assert "Workflow start" not in text
    assert "sbatch" in text or "slurm" in text.lower()


def test_shell_commands_are_shown_on_request(project):
    _, text = at_terminal(project, "--printshellcmds")
    assert "touch b" in text
    assert "Total Progress" not in text


def test_a_pipe_gets_plain_lines_and_no_summary(project):
    done = in_pipe(project)
    assert done.returncode == 0
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert "2 of 3 steps" in done.stderr or "3 of 3 steps" in done.stderr
    assert "exact match" not in done.stderr


def test_a_failed_job_is_told_at_the_end_of_a_log_file_too(project):
    (project / "broken").touch()
    done = in_pipe(project)
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-2:] == [
        "failed: first_step (log logs/a.log)",
        "    first_step: a.json: 7 rows, 8 wanted; run it again",
    ]


def test_a_missing_log_does_not_hide_the_failure(tmp_path):
    assert failure_lines({"train": ["logs/nowhere.log"]}, tmp_path) == ["failed: train"]


def test_an_error_that_is_no_job_leaves_no_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/metrics.json").write_text(METRICS)
    ending = Ending()
    ending.emit(logging.makeLogRecord({"event": "progress", "done": 3, "total": 3, "levelno": logging.INFO}))
    assert ending.lines(tmp_path, everything=True)
    ending.emit(logging.makeLogRecord({"msg": "dvc commit failed", "levelno": logging.ERROR}))
    assert ending.lines(tmp_path, everything=True) == []
