"""`make audit` reads pip-audit's report and tells silence from safety."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from scripts import audit
from scripts.lib.errors import EqaError


def test_findings_are_read_from_the_report():
    report = {
        "dependencies": [
            {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-2"}, {"id": "PYSEC-1"}]},
            {"name": "a", "version": "1", "vulns": []},
            {"name": "c", "skip_reason": "no such package"},
        ]
    }
    assert audit.findings(report) == [("b", "2", "PYSEC-1"), ("b", "2", "PYSEC-2")]


def test_package_that_the_service_does_not_know_is_named():
    report = {"dependencies": [{"name": "b", "version": "2", "vulns": []}, {"name": "c", "skip_reason": "no such"}]}
    assert audit.skipped(report) == ["c"]


def test_accepted_findings_have_a_reason(tmp_path):
    page = tmp_path / "security.md"
    head = "## Accepted findings\n\n| package | advisory | reason |\n|---|---|---|\n"
    page.write_text(head + "| `six` | GHSA-1 | not called |\n\n## Else\n\n| a | GHSA-2 | x |\n")
    assert audit.accepted(page) == {("six", "GHSA-1")}
    page.write_text(head + "| six | GHSA-1 | |\n")
    with pytest.raises(EqaError, match="GHSA-1 of six is accepted without a reason"):
        audit.accepted(page)


def test_projects_own_page_is_read(root):
    assert isinstance(audit.accepted(root / audit.ACCEPTED), set)


def answer(monkeypatch, stdout: str, stderr: str, code: int) -> None:
    monkeypatch.setattr(audit, "pins", lambda source: [("six", "1.16.0")])
    done = subprocess.CompletedProcess([], code, stdout, stderr)
    monkeypatch.setattr(audit.subprocess, "run", lambda *args, **kwargs: done)


def test_silent_service_is_not_run_and_no_failure(monkeypatch, capsys):
    answer(monkeypatch, "", "requests.exceptions.ConnectionError: Max retries exceeded", 1)
    assert audit.main([]) == 0
    assert "not run, the advisory service does not answer" in capsys.readouterr().out


def test_index_without_advisories_is_not_run(monkeypatch, capsys):
    """It answers "not found" for each package, and pip-audit then says "no known vulnerabilities"."""
    answer(monkeypatch, '{"dependencies": [{"name": "six", "skip_reason": "Dependency not found on PyPI"}]}', "", 0)
    assert audit.main([]) == 0
    assert capsys.readouterr().out.count("not run, the advisory service does not answer") == len(audit.sources())


def test_accepted_finding_is_no_failure(monkeypatch, capsys):
    answer(monkeypatch, '{"dependencies": [{"name": "six", "version": "1.16.0", "vulns": [{"id": "X-1"}]}]}', "", 1)
    monkeypatch.setattr(audit, "accepted", lambda: {("six", "X-1")})
    assert audit.main([]) == 0
    assert "0 findings, 1 accepted" in capsys.readouterr().out


def test_finding_is_a_failure(monkeypatch, capsys):
    answer(monkeypatch, '{"dependencies": [{"name": "six", "version": "1.16.0", "vulns": [{"id": "X-1"}]}]}', "", 1)
    assert audit.main([]) == 2
    printed = capsys.readouterr()
    assert "six 1.16.0 X-1" in printed.out
    assert f"{len(audit.sources())} known vulnerabilities" in printed.err


def test_other_failure_is_told(monkeypatch):
    answer(monkeypatch, "", "pip_audit: unrecognized option", 2)
    with pytest.raises(EqaError, match="unrecognized option"):
        audit.audit(Path("uv.lock"))


def asked_of_the_service(folder: Path, sources: list[Path]) -> set[tuple[str, str]]:
    """What pip-audit itself takes out of the requirements that it is given."""
    from pip_audit._dependency_source import RequirementSource

    found = set()
    for number, one in enumerate(one for source in sources for one in audit.rounds(audit.pins(source))):
        (file := folder / f"{number}.txt").write_text("".join(f"{name}=={version}\n" for name, version in one))
        found |= {(p.name, str(p.version)) for p in RequirementSource([file], no_deps=True, disable_pip=True).collect()}
    return found


def test_every_lock_and_requirement_file_in_git_is_audited(root):
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    wanted = {
        name
        for name in listed
        if name.endswith(("uv.lock", "requirements.txt")) or (name.startswith("envs/") and name.endswith(".txt"))
    }
    mini = "tests/e2e/data/mini/"  # a stand-in project whose lock is a text
    wanted = {name for name in wanted if not name.startswith(mini)}
    assert {path.relative_to(root).as_posix() for path in audit.sources(root)} == wanted


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("uv.lock", "snakemake"),
        ("uv.lock", "pytest"),  # group dev
        ("uv.lock", "pip-audit"),
        ("uv.lock", "kubernetes"),  # group kubernetes
        ("uv.lock", "kubernetes-validate"),  # group test-kubernetes
        ("uv.lock", "colorama"),  # for Windows only
        ("envs/train/uv.lock", "llamafactory"),
        ("envs/train/uv.lock", "pytest-timeout"),  # group dev
        ("envs/train/zero2.txt", "deepspeed"),
        ("envs/gguf/uv.lock", "xllamacpp"),
        ("envs/serve/uv.lock", "lmdeploy"),
    ],
)
def test_package_of_every_group_and_file_is_asked_about(root, tmp_path, source, package):
    assert package in {name for name, _ in asked_of_the_service(tmp_path, [root / source])}


def test_every_version_of_the_locks_is_asked_about(root, tmp_path):
    """A lock for several Pythons holds two versions of some packages."""
    locks = [path for path in audit.sources(root) if path.name == "uv.lock"]
    pattern = r'^name = "(.+)"\nversion = "(.+)"\nsource = \{ registry'
    wanted = {pin for lock in locks for pin in re.findall(pattern, lock.read_text(), re.MULTILINE)}
    assert len(wanted) > 300
    assert wanted <= asked_of_the_service(tmp_path, locks)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("uv.lock", "x", "run `uv lock` there"),
        ("uv.lock", "version = 1", "KeyError"),
        ("uv.lock", "package = [1]", "run `uv lock` there"),
        ("zero2.txt", "# fine\na==1\nb>=2\n", "line 3 pins no version"),
    ],
)
def test_what_is_no_lock_is_one_line(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(EqaError, match=word) as told:
        audit.pins(tmp_path / name)
    assert "\n" not in str(told.value)


def test_audit_in_another_folder_says_so_and_is_no_success(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/security.md").write_text("")
    monkeypatch.chdir(tmp_path)
    assert audit.main([]) == 2
    assert "run this in the project's folder" in capsys.readouterr().err
