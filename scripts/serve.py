"""Serve the merged model: LMDeploy on a GPU, llama.cpp on any CPU.   By hand:
python -m scripts.serve --server llamacpp            # until Ctrl-C
python -m scripts.serve --server llamacpp --background true && python -m scripts.serve --server llamacpp --stop

Address, model name, batch and cache come from config/config.yaml (serve.*). An API key is read from EQA_SERVE_API_KEY.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scripts.lib.addresses import check_port_number, read_key
from scripts.lib.chat_client import KEY_VARIABLE, default_url
from scripts.lib.cli import entry, path_argument
from scripts.lib.config import load_yaml
from scripts.lib.errors import EqaError
from scripts.lib.files import check_manifest, is_disabled, read_json, read_manifest, write_text
from scripts.lib.ollama_folder import check_shards
from scripts.lib.serve_settings import lmdeploy_dtype, session_length
from scripts.lib.stopping import die_with_parent, end_by_exception, undisturbed
from scripts.prepare_environments import prepare

log = logging.getLogger("serve")
STATE = Path("work/serve")  # pid files
LOGS = Path("logs")
MODULES = {"lmdeploy": "scripts.lib.lmdeploy_server", "llamacpp": "scripts.lib.llamacpp_server"}
ENVIRONMENTS = {"lmdeploy": ("envs/serve", "lmdeploy"), "llamacpp": ("envs/gguf", "xllamacpp")}
LEAST_CONTEXT = 4096  # room for larger pictures than the recipe's; costs a CPU next to nothing
STOP_S = 20.0
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def lmdeploy_arguments(folder: Path, serve: Mapping, dtype: str, session: int) -> list[str]:
    """Arguments of `lmdeploy serve api_server`.

    Args:
        folder: merged model.
        serve: config serve.*.
        dtype: config predict.dtype.
        session: longest prompt and answer. Unit: tokens.
    """
    arguments = [
        str(folder),
        *("--model-name", serve["model_name"]),
        *("--backend", "pytorch"),  # TurboMind has no Qwen3-VL
        *("--server-name", serve["host"]),
        *("--server-port", str(serve["port"])),
        *("--tp", "1"),
        *("--dtype", lmdeploy_dtype(dtype)),
        *("--session-len", str(session)),
        *("--max-batch-size", str(serve["max_batch_size"])),
        *("--cache-max-entry-count", str(serve["cache_share"])),
        # pictures come inside the request; the server fetches none from elsewhere
        *("--allowed-media-domains", "127.0.0.1"),
    ]
    return [*arguments, "--eager-mode"] if serve["eager_mode"] else arguments


def llamacpp_arguments(folder: Path, quantization: str, serve: Mapping, context: int) -> list[str]:
    """Arguments of scripts.lib.llamacpp_server."""
    return [
        *("--model", str(folder / f"model-{quantization}.gguf")),
        *("--mmproj", str(folder / "mmproj-f16.gguf")),
        *("--name", serve["model_name"]),
        *("--host", serve["host"]),
        *("--port", str(serve["port"])),
        *("--context", str(context)),
    ]


def launcher(server: str) -> list[str]:
    """How to start Python with the server's packages: this one if it has them, else its locked environment by uv.

    That environment is brought up to date here, so that a first download of gigabytes is no part of the server's start.

    Raises:
        EqaError: neither, or the environment cannot be made.
    """
    folder, package = ENVIRONMENTS[server]
    if importlib.util.find_spec(package):
        return [sys.executable]
    uv = (
        shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which(".tools/bin/uv")
    )
    if not uv:
        raise EqaError(f"{package} is not installed here and there is no uv to set up {folder}; run `make setup`")
    prepare(Path.cwd(), [folder])
    return [uv, "run", "--frozen", "--no-sync", "--project", folder, "python"]


def check_port(host: str, port: int) -> None:
    """Raises EqaError where somebody listens on the address already, or it is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # a server that has just stopped is no hindrance
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise EqaError(f"{host}:{port}: {error.strerror}; free it, or set serve.port to another") from None
    except (UnicodeError, TypeError):  # no bytes that a resolver takes
        raise EqaError(f"serve.host={host}: no host name; 127.0.0.1 is this machine alone") from None


