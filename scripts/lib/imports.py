"""Which files of this project a script is made of, found by reading its imports."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


@functools.cache
def code_files(module: str, root: Path) -> tuple[str, ...]:
    """Source files of `module` and of every `scripts...` module that it imports, directly or not.

    Imports inside functions count too: heavy imports live there. Files are inputs of the rule, so that an edited
    helper reruns exactly the rules that use it.

    Args:
        module: dotted name, such as "scripts.sample_frames".
        root: the project's folder.
    Returns:
        Paths relative to `root`, sorted.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file_of(name, root)
        if file is None or file.relative_to(root).as_posix() in found:
            continue
        found.add(file.relative_to(root).as_posix())
        waiting += _project_imports(file)
    return tuple(sorted(found))


@functools.cache
def _project_imports(file: Path) -> tuple[str, ...]:
    """Dotted names under `scripts` that a file imports. Read once a process: most modules belong to many rules."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("scripts")]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("scripts"):
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def _file_of(name: str, root: Path) -> Path | None:
    path = root.joinpath(*name.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return None  # a package's __init__ is empty by rule (a test checks), a name inside a module is no file
