"""scripts.serve and its server's life. A script named uv stands in for uv and starts, as uv does, a child that serves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from scripts.lib.files import sha256_file, write_json, write_manifest
from scripts.serve import group_members
from tests.lib import serving_data
from tests.lib.project import ROOT

# `uv sync` takes as long as EQA_TEST_SYNC_S says; `uv run` is a process of its own between us and the server, and passes
# SIGTERM on to it (uv 0.9 crates/uv/src/child.rs)
UV = """#!{python}
import os, signal, subprocess, sys, time
with open("uv.log", "a") as log:
    print(*sys.argv[1:], file=log)
if sys.argv[1] == "sync" or "--no-sync" not in sys.argv:
    time.sleep(float(os.environ.get("EQA_TEST_SYNC_S", "0")))
if sys.argv[1] == "sync":
    sys.exit(int(os.environ.get("EQA_TEST_SYNC_FAILS", "0")))
child = subprocess.Popen([sys.executable, *sys.argv[sys.argv.index("python") + 1:]])
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
sys.exit(child.wait())
"""
# in the place of scripts/lib/llamacpp_server.py: healthy at once, and as slow to end as EQA_TEST_END_S says
SERVER = """
import argparse, os, signal, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
parser = argparse.ArgumentParser()
for name in ("model", "mmproj", "name", "host", "port", "context"):
    parser.add_argument(f"--{name}")
args = parser.parse_args()
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
def end(*_):
    threading.Timer(float(os.environ.get("EQA_TEST_END_S", "0")), os._exit, (0,)).start()
signal.signal(signal.SIGTERM, end)
Server((args.host, int(args.port)), Handler).serve_forever()
"""


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with the project's scripts but for llama.cpp's server, the stand-in on its PATH, and files to serve."""
    scripts = tmp_path / "scripts"
    (scripts / "lib").mkdir(parents=True)
    for path in sorted((ROOT / "scripts").iterdir()):
        if path.name != "lib":
            (scripts / path.name).symlink_to(path)
    for path in sorted((ROOT / "scripts/lib").iterdir()):
        if path.name != "llamacpp_server.py":
            (scripts / "lib" / path.name).symlink_to(path)
    (scripts / "lib/llamacpp_server.py").write_text(SERVER)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/uv").write_text(UV.format(python=sys.executable))
    (tmp_path / "bin/uv").chmod(0o755)
    (tmp_path / "envs/gguf/.venv").mkdir(parents=True)
    (tmp_path / "envs/gguf/uv.lock").write_text("version = 1\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(json.dumps(serving_data.recipe()))
    gguf = tmp_path / "results/gguf"
    gguf.mkdir(parents=True)
    for name in ("model-f16.gguf", "mmproj-f16.gguf"):
        (gguf / name).write_bytes(b"GGUF")
    write_manifest(gguf)
    write_json(tmp_path / "results/sft/token_budget.json", {"cutoff_len": 768, "max_new_tokens": 16})
    yield tmp_path
    with contextlib.suppress(OSError, ValueError, ProcessLookupError):
        os.killpg(int((tmp_path / "work/serve/llamacpp.pid").read_text()), signal.SIGKILL)


def environment(place: Path, **extra: str) -> dict[str, str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("EQA_")}
    return {**keep, "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", **extra}


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as probe:
        return probe.getsockname()[1]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "scripts.serve", "--server", "llamacpp", *words]


def serve(place: Path, *words: str, **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words), cwd=place, env=environment(place, **extra), capture_output=True, text=True, timeout=60
    )


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    return False