def healthy(url: str) -> bool:
    """Whether the server says that it is ready."""
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each try otherwise
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    return False


def wait_healthy(process: subprocess.Popen, url: str, timeout_s: float, log_file: Path | None) -> None:
    """Wait until the server answers.

    Raises:
        EqaError: it ended or stayed silent.
    """

    def where() -> str:
        return f"; {log_file} ends with: {tail(log_file)}" if log_file else "; its own lines above say why"

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EqaError(f"the server ended with exit code {process.returncode} before it was ready{where()}")
        if healthy(url):
            return
        time.sleep(0.2)
    raise EqaError(f"{url} is not ready after {timeout_s:g} s{where()}; raise --timeout-s or look there")


def tail(path: Path) -> str:
    """Last line of a log that is not blank."""
    with contextlib.suppress(OSError):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][-300:] if lines else "(empty)"
    return "(no log)"


def end(pid: int, patience_s: float = STOP_S) -> bool:
    """Stop the process group `pid`: SIGTERM, then SIGKILL; whether SIGTERM was enough. A second Ctrl-C changes nothing."""
    with undisturbed():
        for number, patience in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if not group_members(pid):
                    return number == signal.SIGTERM
                time.sleep(0.1)
    return False


def group_members(group: int) -> list[int]:
    """Pids of the process group that are no zombies."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)  # our own child would stay a zombie
    return [pid for pid, of, state in _processes() if of == group and state not in "ZX"]


def _processes() -> Iterator[tuple[int, int, str]]:
    """(pid, process group, state) of every process."""
    for entry_path in Path("/proc").iterdir():
        if entry_path.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # after the name in brackets: state, parent, group
                fields = (entry_path / "stat").read_text().rpartition(")")[2].split()
                yield int(entry_path.name), int(fields[2]), fields[0]


def recorded(server: str) -> int | None:
    """Process group of the background server, if any process of it is still that server; a stale file is removed.

    The group, because the recorded process is uv's as a rule: where that is killed alone, its worker goes on serving.
    """
    path = STATE / f"{server}.pid"
    with contextlib.suppress(OSError, ValueError):
        group = int(path.read_text())
        for pid in group_members(group):
            with contextlib.suppress(OSError):
                if MODULES[server].encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return group
    path.unlink(missing_ok=True)
    return None


def stop(server: str) -> dict:
    """Stop the background server of this folder.

    Raises:
        EqaError: there is none.
    """
    pid = recorded(server)
    if pid is None:
        raise EqaError(f"no {server} server of this folder runs in the background; nothing to stop")
    clean = end(pid)
    (STATE / f"{server}.pid").unlink(missing_ok=True)
    return {"stopped": pid, "clean": clean}


def command(args: argparse.Namespace, config: Mapping) -> list[str]:
    """The server's whole command line, everything that it needs checked.

    Raises:
        EqaError: a model file is missing or broken, no token budget.
    """
    serve = config["serve"]
    session = session_length(read_json(args.budget, "token budget"), args.budget)
    if args.server == "lmdeploy":
        check_manifest(args.merged, deep=False)
        check_shards(args.merged.parent)
        extra = lmdeploy_arguments(args.merged.parent, serve, config["predict"]["dtype"], session)
    else:
        manifest = read_manifest(args.gguf)
        if is_disabled(manifest):
            raise EqaError(f"{args.gguf}: GGUF is switched off; set deliver.gguf=true and run snakemake")
        name = f"model-{args.quantization}.gguf"
        if name not in manifest["files"]:
            have = ", ".join(n[6:-5] for n in sorted(manifest["files"]) if n.startswith("model-"))
            raise EqaError(f"{args.gguf.parent / name}: not made here; --quantization {have} can be had")
        check_manifest(args.gguf, deep=False)
        context = args.context or max(LEAST_CONTEXT, session)
        extra = llamacpp_arguments(args.gguf.parent, args.quantization, serve, context)
    return [*launcher(args.server), "-m", MODULES[args.server], *extra]


def address(args: argparse.Namespace, serve: Mapping) -> tuple[str, int]:
    """(host, port) to listen on, by the options or the recipe; IPv6 without brackets.

    Raises:
        EqaError: no such port.
    """
    port = args.port or serve["port"]
    check_port_number(port, "--port" if args.port else "serve.port")
    return (args.host or serve["host"]).removeprefix("[").removesuffix("]"), port


def run(args: argparse.Namespace) -> dict:
    """Start, wait until healthy, then stay (foreground) or return (background)."""
    if args.stop:
        return stop(args.server)
    config = load_yaml(args.config)
    serve = config["serve"] = {**config["serve"]}
    serve["host"], serve["port"] = address(args, serve)
    key = read_key(KEY_VARIABLE)
    background = serve["background"] if args.background is None else args.background == "true"
    if (pid := recorded(args.server)) is not None:
        raise EqaError(f"{args.server} runs already in the background (pid {pid}); --stop ends it")
    words = command(args, config)
    check_port(serve["host"], serve["port"])
    if serve["host"] not in THIS_MACHINE and not key:
        log.info("%s is not this machine alone and %s is not set: everybody can ask", serve["host"], KEY_VARIABLE)
    url = default_url(args.server, serve["host"], serve["port"])
    log.info("%s", shlex.join(words))
    log_file = LOGS / f"serve_{args.server}.log" if background else None
    state = STATE / f"{args.server}.pid"
    end_by_exception()
    process = None
    try:
        with contextlib.ExitStack() as stack:
            out = None
            if log_file:
                log_file.parent.mkdir(parents=True, exist_ok=True)
                out = stack.enter_context(log_file.open("w"))
            process = subprocess.Popen(
                words,
                stdout=out or sys.stderr,
                stderr=out,
                # a group of its own: Ctrl-C reaches us alone, and ending the group ends uv and every worker
                start_new_session=True,
                # in the foreground it may not outlive us, not even where we are killed
                preexec_fn=None if background else die_with_parent(),
            )
        if background:
            write_text(state, f"{process.pid}\n")
        wait_healthy(process, url, args.timeout_s, log_file)
        print(
            f"serve: {serve['model_name']} at {url}/v1 ({args.server}); docs/serving.md shows how to ask",
            file=sys.stderr,
        )
        if background:
            return {"url": url, "pid": process.pid, "log": str(log_file)}
        code = process.wait()
        raise EqaError(f"the server ended by itself with exit code {code}; its own lines above say why")
    except BaseException as error:
        clean = end(process.pid) if process else True
        if background:
            state.unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt):
            return {"url": url, "stopped": True, "clean": clean}
        raise


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve", description="Serve the merged model.")
    parser.add_argument("--server", choices=sorted(MODULES), default="lmdeploy", help="lmdeploy: GPU; llamacpp: CPU")
    parser.add_argument("--config", type=path_argument, default=Path("config/config.yaml"), help="the recipe")
    parser.add_argument(
        "--merged", type=path_argument, default=Path("results/merged/manifest.json"), help="for lmdeploy"
    )
    parser.add_argument("--gguf", type=path_argument, default=Path("results/gguf/manifest.json"), help="for llamacpp")
    parser.add_argument(
        "--budget", type=path_argument, default=Path("results/sft/token_budget.json"), help="token budget"
    )
    parser.add_argument("--quantization", default="f16", help="llamacpp: f16, q8_0 or q4_K_M")
    parser.add_argument(
        "--context", type=int, default=0, help="llamacpp: longest prompt and answer in tokens; 0: by budget"
    )
    parser.add_argument("--host", default="", help="in place of serve.host")
    parser.add_argument("--port", type=int, default=0, help="in place of serve.port")
    parser.add_argument("--background", choices=["true", "false"], help="in place of serve.background")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="how long the start may take")
    parser.add_argument("--stop", action="store_true", help="stop the background server of this folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("serve", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
