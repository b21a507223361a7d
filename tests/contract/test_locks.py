"""Locked environments hold no two packages that write the same files."""

from __future__ import annotations

import csv
from collections import defaultdict

import pytest

from tests.lib.project import ROOT

OWN_SHARED = ("tests/", "test/", "docs/", "examples/", "benchmarks/", "LICENSE", "README")


@pytest.mark.parametrize("environment", [".", "envs/train", "envs/gguf"])
def test_no_two_packages_install_one_module(environment):
    """Which of them wins depends on the order of installation, which changes from machine to machine."""
    folders = sorted((ROOT / environment / ".venv/lib").glob("python3.*/site-packages"))
    assert folders, f"no environment in {environment}: `make setup`"
    owners = defaultdict(set)
    for record in sorted(folders[0].glob("*.dist-info/RECORD")):
        with record.open(newline="") as file:
            for row in csv.reader(file):
                name = row[0]
                if (
                    name.endswith(".py")
                    and not name.startswith(("..", *OWN_SHARED))
                    and not name.endswith("__init__.py")
                ):
                    owners[name].add(record.parent.name)
    doubled = {name: sorted(packages) for name, packages in owners.items() if len(packages) > 1}
    assert not doubled, dict(list(doubled.items())[:5])
