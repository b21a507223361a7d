"""Signals that end a program: told as an exception, and held back while it tidies up."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = ctypes.CDLL(None).prctl  # found here: a forked child had better not load anything


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


def end_with_parent(number: int, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent ends, however it ends; end here where it has ended.

    Args:
        number: the signal.
        parent: process number of the parent, where it is known from before the fork.
    """
    _prctl(PR_SET_PDEATHSIG, int(number))
    now = os.getppid()
    if now == 1 if parent is None else now != parent:
        os._exit(1)


@functools.cache
def end_children_with_parent() -> None:
    """From now on every process forked by this one, or by those, is killed as its parent ends, however that ends.

    For libraries that fork helpers of their own (multiprocessing): they inherit open files, and with them locks. The kernel
    looks at the thread that forked, so a helper may not be forked by a thread that ends before it.
    """
    parent = [os.getpid()]

    def remember() -> None:
        parent[0] = os.getpid()

    os.register_at_fork(before=remember, after_in_child=lambda: end_with_parent(signal.SIGKILL, parent[0]))


def die_with_parent() -> Callable[[], None]:
    """A `preexec_fn` for subprocess.Popen: the child gets SIGTERM when this process ends, however it ends."""
    return functools.partial(end_with_parent, signal.SIGTERM, os.getpid())
