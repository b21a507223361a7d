"""A real Ollama server of a test's own: a free loopback port, an empty model store, CPU only, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

START_S = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(binary: Path, folder: Path) -> Iterator[str]:
    """Run `ollama serve` with its models, home and log in `folder`; yields its address."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "GGML_", "LLAMA_"))}
    environment = {
        **keep,
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(folder / "models"),
        "HOME": str(folder),  # its key pair
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NUM_PARALLEL": "1",
        "OLLAMA_KEEP_ALIVE": "60s",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    url = f"http://127.0.0.1:{port}"
    with (folder / "ollama.log").open("w") as log:
        process = subprocess.Popen(
            [str(binary), "serve"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_S
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/api/version", timeout=5, trust_env=False).status_code == 200:
                        break
                said = (folder / "ollama.log").read_text()[-2000:]
                assert process.poll() is None, f"ollama serve ended: {said}"
                assert time.monotonic() < deadline, f"ollama serve is silent: {said}"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
