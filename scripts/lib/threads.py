"""How many threads the numeric libraries take."""

from __future__ import annotations

import os

_LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")


def one_thread() -> None:
    """Give torch and its libraries one thread in this process and its children; call before they are imported.

    Snakemake sets these variables to a rule's `threads`. Two threads that wait for each other on two busy cores are ten
    times slower than one (measured: a training step of the demo took 3.5 s instead of 0.33 s), and sums then depend on
    their number.
    """
    for library in _LIBRARIES:
        os.environ[f"{library}_NUM_THREADS"] = "1"
