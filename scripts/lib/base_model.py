"""A base model's folder: which files belong to it, whether it is the right kind, where hubs keep it."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from scripts.lib.addresses import public
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, sha256_file
from scripts.lib.safetensors_heads import read_head

ARCHITECTURE = "Qwen3VLForConditionalGeneration"
STAGE = ".download"  # beside the base model's folder: what arrived of a download stays there
WANTED = re.compile(
    r"model[^/]*\.safetensors|[^/]+\.json|[^/]+\.jinja|merges\.txt|vocab\.txt|LICENSE[^/]*|README\.md", re.ASCII
)
HUBS = {
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://modelscope.cn"),
}
OWN_NAMES = frozenset({"manifest.json"})
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NEEDED = ("config.json", "tokenizer.json")
DEFAULT_REVISION = {"huggingface": "main", "modelscope": "master", "local": ""}


@dataclass(frozen=True)
class HubFile:
    """A file of a hub's listing; sha256 is "" where the hub does not say it."""

    name: str
    size: int
    sha256: str = ""


def wanted_files(names: Iterable[str], where: str) -> list[str]:
    """Those files of a model repository that are used, sorted: safetensors, configuration, tokenizer.

    Raises:
        EqaError: there are no safetensors weights, or no config.json, or no tokenizer.json.
    """
    names = sorted(names)
    wanted = [n for n in names if WANTED.fullmatch(n) and n not in OWN_NAMES]
    if not any(n.endswith(".safetensors") for n in wanted):
        pickles = [n for n in names if n.endswith(PICKLES)]
        also = f", only pickle weights ({pickles[0]}), which could run code when loaded" if pickles else ""
        raise EqaError(f"{where}: no model*.safetensors{also}; use a repository with safetensors weights")
    for name in NEEDED:
        if name not in wanted:
            raise EqaError(f"{where}: no {name}; use a complete Qwen3-VL repository")
    return wanted


def safetensors_parameters(file: Path) -> int:
    """Numbers in a safetensors file, counted from its head.

    Raises:
        EqaError: the head is no safetensors head, or the file is shorter or longer than it says.
    """
    try:
        return sum(math.prod(shape) for shape in read_head(file).values())
    except ValueError:
        raise EqaError(f"{file}: not a whole safetensors file; fetch it again") from None


def check_model_folder(folder: Path) -> int:
    """Whether a folder holds an unquantized Qwen3-VL, whole.

    Returns:
        The number of parameters.
    Raises:
        EqaError: another architecture, a quantized model, a missing shard.
    """
    config = read_json(folder / "config.json", "model configuration")
    if not isinstance(config, dict):
        raise EqaError(f"{folder / 'config.json'}: no JSON object; use a Qwen3-VL repository")
    architectures = config.get("architectures")
    if architectures != [ARCHITECTURE]:
        raise EqaError(
            f"{folder / 'config.json'}: architectures={architectures}, [{ARCHITECTURE!r}] is wanted; "
            "use a Qwen3-VL model"
        )
    if config.get("quantization_config"):
        raise EqaError(
            f"{folder / 'config.json'}: the model is quantized; use the unquantized one, training quantizes it itself"
        )
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index, "index of weights")
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise EqaError(f"{index}: no weight_map; fetch it again")
        missing = sorted({str(shard) for shard in shards.values()} - set(names))
        if missing:
            raise EqaError(f"{folder / missing[0]}: listed in {index.name} but missing; fetch the model again")
    return sum(safetensors_parameters(folder / name) for name in names)


def check_adapter_base(adapter: Path, facts: Mapping, base: Path, needed: bool = True) -> str:
    """Whether an adapter was trained on this base model: on another one it is noise, and nothing else would say so.

    Args:
        adapter: its manifest, for the message.
        facts: what the manifest holds.
        base: the base model's manifest.
        needed: whether a manifest that names no base is refused (adapters made elsewhere name none).
    Returns:
        sha256 of the base model's manifest.
    Raises:
        EqaError: another base.
    """
    named, found = facts.get("base_sha256"), sha256_file(base)
    if named != found and (needed or named is not None):
        raise EqaError(
            f"{adapter}: this adapter was trained on another base model ({str(named)[:12]}, "
            f"{base} is {found[:12]}); train again: snakemake --force {adapter}"
        )
    return found


def check_pinned_file(file: Path, record: Mapping, key: str) -> None:
    """Raises:
    EqaError: the file is missing or is not as config/models.lock.json says.
    """
    if not file.is_file():
        raise EqaError(
            f"{file}: pinned under {key} but missing; complete the folder, or run `make pin-model` for another"
        )
    found = sha256_file(file)
    if file.stat().st_size != record["size"] or found != record["sha256"]:
        raise EqaError(
            f"{file}: expected sha256 {record['sha256']} ({key}), found {found}; "
            "use the pinned file, or run `make pin-model`"
        )


