"""llama.cpp's own server, in this process, until it is told to stop. `scripts.serve` starts it.   By hand:

uv run --frozen --project envs/gguf python -m scripts.lib.llamacpp_server --model results/gguf/model-f16.gguf \\
    --mmproj results/gguf/mmproj-f16.gguf --name qwen3-vl-openeqa --port 23333 --context 4096
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.addresses import check_port_number, read_key
from scripts.lib.chat_client import KEY_VARIABLE, url_host
from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError

# Prompts that llama.cpp keeps in memory for a next turn. Its own 8,192 MiB would let a server of a 2B model, whose prompt of
# eight frames is 156 MB, grow by as much. Unit: MiB
CACHE_RAM_MIB = 1024


def start(model: Path, mmproj: Path, name: str, host: str, port: int, context: int, threads: int) -> object:
    """Load the model and listen; the returned xllamacpp.Server stops when it is collected.

    Args:
        model: GGUF of the language model.
        mmproj: GGUF of the vision part.
        name: what clients call the model.
        host, port: where to listen; port 0 takes a free one.
        context: longest prompt and answer. Unit: tokens.
        threads: CPU threads; 0 for one a core.
    Raises:
        EqaError: no such port, a key that no header takes, a file is missing or llama.cpp refuses it; its own log on stderr says more.
    """
    for path in (model, mmproj):
        if not path.is_file():
            raise EqaError(f"{path}: no such GGUF file; set deliver.gguf=true and run snakemake")
    if port:
        check_port_number(port, "--port")
    key = read_key(KEY_VARIABLE)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = str(model), str(mmproj)
    params.model_alias = {name}
    params.hostnames, params.port = [host], port
    params.n_ctx, params.n_parallel = context, 1
    params.warmup = False
    params.cache_ram_mib = CACHE_RAM_MIB
    # pages of other origins may not read a server on this machine
    params.cors_origins = f"http://{url_host(host)}:{port}"
    params.cors_origins_explicit = True
    params.endpoint_slots = False
    count = threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = count
    if key:
        params.api_keys = [key]
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise EqaError(
            f"{model}: llama.cpp could not serve it on {host}:{port} ({error}); its log above says why"
        ) from None


def run(args: argparse.Namespace) -> dict:
    """Serve until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = start(args.model, args.mmproj, args.name, args.host, args.port, args.context, args.threads)
    print(f"llamacpp: {server.listening_address}", file=sys.stderr, flush=True)
    while not stop.wait(1.0):  # a bare wait() would never see the signal
        pass
    return {"address": server.listening_address}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llamacpp_server", description="Serve GGUF files by llama.cpp.")
    parser.add_argument("--model", type=path_argument, required=True, help="GGUF of the language model")
    parser.add_argument("--mmproj", type=path_argument, required=True, help="GGUF of the vision part")
    parser.add_argument("--name", default="qwen3-vl-openeqa", help="what clients call the model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port; 0 takes a free one")
    parser.add_argument("--context", type=int, default=4096, help="longest prompt and answer, in tokens")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for one a core")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("llamacpp_server", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
