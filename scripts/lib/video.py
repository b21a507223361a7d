"""The one door to OpenCV and decord, which must be imported in this order.

decord bundles an old libz. Imported first, it makes OpenCV's PNG reader fail on valid files and changes the bytes that
OpenCV writes; imported second, it changes nothing (measured with decord 0.6.0 and OpenCV 5.0.0).
"""

from __future__ import annotations

import functools
import os
import sys
from types import ModuleType


@functools.cache
def load_cv2() -> ModuleType:
    """OpenCV, single-threaded and quiet.

    Raises:
        RuntimeError: something imported decord before; a fault of the program.
    """
    if "decord" in sys.modules and "cv2" not in sys.modules:
        raise RuntimeError("decord was imported before cv2; import both through scripts.lib.video")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # what is wrong with a file is told by the readers, in one line
    import cv2

    cv2.setNumThreads(1)  # Snakemake runs shards side by side; a job that declares one thread uses one
    return cv2


@functools.cache
def load_decord() -> ModuleType:
    """decord, after OpenCV."""
    load_cv2()
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord
