"""Targets that this machine cannot make, found before the first job starts.

The recipe, not the machine, decides what exists (config deliver.*). What is asked for, absent and cannot be made
here stops the run in one line; what is there already is accepted anywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from scripts.lib.chat_client import ollama_url
from scripts.lib.errors import EqaError

REACH_S = 3.0  # patience with an Ollama server that is only asked for its version


def check_targets(rules: Collection[str], config: Mapping) -> None:
    """Refuse a run whose jobs need a server or a device that is not there.

    Args:
        rules: names of the rules that are about to run.
        config: the whole recipe.
    Raises:
        EqaError: no Ollama server for import_ollama, no CUDA device for bench_lmdeploy; the way out.
    """
    deliver = config["deliver"]
    if "import_ollama" in rules and deliver["ollama"]:
        check_ollama(ollama_url(), deliver["gguf"])
    if "bench_lmdeploy" in rules and deliver["lmdeploy"] and not has_cuda():
        raise EqaError(
            "config: deliver.lmdeploy=true, but there is no CUDA device here and results/serve/lmdeploy.json is to be "
            "made; run on a GPU machine, `dvc pull` the results of one, or set deliver.lmdeploy=false"
        )


def check_ollama(url: str, gguf: bool) -> None:
    """Raises EqaError where no Ollama server answers at `url`, or one that cannot take what the recipe makes."""
    import httpx

    from scripts.import_ollama import parse_version, routes_of

    try:
        version = httpx.get(f"{url}/api/version", timeout=REACH_S, trust_env=False).json()["version"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        raise EqaError(
            f"config: deliver.ollama=true, but no Ollama server answers at {url} and results/ollama/import.json is to "
            f"be made; start one (`ollama serve`) or export OLLAMA_HOST, or set deliver.ollama=false"
        ) from None
    routes_of(parse_version(str(version)), gguf)


def has_cuda() -> bool:
    """Whether a CUDA device can be used: its device file, or what nvidia-smi lists, unless the environment hides it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return False
    if any(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*")):
        return True
    smi = shutil.which("nvidia-smi")  # WSL has no device files
    if not smi:
        return False
    try:
        listed = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout
