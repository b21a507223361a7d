"""decord in a process of its own.

On some damaged videos decord 0.6.0 does not raise but ends its process (`std::bad_alloc`, a segmentation fault), which
would take the job with it and name no file; others could hold it forever. The process serves one video after the other
and is replaced when it died or did not answer.
Run as a module it is that process.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Address space, not memory in use. A batch of 8K frames takes 1 GiB; claims of a damaged index go far beyond
MAX_BYTES = 8 * 2**30
# For one answer. Against what never ends, so far above what takes long: to a frame decord decodes all from the key frame
# before it, 1080p at 24 frames per second where five processes share a core (measured), and some videos have no other
ANSWER_S = 600.0
_idle: list[Decoder] = []


class DecoderError(Exception):
    """decord refused."""


class DecoderDied(Exception):
    """decord's process ended, or was ended as it did not answer; says how."""


class Decoder:
    """The process, seen from outside. One video at a time; not for several threads at once."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scripts.lib.video_decoder", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # FFmpeg writes there what is told in one line
            )
        self._connection = Connection(ours.detach())

    def open(self, path: Path) -> int:
        """Frames of a video; it takes the place of the one before.

        Raises:
            DecoderError: no video.
            DecoderDied: it was its last.
        """
        return int(self._ask("open", os.path.abspath(path)))  # the process has another current folder

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """RGB (len(indices), height, width, 3), uint8, read-only; or another shape, where the video is no RGB video.

        Raises:
            DecoderError: one of them cannot be decoded.
            DecoderDied: it was its last.
        """
        import numpy as np

        shape = self._ask("frames", [int(i) for i in indices])
        self._wait()
        try:
            return np.frombuffer(self._connection.recv_bytes(), np.uint8).reshape(shape)
        except (EOFError, OSError):
            raise self._died() from None

    def release(self) -> None:
        """Forget the video; the process waits for the next one, of whoever takes it."""
        self._ask("close", None)
        _idle.append(self)

    def end(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, what: str, argument: object) -> object:
        try:
            self._connection.send((what, argument))
            self._wait()
            good, answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if not good:
            raise DecoderError(answer)
        return answer

    def _wait(self) -> None:
        """Until there is something to read, the other side's end too.

        Raises:
            DecoderDied: nothing came within ANSWER_S; the process is ended.
        """
        if not self._connection.poll(ANSWER_S):
            self.end()
            raise DecoderDied(f"no answer within {ANSWER_S:g} s")

    def _died(self) -> DecoderDied:
        self._connection.close()
        code = self._process.wait()
        return DecoderDied(signal.Signals(-code).name if code < 0 else f"exit code {code}")


def take_decoder() -> Decoder:
    """A waiting process, or a new one."""
    try:
        return _idle.pop()
    except IndexError:
        return Decoder()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


def _serve(connection: Connection) -> None:
    """Answer until the other side is gone."""
    import numpy as np

    from scripts.lib.video import load_decord

    decord = load_decord()
    video = None
    while True:
        try:
            what, argument = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if what == "open":
                video = decord.VideoReader(argument, ctx=decord.cpu(0), num_threads=1)
                connection.send((True, len(video)))
            elif what == "frames":
                frames = np.ascontiguousarray(video.get_batch(argument).asnumpy())
                connection.send((True, frames.shape))
                connection.send_bytes(memoryview(frames).cast("B"))
            else:
                video = None
                connection.send((True, None))
        except (decord.DECORDError, RuntimeError, OSError, ValueError, IndexError, MemoryError) as error:
            connection.send((False, str(error)))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the job's; without it this process ends by itself
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (MAX_BYTES if hard == resource.RLIM_INFINITY else min(MAX_BYTES, hard), hard)
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core of each damaged video is nobody's wish
    _serve(Connection(int(sys.argv[1])))
