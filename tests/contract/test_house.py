"""What may not stand in the project's files."""

from __future__ import annotations

import re

import pytest

from tests.lib.project import ROOT, source_files

TEXT = [
    name
    for name in source_files()
    if not name.endswith((".lock", ".png", ".svg", ".jpg", ".mp4", ".ico")) and "/data/" not in name
]


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?<![\w.])/(?:root|home/\w+|workspace|work/main)/",  # a path of one machine
        r"trust_remote_code[\"']?\s*[:=]\s*[Tt]rue",  # code from a model folder is never run
        r"\bpickle\.load",  # nor are foreign pickles opened
        r"shell=True",  # text never reaches a shell
    ],
)
def test_no_file_holds(pattern):
    found = []
    for name in TEXT:
        if name.startswith(("tests/", "docs/")) or name.endswith(".md"):
            continue  # they speak of what is refused
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_every_bench_prints_through_the_shared_reporter():
    benches = [
        path
        for path in sorted((ROOT / "bench").glob("*.py"))
        if path.name not in ("__init__.py", "lib.py", "make_2b.py")
    ]
    assert benches
    for path in benches:
        assert "bench.lib" in path.read_text(), path


def test_every_script_has_a_test():
    """Each file of scripts/ is named by at least one test."""
    tests = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py")))
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "scripts").glob("*.py"))
        if path.name != "__init__.py" and not re.search(rf"\b{path.stem}\b", tests)
    ]
    assert not missing
