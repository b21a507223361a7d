"""Coverage-guided fuzzing of one parser by atheris, in this process.

By hand:
    make fuzz SECONDS=600                                   every parser
    python -m tests.fuzz.fuzz --target sens --seconds 60    one
    python -m tests.fuzz.fuzz --target sens --file FILE     one input again
What breaks a parser is kept in work/fuzz/TARGET/; mend the parser and move the file to tests/fuzz/crashes/TARGET/.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import atheris
import yaml

from tests.lib.project import ROOT

HANG_S = 20  # one input
MEMORY_MB = 2048
LONGEST_INPUT = 1 << 16


def fuzz_each(names: list[str], *options: str) -> Iterator[tuple[str, subprocess.CompletedProcess]]:
    """Each target in a process of its own, as many at a time as there are cores; gives them as they end, in order."""

    def one(name: str) -> tuple[str, subprocess.CompletedProcess]:
        program = [sys.executable, "-m", "tests.fuzz.fuzz", "--target", name, *options]
        # a fixed hash seed: with the same seed and number of inputs it meets the same inputs anywhere
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        return name, subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(one, names)


def fuzz_all(names: list[str], seconds: float) -> int:
    """Fuzz each target and print what came of it; the number that broke."""
    broken = 0
    for name, done in fuzz_each(names, "--seconds", f"{seconds:g}"):
        print(f"{name:22} {'ok' if done.returncode == 0 else 'BROKEN'}  {_counted(done.stderr)}", flush=True)
        if done.returncode:
            broken += 1
            print(broken_by(done), flush=True)
    return broken


def broken_by(done: subprocess.CompletedProcess) -> str:
    """The exception, or the signal's trace, and where the input was kept; without libFuzzer's progress."""
    log = [line for line in done.stderr.splitlines() if not line.startswith(("#", "INFO:", "MS:"))]
    return "\n".join([*done.stdout.splitlines()[-25:], *log[-25:]])


def _counted(log: str) -> str:
    """libFuzzer's last count of runs and coverage."""
    lines = [line for line in log.splitlines() if re.match("#[0-9]", line)]
    return lines[-1][:100] if lines else ""


def main() -> int:
    """Terminal; becomes libFuzzer where a target is named."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="one parser; all without it")
    parser.add_argument("--seconds", type=float, default=60, help="for each parser")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 draws one")
    parser.add_argument(
        "--runs", type=int, help="end after so many inputs, from the seeds alone: the same at each call"
    )
    parser.add_argument("--file", type=Path, help="parse this file once instead")
    args = parser.parse_args()
    with atheris.instrument_imports(include=["scripts"]):
        from scripts.lib.files import is_alive
        from tests.fuzz.targets import HOSTILE, TARGETS, attempt, parsed, places, replaced, unparsed
    if args.target is None:
        return min(1, fuzz_all(sorted(TARGETS), args.seconds))
    target = TARGETS[args.target]
    kept = ROOT / "work/fuzz" / args.target
    # no temporary folder: libFuzzer ends the process without clearing up, so the next one does
    for left in kept.glob("own-*"):
        if not is_alive(int(left.name.removeprefix("own-"))):
            shutil.rmtree(left, ignore_errors=True)
    scratch = kept / f"own-{os.getpid()}/work/scratch"
    scratch.mkdir(parents=True)
    if args.file:
        print(attempt(target, args.file.read_bytes(), scratch) or "accepted")
        return 0
    corpus = (kept if args.runs is None else scratch.parents[1]) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds(scratch)):
        (corpus / f"seed{number}").write_bytes(seed)
    for crash in sorted((Path(__file__).parent / "crashes" / args.target).glob("*")):
        (corpus / f"crash-{crash.name}").write_bytes(crash.read_bytes())
    options = [f"-max_total_time={args.seconds:g}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}"]
    options += [f"-max_len={LONGEST_INPUT}", f"-artifact_prefix={kept}/", f"-seed={args.seed}"]
    if args.runs is not None:
        # without what depends on times and addresses: values of comparisons, weights of inputs
        options += [f"-runs={args.runs}", "-use_cmp=0", "-entropic=0"]

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        """One value of a parsed text replaced by a hostile one, half of the time: bytes alone rarely stay JSON."""
        draw = random.Random(seed)
        if draw.random() < 0.5:
            with contextlib.suppress(ValueError, TypeError, RecursionError, yaml.YAMLError):  # no JSON, or too deep
                documents = parsed(data) or []
                number = draw.randrange(len(documents))
                head, value = documents[number]
                if value is not ...:
                    new = draw.choice((*HOSTILE, ...))
                    documents[number] = (head, replaced(value, draw.choice(places(value)), new))
                    return unparsed(documents)[:longest]
        return atheris.Mutate(data, longest)

    atheris.Setup(
        [sys.argv[0], str(corpus), *options],
        lambda data: attempt(target, data, scratch),
        custom_mutator=mutate if target.text else None,
    )
    atheris.Fuzz()  # ends the process: 0 when time is up, else the input is in `kept`
    return 0


if __name__ == "__main__":
    sys.exit(main())
