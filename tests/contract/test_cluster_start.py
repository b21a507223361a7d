"""What stops a run on Slurm before its first job, in one line. Slurm's programs are stand-ins that keep what they were asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.lib import cluster
from scripts.lib.errors import EqaError
from tests.lib import project

SLURM = ["snakemake", "--workflow-profile", "profiles/slurm", "--slurm-no-account"]
NOWHERE = {"OLLAMA_HOST": "127.0.0.1:9", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone whose recipe asks for an import by Ollama."""
    folder = project.make_clone(tmp_path_factory.mktemp("start") / "clone")
    config = folder / "config/config.yaml"
    text = config.read_text()
    assert "  ollama: false\n" in text
    config.write_text(text.replace("  ollama: false\n", "  ollama: true\n"))
    return folder


def programs(folder: Path, accounting: str) -> dict[str, str]:
    """Environment with a Slurm of stand-ins; each writes its name to FOLDER/asked."""
    folder.mkdir(exist_ok=True)
    for name in ("sinfo", "squeue", "sacct", "sbatch", "scontrol", "sacctmgr", "scancel"):
        said = (
            f"AccountingStorageType   = {accounting}\nMinJobAge               = 300 sec" if name == "scontrol" else ""
        )
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {folder}/asked\ncat <<'EOF'\n{said}\nEOF\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{project.environment()['PATH']}"}


def stopped(clone: Path, environ: dict[str, str], *options: str) -> str:
    """The one line of a run that stopped before any job."""
    done = project.call(clone, *SLURM, *options, check=False, timeout=120, **NOWHERE, **environ)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / "data/raw").exists()
    assert not (clone / "results/config.json").exists()
    assert "sbatch" not in (Path(environ["PATH"].partition(":")[0]) / "asked").read_text().split()
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("accounting", ["accounting_storage/none", "(null)"])
def test_accounts_that_are_not_kept_stop_the_run_instead_of_being_asked_for_ever(clone, tmp_path, accounting):
    line = stopped(clone, programs(tmp_path / "bin", accounting))
    assert line.startswith("slurm-status-command=sacct")
    assert f"AccountingStorageType={accounting}" in line
    assert "say `slurm-status-command: squeue`" in line


def test_local_rules_are_checked_on_a_cluster_before_any_job(clone, tmp_path):
    """import_ollama runs where Snakemake runs, at the end of hours of GPU work."""
    environ = programs(tmp_path / "bin", "accounting_storage/none")
    line = stopped(clone, environ, "--slurm-status-command", "squeue")
    assert line.startswith("config: deliver.ollama=true, but no Ollama server answers")


@pytest.mark.parametrize(
    ("status_command", "script"),
    [
        ("squeue", "echo 'AccountingStorageType = accounting_storage/none'"),
        ("sacct", "echo 'AccountingStorageType   = accounting_storage/slurmdbd'"),
        ("sacct", "echo words"),
        ("sacct", "echo 'AccountingStorageType = (null)'; exit 1"),
        ("sacct", "sleep 30"),
    ],
)
def test_accounts_that_are_kept_or_not_known_stop_nothing(tmp_path, monkeypatch, status_command, script):
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cluster, "SCONTROL_S", 0.5)
    cluster.check_accounting(status_command)


def test_accounting_that_is_unset_is_told(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'AccountingStorageType   = '\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EqaError, match=r"AccountingStorageType=unset"):
        cluster.check_accounting(None)