def check_name(name: str) -> None:
    """Raises:
    EqaError: `model.name` is no "owner/name".
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise EqaError(
            f"config: model.name={name!r} is no repository; write it as owner/name, such as Qwen/Qwen3-VL-2B-Instruct"
        )


def stage_of(output: Path, source: str, name: str, revision: str) -> Path:
    """Where a download of this model and revision gathers: beside the base model's folder."""
    return output.parent / STAGE / f"{source}--{name.replace('/', '--')}--{re.sub(r'[^A-Za-z0-9._-]', '-', revision)}"


# ------------------------------------------------------------------------------------------------ hubs


def hub_endpoint(source: str) -> str:
    """The hub's address: HF_ENDPOINT or MODELSCOPE_ENDPOINT, else its own.

    Raises:
        EqaError: no http address; the message does not repeat it, since a mirror's may hold a password.
    """
    variable, own = HUBS[source]
    address = (os.environ.get(variable) or own).rstrip("/")
    try:
        parts = urlsplit(address)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets, or a port that is no port
        fits = False
    if not fits:
        raise EqaError(f"{variable}: no http address; export one such as {own}")
    return address


def hub_address(source: str, name: str, revision: str, file: str) -> str:
    """Where one file of a revision is downloaded from."""
    if source == "huggingface":
        from huggingface_hub import hf_hub_url

        return hf_hub_url(name, file, revision=revision, endpoint=hub_endpoint(source))
    query = f"Revision={quote(revision, safe='')}&FilePath={quote(file, safe='')}"
    return f"{hub_endpoint(source)}/api/v1/models/{name}/repo?{query}"


def hub_headers(source: str) -> dict[str, str]:
    """What the hub wants to be told; Hugging Face's token where there is one, from its own places (HF_TOKEN)."""
    if source == "huggingface":
        from huggingface_hub.utils import build_hf_headers

        return build_hf_headers()
    return {}


def list_hub(source: str, name: str, revision: str) -> tuple[str, list[HubFile]]:
    """The commit that `revision` names, and the repository's files.

    ModelScope's listing names no commit of the whole: there the revision stays as given and the hashes alone pin it.

    Raises:
        EqaError: no such model or revision, no permission, no connection.
    """
    endpoint = hub_endpoint(source)
    if source == "huggingface":
        return _list_huggingface(endpoint, name, revision)
    return revision, _list_modelscope(endpoint, name, revision)


def _list_huggingface(endpoint: str, name: str, revision: str) -> tuple[str, list[HubFile]]:
    import httpx2  # the client that huggingface_hub 2 speaks through
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    shown = public(endpoint)  # a mirror's address may hold a password
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # one line a request is too much
    try:
        info = HfApi(endpoint=endpoint).model_info(name, revision=revision, files_metadata=True, timeout=30)
    except GatedRepoError:
        raise EqaError(f"{shown}/{name}: access must be asked for there; then export HF_TOKEN") from None
    except RevisionNotFoundError:
        raise EqaError(f"{shown}/{name}: no revision {revision!r}; correct --revision") from None
    except RepositoryNotFoundError:
        raise EqaError(
            f"{shown}/{name}: no such model, or it is private; correct model.name or export HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "an error"
        raise EqaError(
            f"{shown}/{name}: the hub answers {code}; try again later or set HF_ENDPOINT to a mirror"
        ) from None
    except (httpx2.HTTPError, OSError) as error:
        raise EqaError(f"{shown}: {error}; check the network or set HF_ENDPOINT to a mirror") from None
    if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
        raise EqaError(f"{shown}/{name}: the hub names no commit for {revision!r}; correct --revision")
    files = [HubFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else "") for s in info.siblings or []]
    return info.sha, files


def _list_modelscope(endpoint: str, name: str, revision: str) -> list[HubFile]:
    import httpx

    address = f"{endpoint}/api/v1/models/{name}/repo/files"
    shown = public(endpoint)  # a mirror's address may hold a password
    try:
        answer = httpx.get(
            address, params={"Revision": revision, "Recursive": "True"}, timeout=30, follow_redirects=True
        )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise EqaError(f"{shown}: {error}; check the network or set MODELSCOPE_ENDPOINT") from None
    if answer.status_code != httpx.codes.OK:
        raise EqaError(
            f"{public(address)}: the hub answers {answer.status_code} for revision {revision!r}; "
            "correct model.name or --revision"
        )
    try:
        rows = answer.json()["Data"]["Files"]
        return [HubFile(r["Path"], int(r["Size"]), r.get("Sha256") or "") for r in rows if r.get("Type") != "tree"]
    except (ValueError, KeyError, TypeError):
        raise EqaError(
            f"{public(address)}: the hub's answer is no listing of files; check MODELSCOPE_ENDPOINT"
        ) from None
