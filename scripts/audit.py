"""Known vulnerabilities of every locked package, by pip-audit; says "not run" where the advisory service does not answer.

By hand:
    python -m scripts.audit
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry
from scripts.lib.errors import EqaError

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


def audit(environment: str) -> list[tuple[str, str, str]] | None:
    """Findings of one environment; None where the advisory service does not answer.

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
        return findings(json.loads(done.stdout))
    except ValueError:
        if any(word in done.stderr for word in UNREACHABLE):
            return None
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EqaError(f"{environment}: pip-audit failed: {last}; `make setup-test` installs it") from None


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    return argparse.ArgumentParser(prog="audit", description=__doc__.splitlines()[0])


def run(args: argparse.Namespace) -> dict:
    """Door 2: every environment; a finding is a failure, silence of the service is not."""
    found: list[tuple[str, str, str]] = []
    not_run = []
    for environment in ENVIRONMENTS:
        result = audit(environment)
        if result is None:
            not_run.append(environment)
            print(f"{environment}: not run, the advisory service does not answer")
            continue
        found += result
        print(f"{environment}: {len(result)} findings")
        for package, version, advisory in result:
            print(f"  {package} {version} {advisory}")
    if found:
        raise EqaError(f"{len(found)} known vulnerabilities in locked packages; raise the pins and run `uv lock`")
    return {"environments": len(ENVIRONMENTS), "not_run": not_run}


def main(argv: Sequence[str] | None = None) -> int:
    """Door 3: terminal."""
    return entry("audit", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
