"""Signals that end a program: told as an exception, and held back while it tidies up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_by_exception() -> None:
    """Let SIGTERM, and SIGHUP of a closed terminal, raise SystemExit with 128 + number, so that `finally` is reached.

    SIGINT raises KeyboardInterrupt already. A SIGHUP that is ignored (nohup) stays so.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore these signals meanwhile: whoever presses Ctrl-C twice still gets everything tidied up."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def die_with_parent() -> Callable[[], None]:
    """A `preexec_fn` for subprocess.Popen: the kernel sends the child SIGTERM when this process ends, however it ends."""
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return ask_kernel
