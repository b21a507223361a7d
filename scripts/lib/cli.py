"""What every script's third door does alike: parse, run, print facts, turn EqaError into one line."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.lib.errors import EqaError

EXIT_USER_ERROR = 2
LONGEST_LINE = 2000  # characters of a message


def entry(
    name: str,
    build_parser: Callable[[], argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], dict | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run one script from the terminal or from Snakemake.

    Args:
        name: the script's and rule's name; starts each message.
        build_parser: makes the argument parser.
        run: does the work; what it returns is printed as one JSON line on stdout, with seconds and peak memory.
        argv: arguments without the program's name; None reads sys.argv.
    Returns:
        0, or 2 after an EqaError or a full disk, told in one line on stderr. Other exceptions keep their traceback.
    """
    args = build_parser().parse_args(argv)
    # force: libraries imported earlier may have installed handlers of their own
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=f"{name}: %(message)s", force=True)
    started = time.monotonic()
    try:
        facts = run(args) or {}
    except EqaError as error:
        print(f"{name}: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"{name}: {where}{error.strerror}; free space or mend permissions, then run again", file=sys.stderr)
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        return EXIT_USER_ERROR
    facts |= {"seconds": round(time.monotonic() - started, 2), "peak_mb": peak_mb()}
    print(json.dumps({"script": name, **facts}, sort_keys=True))
    return 0


def one_line(text: str) -> str:
    """`text` without line breaks or control characters, so that a hostile file name cannot forge output.

    A value of thousands of characters is cut in the middle: what is wrong stands in front, the way out at the end.
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE - 405]} ... {text[-400:]}"
    return text


def peak_mb() -> int:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def json_argument(text: str) -> dict:
    """argparse type for the canonical JSON that a rule passes as `--config`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object is wanted")
    return value


def path_argument(text: str) -> Path:
    """argparse type for files and folders."""
    return Path(text)
