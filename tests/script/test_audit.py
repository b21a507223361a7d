"""`make audit` reads pip-audit's report and tells silence from safety."""

from __future__ import annotations

import subprocess

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
    monkeypatch.setattr(audit, "requirements", lambda environment: "six==1.16.0\n")
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
    assert capsys.readouterr().out.count("not run, the advisory service does not answer") == 4


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
    assert "4 known vulnerabilities" in printed.err


def test_other_failure_is_told(monkeypatch):
    answer(monkeypatch, "", "pip_audit: unrecognized option", 2)
    with pytest.raises(EqaError, match="unrecognized option"):
        audit.audit(".")


def test_requirements_of_the_light_environment_are_all_pinned(root, monkeypatch):
    monkeypatch.chdir(root)
    lines = [line for line in audit.requirements(".").splitlines() if line and not line.startswith((" ", "#"))]
    assert len(lines) > 100
    assert all("==" in line for line in lines)
