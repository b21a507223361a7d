"""Known vulnerabilities of every locked package, by pip-audit; says "not run" where the advisory service does not answer.

By hand:
    python -m scripts.audit
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry
from scripts.lib.errors import EqaError

ACCEPTED = Path("docs/security.md")
HEADING = "Accepted findings"
ENVIRONMENTS = (".", "envs/train", "envs/gguf", "envs/serve")
# what pip-audit and its HTTP client say when the service cannot be reached
UNREACHABLE = (
    "ConnectionError",
    "Max retries",
    "Could not fetch",
    "timed out",
    "Failed to establish",
    "ServiceError",
    "HTTPError",
    "403",
    "ProxyError",
)


def requirements(environment: str) -> str:
    """Pinned requirements of an environment's lock, without hashes or marks of the project itself.

    Raises:
        EqaError: uv cannot read the lock.
    """
    command = ["uv", "export", "--frozen", "--no-hashes", "--no-emit-project", "--quiet", "--project", environment]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EqaError(
            f"{environment}/uv.lock: uv export failed: {done.stderr.strip().splitlines()[-1:]}; run `uv lock` there"
        )
    return done.stdout


def findings(report: dict) -> list[tuple[str, str, str]]:
    """(package, version, advisory) of pip-audit's JSON report, sorted."""
    return sorted(
        (package["name"], package["version"], advisory["id"])
        for package in report.get("dependencies", [])
        for advisory in package.get("vulns", [])
    )


def skipped(report: dict) -> list[str]:
    """Packages of which the service knew nothing, sorted: they were not audited, which is not the same as safe."""
    return sorted(package["name"] for package in report.get("dependencies", []) if "skip_reason" in package)


def accepted(page: Path = ACCEPTED) -> set[tuple[str, str]]:
    """(package, advisory) of the table "Accepted findings" in docs/security.md, where each has its reason.

    Raises:
        EqaError: a row without a reason.
    """
    _, _, text = page.read_text(encoding="utf-8").partition(f"## {HEADING}\n")
    found = set()
    for line in text.partition("\n## ")[0].splitlines():
        cells = [cell.strip(" `") for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and re.match("(GHSA|PYSEC|CVE)-", cells[1]):
            if not cells[2]:
                raise EqaError(f"{page}: {cells[1]} of {cells[0]} is accepted without a reason; write it there")
            found.add((cells[0], cells[1]))
    return found


def audit(environment: str) -> tuple[list[tuple[str, str, str]], list[str]] | None:
    """Findings of one environment and the packages that were not audited; None where the service does not answer.

    Raises:
        EqaError: pip-audit fails for another reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "requirements.txt")
        path.write_text(requirements(environment))
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--requirement",
            str(path),
            "--no-deps",
            "--disable-pip",
            "--format",
            "json",
            "--progress-spinner",
            "off",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        if any(word in done.stderr for word in UNREACHABLE):
            return None
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EqaError(f"{environment}: pip-audit failed: {last}; `make setup-test` installs it") from None
    unknown = skipped(report)
    if len(unknown) == len(report.get("dependencies", [])):
        return None  # a mirror of the index without advisories answers so: "not found", for every package
    return findings(report), unknown


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    return argparse.ArgumentParser(prog="audit", description=__doc__.splitlines()[0])


def run(args: argparse.Namespace) -> dict:
    """Door 2: every environment; a finding is a failure, silence of the service is not."""
    found: list[tuple[str, str, str]] = []
    not_run, unknown = [], []
    fine = accepted()
    for environment in ENVIRONMENTS:
        result = audit(environment)
        if result is None:
            not_run.append(environment)
            print(f"{environment}: not run, the advisory service does not answer")
            continue
        known, skips = result
        fresh = [finding for finding in known if (finding[0], finding[2]) not in fine]
        found += fresh
        unknown += skips
        print(f"{environment}: {len(fresh)} findings, {len(known) - len(fresh)} accepted in {ACCEPTED}")
        for package, version, advisory in fresh:
            print(f"  {package} {version} {advisory}")
        if skips:
            print(f"  not audited, as the service does not know them: {', '.join(skips)}")
    if found:
        raise EqaError(
            f"{len(found)} known vulnerabilities in locked packages; raise the pins and run `uv lock`, or accept them "
            f"with a reason in {ACCEPTED}"
        )
    return {"environments": len(ENVIRONMENTS), "not_run": not_run, "not_audited": sorted(set(unknown))}


def main(argv: Sequence[str] | None = None) -> int:
    """Door 3: terminal."""
    return entry("audit", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
