"""llama.cpp's server out of the package xllamacpp, behind the command line of its program `llama-server`.

Ollama 0.30 and newer start a program of that name for each model. Its own one is built by cmake from sources that it
downloads; here the locked package of envs/gguf has the same server inside, so no compiler is wanted. What Ollama says on
the command line is obeyed or refused, never passed over in silence.
Source of the options: ollama v0.34.2 llm/llama_server.go startLlamaServer, discover/llama_server.go.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    parser.add_argument("--list-devices", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--mmproj")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-c", dest="context", type=int, default=4096)
    parser.add_argument("-np", dest="parallel", type=int, default=1)
    parser.add_argument("-b", dest="batch", type=int)
    parser.add_argument("-ub", dest="ubatch", type=int)
    parser.add_argument("-t", dest="threads", type=int, default=0)
    parser.add_argument("-ngl", dest="gpu_layers", type=int)
    parser.add_argument("--image-min-tokens", type=int)
    parser.add_argument("--flash-attn", choices=["on", "off", "auto"], default="auto")
    parser.add_argument("--load-mode", choices=["none", "mmap"], default="mmap")
    parser.add_argument("--chat-template")
    parser.add_argument("--keep", type=int)
    parser.add_argument("--log-verbosity", type=int)
    for flag in (
        *("--no-jinja", "--context-shift"),
        # nothing to do for these here: no web page, no network, no GPU, no prefix of the log
        *("--no-webui", "--offline", "--verbose", "--no-mmproj-offload", "--no-log-prefix", "--no-log-timestamps"),
    ):
        parser.add_argument(flag, action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.list_devices:
        print("Available devices:")
        return 0
    if not args.model:
        # asked for the machine's devices only; Ollama ends the process when it has read this line
        print("system_info: n_threads = 1", file=sys.stderr, flush=True)
        return 0
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    if args.mmproj:
        params.mmproj.path = args.mmproj
    params.hostnames, params.port = [args.host], args.port
    params.n_ctx, params.n_parallel = args.context, args.parallel
    params.warmup = False
    params.flash_attn_type = {
        "on": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
        "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    }[args.flash_attn]
    if args.load_mode == "none":
        params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    params.use_jinja = not args.no_jinja
    params.ctx_shift = args.context_shift
    for name, value in (
        ("n_batch", args.batch),
        ("n_ubatch", args.ubatch),
        ("n_gpu_layers", args.gpu_layers),
        ("image_min_tokens", args.image_min_tokens),
        ("chat_template", args.chat_template),
        ("n_keep", args.keep),
        ("verbosity", args.log_verbosity),
    ):
        if value is not None:
            setattr(params, name, value)
    count = args.threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = count
    server = xllamacpp.Server(params)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)
    parent = os.getppid()
    # when Ollama is gone nobody else would end this process
    while not stop.wait(1.0) and os.getppid() == parent:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
