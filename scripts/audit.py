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
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.lib.cli import entry
from scripts.lib.errors import EqaError

ACCEPTED = Path("docs/security.md")
HEADING = "Accepted findings"
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
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")


def sources(root: Path = Path()) -> list[Path]:
    """Every lock and requirement file of the project, sorted: one lies in each environment's folder."""
    found = [
        path for folder in (root, *root.glob("envs/*")) for name in ("uv.lock", "*.txt") for path in folder.glob(name)
    ]
    return sorted(found)


def pins(source: Path) -> list[tuple[str, str]]:
    """(package, version) of all that a lock or requirement file pins, sorted.

    A lock is read as it is: `uv export` leaves out the groups that are off by default, and pip-audit what is for another
    Python or system than its own. Packages of the project itself are left out.

    Raises:
        EqaError: no lock that uv wrote, or a requirement without a version.
    """
    if source.name != "uv.lock":
        return sorted(set(_requirement_pins(source)))
    try:
        lock = tomllib.loads(source.read_text(encoding="utf-8"))
        packages = [p for p in lock["package"] if not {"virtual", "editable", "directory"} & set(p["source"])]
        return sorted({(package["name"], package["version"]) for package in packages})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise EqaError(f"{source}: cannot be read ({type(error).__name__}: {error}); run `uv lock` there") from None


def _requirement_pins(source: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith(("#", "--hash")):
            pin = _PIN.match(line)
            if pin is None:
                raise EqaError(f"{source}: line {number} pins no version ({line[:80]!r}); write it as name==version")
            yield pin[1], pin[2]


def rounds(pinned: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The pins in lists that have one version of a package each: pip-audit refuses two, and locks for several Pythons have
    them.
    """
    made: list[dict[str, str]] = []
    for name, version in pinned:
        free = next((one for one in made if name not in one), None)
        if free is None:
            made.append(free := {})
        free[name] = version
    return [list(one.items()) for one in made]


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


def audit(source: Path) -> tuple[list[tuple[str, str, str]], list[str]] | None:
    """Findings of one lock and the packages that were not audited; None where the service does not answer.

    Raises:
        EqaError: see `pins`; also pip-audit fails for another reason.
    """
    found: list[tuple[str, str, str]] = []
    unknown: list[str] = []
    known = 0
    for one in rounds(pins(source)):
        report = _ask(source, one)
        if report is None:
            return None
        found += findings(report)
        unknown += skipped(report)
        known += len(report.get("dependencies", []))
    if len(unknown) == known:
        return None  # a mirror of the index without advisories answers so: "not found", for every package
    return sorted(found), sorted(unknown)


def _ask(source: Path, pinned: Sequence[tuple[str, str]]) -> dict | None:
    """pip-audit's report on some pins; None where the service does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "requirements.txt")
        path.write_text("".join(f"{name}=={version}\n" for name, version in pinned))
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
        return json.loads(done.stdout)
    except ValueError:
        if any(word in done.stderr for word in UNREACHABLE):
            return None
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EqaError(f"{source}: pip-audit failed: {last}; `make setup-test` installs it") from None


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    return argparse.ArgumentParser(prog="audit", description=__doc__.splitlines()[0])


def run(args: argparse.Namespace) -> dict:
    """Door 2: every lock; a finding is a failure, silence of the service is not."""
    found: list[tuple[str, str, str]] = []
    not_run, unknown = [], []
    fine = accepted()
    asked = sources()
    if not asked:
        raise EqaError("uv.lock: no such file here; run this in the project's folder")
    for source in asked:
        result = audit(source)
        if result is None:
            not_run.append(str(source))
            print(f"{source}: not run, the advisory service does not answer")
            continue
        known, skips = result
        fresh = [finding for finding in known if (finding[0], finding[2]) not in fine]
        found += fresh
        unknown += skips
        print(f"{source}: {len(fresh)} findings, {len(known) - len(fresh)} accepted in {ACCEPTED}")
        for package, version, advisory in fresh:
            print(f"  {package} {version} {advisory}")
        if skips:
            print(f"  not audited, as the service does not know them: {', '.join(skips)}")
    if found:
        raise EqaError(
            f"{len(found)} known vulnerabilities in locked packages; raise the pins and run `uv lock`, or accept them "
            f"with a reason in {ACCEPTED}"
        )
    return {"locks": len(asked), "not_run": not_run, "not_audited": sorted(set(unknown))}


def main(argv: Sequence[str] | None = None) -> int:
    """Door 3: terminal."""
    return entry("audit", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
