"""Pack the locked environments as wheels for a GPU host that has no package index.   By hand, where there is one:

    python -m tests.gpu.pack_wheels --output wheels --python 3.12 --have have.txt

Writes wheels/light, wheels/train and wheels/serve for `python3 -m bench.rehearse --wheels wheels`, and wheels/zero2
(DeepSpeed, by envs/train/zero2.txt) for tests/gpu/several.sh. have.txt is what the
host has already, `pip list --format=freeze` there: a package is left out whose version there is the lock's, or that is
listed without a version, and torch with its CUDA libraries where any version is listed. --drop leaves files out of a
wheel: LMDeploy's TurboMind is 100 MB of code that cannot run Qwen3-VL, and each GPU needs one of bitsandbytes' libraries.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
SETS = {"light": ".", "train": "envs/train", "serve": "envs/serve"}
ZERO2 = "envs/train/zero2.txt"  # over the set train
# without a wheel on the index, and setup.py imports torch: built where envs/train is, without its CUDA operators
BUILT = ("deepspeed",)
# the host's own driver and GPU decide these; a version of theirs is as good as the lock's
HOST = re.compile(r"(torch|torchvision|torchaudio|triton|cuda-[a-z-]+|nvidia-.+)")
# what the steps that run in the light environment import; Snakemake, DVC and the report are not rehearsed
LIGHT = (
    "opencv-python-headless",
    "numpy",
    "pyyaml",
    "jsonschema",
    "httpx",
    "tqdm",
    "sacrebleu",
    "rouge-score",
    "scipy",
)
LIGHT += ("filelock", "decord")  # decord's version is part of what names a frame's file
# what TurboMind, other models and the web pages of both packages import: Qwen3-VL is trained and served without
UNUSED = re.compile(r"nvidia-.+-cu12|ray|rdkit|tilelang|z3-solver|gradio(-client)?|ruff|av|modelscope")
DROPPED = ("lmdeploy:lmdeploy/turbomind/*", "lmdeploy:lmdeploy/lib/*", "bitsandbytes:*_rocm*.so")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_have(text: str) -> dict[str, str]:
    """{name: version, or "" where none is given} of `pip list --format=freeze`."""
    found = {}
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if line:
            name, _, version = line.partition("==")
            found[canonical(name.split("@")[0].strip())] = version.strip()
    return found


def locked(text: str, python: str) -> dict[str, str]:
    """{name: version} of `uv export`'s lines that hold for Linux on x86-64 and this Python."""
    from packaging.requirements import Requirement

    major_minor = ".".join(python.split(".")[:2])
    machine = {"python_version": major_minor, "python_full_version": f"{major_minor}.0", "sys_platform": "linux"}
    machine |= {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
    machine |= {"implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": ""}
    found = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith(("#", "-")):
            continue
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(machine):
            found[canonical(wanted.name)] = next(iter(wanted.specifier)).version
    return found


def closure(lock: Mapping, roots: Sequence[str]) -> set[str]:
    """Names of `roots` and of all that they depend on in a parsed uv.lock, extras and other platforms included."""
    needs: dict[str, set[str]] = {}
    for package in lock["package"]:
        optional = [row for rows in package.get("optional-dependencies", {}).values() for row in rows]
        named = {row["name"] for row in [*package.get("dependencies", []), *optional]}
        needs.setdefault(package["name"], set()).update(named)
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += needs.get(name, ())
    return found


def lacking(wanted: Mapping[str, str], have: Mapping[str, str]) -> dict[str, str]:
    """What the host lacks and the rehearsal imports: {name: version}."""
    left = {}
    for name, version in sorted(wanted.items()):
        there = have.get(name)
        if UNUSED.fullmatch(name):
            continue
        if there is None or (there not in ("", version) and not HOST.fullmatch(name)):
            left[name] = version
    return left


def trim(wheel: Path, patterns: Sequence[str]) -> int:
    """Rewrite a wheel without the files that match; bytes saved. Its RECORD stays true."""
    before = wheel.stat().st_size
    with zipfile.ZipFile(wheel) as old:
        names = [name for name in old.namelist() if not any(fnmatch.fnmatch(name, p) for p in patterns)]
        if len(names) == len(old.namelist()):
            return 0
    with zipfile.ZipFile(wheel) as old, atomic_path(wheel) as part:
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
            rows = []
            for name in names:
                if name == record:
                    continue
                data = old.read(name)
                new.writestr(old.getinfo(name), data, zipfile.ZIP_DEFLATED, 9)
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                rows.append(f"{name},sha256={digest},{len(data)}")
            new.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    return before - wheel.stat().st_size


def export(environment: str) -> str:
    """The lock's packages as requirements.

    Raises:
        EqaError: uv is missing or fails.
    """
    uv = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
    command = [uv, "export", "--frozen", "--no-hashes", "--no-emit-project", "--no-annotate", "--no-header", "--no-dev"]
    try:
        done = subprocess.run(
            [*command, "--project", str(ROOT / environment)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise EqaError("uv is not here; run `make setup`") from None
    if done.returncode:
        raise EqaError(f"{environment}: uv export failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def pinned(text: str) -> dict[str, str]:
    """{name: version} of a requirements file with hashes."""
    return {canonical(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==([\w.]+)", text)}


def build(name: str, version: str, output: Path) -> None:
    """A wheel of a package whose build imports torch, by envs/train's Python; it holds no compiled part.

    Raises:
        EqaError: it cannot be built here.
    """
    uv = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
    command = [uv, "run", "--quiet", "--frozen", "--project", str(ROOT / "envs/train"), "--with", "pip", "python", "-m"]
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(output)]
    try:
        done = subprocess.run(
            [*command, "pip", "wheel", *options, f"{name}=={version}"],
            env=os.environ | {"DS_BUILD_OPS": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise EqaError("uv is not here; run `make setup`") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EqaError(
            f"{name}=={version}: no wheel can be built here: {why}; run `uv sync --project envs/train` first"
        )


def download(packages: Mapping[str, str], python: str, output: Path) -> None:
    """Wheels of exact versions into `output`; a package without one is built here if it has no compiled part.

    Raises:
        EqaError: a package that the index does not have for this Python.
    """
    for path in sorted(output.glob("*.whl")):
        path.unlink()
    output.mkdir(parents=True, exist_ok=True)
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [word for name in PLATFORMS for word in ("--platform", name)]
    for name, version in packages.items():
        if name in BUILT:
            build(name, version, output)
            continue
        exact = [f"{name}=={version}", "--quiet", "--no-deps"]
        fetched = _pip("download", *target, "--dest", str(output), *exact)
        if fetched and _pip("wheel", "--wheel-dir", str(output), *exact):
            raise EqaError(f"{name}=={version}: no wheel for Python {python}: {fetched}")


def _pip(*words: str) -> str:
    """Last line of a failing pip; "" where it went well."""
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""


def run(output: Path, python: str, have: Path | None, drop: Sequence[str]) -> dict:
    """Pack the four folders.

    Raises:
        EqaError: no lock, no wheel, a bad --drop.
    """
    there = read_have(have.read_text(encoding="utf-8")) if have else {}
    sizes = {}
    for folder, environment in SETS.items():
        wanted = lacking(locked(export(environment), python), there)
        if folder == "light":
            used = closure(tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8")), LIGHT)
            wanted = {name: version for name, version in wanted.items() if name in used}
        download(wanted, python, output / folder)
        for rule in (*DROPPED, *drop):
            name, colon, pattern = rule.partition(":")
            if not colon:
                raise EqaError(f"--drop {rule}: NAME:PATTERN is wanted, such as lmdeploy:lmdeploy/lib/*")
            for wheel in (output / folder).glob(f"{name.replace('-', '_')}-*.whl"):
                trim(wheel, [pattern])
        sizes[folder] = _megabytes(output / folder)
    download(lacking(pinned((ROOT / ZERO2).read_text(encoding="utf-8")), there), python, output / "zero2")
    sizes["zero2"] = _megabytes(output / "zero2")
    return {"megabytes": sizes}


def _megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.glob("*.whl")) / 1e6, 1)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pack_wheels", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=path_argument, required=True, help="folder for light/, train/, serve/ and zero2/"
    )
    parser.add_argument("--python", default="3.12", help="the host's Python")
    parser.add_argument("--have", type=path_argument, help="`pip list --format=freeze` of the host")
    parser.add_argument("--drop", action="append", default=[], metavar="NAME:PATTERN", help="files left out of a wheel")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("pack_wheels", build_parser, lambda a: run(a.output, a.python, a.have, a.drop), argv)


if __name__ == "__main__":
    sys.exit(main())
