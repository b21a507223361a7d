"""The CI script keeps its promises."""

from __future__ import annotations

import re
import subprocess

from tests.lib.project import ROOT


def test_ci_script_calls_the_readmes_test_verb():
    text = (ROOT / ".ci/run").read_text()
    assert "make test" in text


def test_shell_scripts_parse():
    for path in [ROOT / ".ci/run", *sorted((ROOT / "scripts").rglob("*.sh"))]:
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0, path


def test_machine_check_names_the_debian_package(tmp_path):
    """With a python that is too old for us, the first line says what to install."""
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\necho 3.9\n")
    fake.chmod(0o755)
    done = subprocess.run(["bash", str(ROOT / "scripts/check_machine.sh"), str(fake)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "3.11, 3.12 or 3.13 is wanted" in done.stderr
    absent = subprocess.run(["bash", str(ROOT / "scripts/check_machine.sh"), "python9"], capture_output=True, text=True)
    assert absent.returncode == 2
    assert "Debian's package python3" in absent.stderr


INNER = {"setup-test", "check-machine"}  # called by other verbs
NO_BENCH = {"__init__", "lib", "make_2b"}  # helpers
NOT_IN_BENCH = {"conversation_modes", "lmdeploy", "rehearse"}  # told at the end of `make bench`


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-s", "-C", str(ROOT), *words], capture_output=True, text=True)


def test_make_lists_every_verb():
    text = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"^([A-Za-z0-9][\w-]*):(?!=)", text, flags=re.MULTILINE)) - INNER
    assert {"zero2", "test-gpu", "demo"} <= verbs
    listed = dict(re.findall(r"^  make (\S+) +(\S.*)$", make().stdout, flags=re.MULTILINE))
    assert set(listed) == verbs
    phony = set(re.search(r"^\.PHONY: (.+)$", text, flags=re.MULTILINE).group(1).split())
    assert phony <= verbs | INNER, "no such target"


def test_make_bench_runs_every_bench_or_says_which_not():
    text = (ROOT / "Makefile").read_text()
    words = re.search(r"^BENCHES := (.+)$", text, flags=re.MULTILINE).group(1)
    train = re.search(r"^TRAIN_BENCHES := (.+)$", text, flags=re.MULTILINE).group(1)
    named = set(words.replace("$(TRAIN_BENCHES)", train).split())
    benches = {path.stem for path in (ROOT / "bench").glob("*.py")} - NO_BENCH
    assert named == benches - NOT_IN_BENCH
    (told,) = re.findall(r'echo "bench: not among them: (.+)"', text)
    for name in NOT_IN_BENCH:
        assert name in told


def test_make_bench_goes_on_after_a_failed_one_and_fails_at_the_end(tmp_path):
    """The recipe's own shell, with programs that only tell their names."""
    recipe = re.search(r"^bench: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE).group(1)
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "ran $*"\n[ "$2" != bench.scale ]\n')
    fake.chmod(0o755)
    (tmp_path / "uv").write_text('#!/bin/sh\nshift 5\nexec python "$@"\n')
    (tmp_path / "uv").chmod(0o755)
    (tmp_path / "Makefile").write_text(
        "SHELL := /bin/bash\n.SHELLFLAGS := -euo pipefail -c\nRUN := export PATH=.:$$PATH &&\nUV := ./uv\n"
        f"TRAIN_BENCHES := predict_throughput\nBENCHES := scale startup predict_throughput\nbench:\n{recipe}"
    )
    done = subprocess.run(["make", "-s", "bench"], cwd=tmp_path, capture_output=True, text=True)
    ran = re.findall(r"^ran (.+)$", done.stdout, flags=re.MULTILINE)
    assert ran == ["-m bench.scale", "-m bench.startup", "-m bench.predict_throughput"]
    assert done.returncode != 0
    assert "bench: failed: scale;" in done.stderr


def test_a_path_with_a_space_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "my project"
    folder.mkdir()
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    done = subprocess.run(["make", "help"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    (said,) = done.stderr.strip().splitlines()
    assert "my project: make splits its targets at the spaces of this path; move the project" in said