def wait_for(condition, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def foreground(place: Path, **extra: str):
    """A running foreground server: (process of scripts.serve, address)."""
    port = free_port()
    process = subprocess.Popen(
        command("--port", str(port)),
        cwd=place,
        env=environment(place, **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        assert wait_for(lambda: answers(url))
        time.sleep(0.5)  # until it has seen that too
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_ends_the_server_as_sigterm_does(place, number):
    with foreground(place) as (process, url):
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert not answers(url)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_while_it_ends_leaves_no_server(place, second):
    with foreground(place, EQA_TEST_END_S="2") as (process, url):
        process.send_signal(signal.SIGINT)
        time.sleep(0.7)
        assert answers(url)  # it takes its time
        process.send_signal(second)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert json.loads(out)["clean"]
        assert not answers(url)


def test_a_killed_foreground_leaves_no_server(place):
    with foreground(place) as (process, url):
        process.kill()
        process.communicate()
        assert wait_for(lambda: not answers(url))


def test_where_uv_dies_alone_in_the_foreground_its_worker_ends_too(place):
    with foreground(place) as (process, url):
        (uv,) = [
            int(pid)
            for pid in os.listdir("/proc")
            if pid.isdigit() and int(pid) != process.pid and parent(int(pid)) == process.pid
        ]
        os.kill(uv, signal.SIGKILL)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 2
        assert "the server ended by itself with exit code -9" in error.strip().splitlines()[-1]
        assert not answers(url)


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def test_where_uv_dies_alone_in_the_background_its_worker_is_still_known_and_stopped(place):
    facts = json.loads(serve(place, "--background", "true", "--port", str(free_port())).stdout)
    os.kill(facts["pid"], signal.SIGKILL)
    assert wait_for(lambda: facts["pid"] not in group_members(facts["pid"]))
    assert answers(facts["url"])
    again = serve(place, "--background", "true", "--port", str(free_port()))
    assert again.returncode == 2
    assert "runs already in the background" in again.stderr
    assert json.loads(serve(place, "--stop").stdout)["stopped"] == facts["pid"]
    assert not answers(facts["url"])


def test_a_background_server_outlives_who_started_it_and_a_closed_terminal(place):
    facts = json.loads(serve(place, "--background", "true", "--port", str(free_port())).stdout)
    time.sleep(0.5)
    assert answers(facts["url"])
    assert serve(place, "--stop").returncode == 0


def test_a_start_that_is_stopped_leaves_no_server_and_no_pid_file(place):
    port = free_port()
    (place / "scripts/lib/llamacpp_server.py").write_text("import time\ntime.sleep(60)\n")
    process = subprocess.Popen(
        command("--background", "true", "--port", str(port)),
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    state = place / "work/serve/llamacpp.pid"
    assert wait_for(state.exists)
    group = int(state.read_text())
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGHUP
    assert not state.exists()
    assert group_members(group) == []


def test_the_first_download_of_an_environment_is_no_part_of_the_start(place):
    words = ["--background", "true", "--port", str(free_port()), "--timeout-s", "2"]
    done = serve(place, *words, EQA_TEST_SYNC_S="4")
    assert done.returncode == 0, done.stderr
    assert serve(place, "--stop").returncode == 0
    said = (place / "uv.log").read_text().splitlines()
    assert said[0].startswith("sync --frozen")
    assert said[1].startswith("run --frozen --no-sync --project envs/gguf python -m scripts.lib.llamacpp_server")
    assert (place / "envs/gguf/.venv/synced-lock.sha256").read_text() == sha256_file(place / "envs/gguf/uv.lock")


def test_an_environment_that_cannot_be_made_is_one_line(place):
    done = serve(place, "--port", str(free_port()), EQA_TEST_SYNC_FAILS="1")
    assert done.returncode == 2
    assert "envs/gguf/.venv does not match envs/gguf/uv.lock" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_an_address_of_ipv6_is_served_and_told_in_brackets(place, host):
    try:
        port = free_port("::1")
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    done = serve(place, "--background", "true", "--host", host, "--port", str(port))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"] == f"http://[::1]:{port}"
    assert ("everybody can ask" in done.stderr) == (host == "::")
    assert serve(place, "--stop").returncode == 0


def test_a_key_that_no_client_could_send_is_refused_before_the_start(place):
    done = serve(place, "--port", str(free_port()), EQA_SERVE_API_KEY="ke y")
    assert done.returncode == 2
    assert done.stderr.startswith("serve: EQA_SERVE_API_KEY: holds white space")
    assert not (place / "uv.log").exists()
