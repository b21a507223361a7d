"""Create the model on a running Ollama server and ask it one test question.   By hand:
python -m scripts.import_ollama --merged results/merged/manifest.json --modelfile results/ollama/Modelfile \
    --gguf results/gguf/manifest.json --test results/sft/test.json --output results/ollama/import.json --config \
    '{"deliver":{"ollama":true},"serve":{"model_name":"NAME","ollama_quantize":""},"predict":{"max_new_tokens":16}}'

The model is named NAME:<hash of the files sent and of its settings>, so nothing of the user's is replaced; NAME alone is
pointed at it only where it is free or was ours. Nothing else on the server is removed.
Source of the requests: ollama v0.33.0-rc2 docs/api.md (create, push a blob, chat, version).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lib.addresses import public
from scripts.lib.chat_client import ChatClient, Decoding, ollama_url, sample_message
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import canonical_json
from scripts.lib.errors import EqaError
from scripts.lib.files import check_manifest, disabled, is_disabled, read_json, read_manifest, sha256_file, write_json
from scripts.lib.ollama_folder import (
    LEAST_IMAGE_TOKENS,
    MIN_VERSION,
    MIN_VERSION_GGUF,
    NO_CONVERTER,
    check_engine,
    ollama_files,
    ollama_view,
)
from scripts.lib.progress import Progress
from scripts.lib.readers import decode_image
from scripts.lib.stopping import end_by_exception, undisturbed
from scripts.lib.tokens import TOKEN_SIDE_PX
from scripts.prepare_ollama import parse_modelfile

log = logging.getLogger("import_ollama")
PROJECTOR = "mmproj-f16.gguf"
BLOCK = 2**20  # bytes of an upload between two looks at the clock
# a server may end what it was creating after its client has gone; so long a stopped import waits for that. Unit: s
LATE_S = 3.0
DEVELOPMENT = (10**6, 0, 0)  # a server built from source without a version says 0.0.0


def parse_version(text: str) -> tuple[int, int, int]:
    """ "0.12.7-rc1" -> (0, 12, 7); a development build ("0.0.0") counts as newest.

    Raises:
        EqaError: no version number.
    """
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if not match:
        raise EqaError(f"Ollama says that its version is {text[:40]!r}; a number such as 0.12.7 is wanted")
    version = tuple(int(part) for part in match.groups())
    return DEVELOPMENT if version == (0, 0, 0) else version


@dataclass(frozen=True)
class Way:
    """One way of making the model on the server.

    Attributes:
        route: "safetensors" or "gguf".
        model: name with tag.
        files: name on the server -> file here.
        digests: name on the server -> "sha256:...".
        quantize: what the server is to make of the weights; "" leaves them.
    """

    route: str
    model: str
    files: Mapping[str, Path]
    digests: Mapping[str, str]
    quantize: str


def model_tag(digests: Mapping[str, str], modelfile: str, quantize: str) -> str:
    """Tag of the model on the server: 12 hex digits of what it is made of, so equal content is imported once.

    Args:
        digests: of the files that are sent.
        modelfile: its text.
        quantize: what the server is asked to make of the weights.
    """
    return hashlib.sha256(canonical_json([dict(digests), modelfile, quantize]).encode()).hexdigest()[:12]


def routes_of(version: tuple[int, int, int], gguf: bool = True) -> list[str]:
    """How the server takes the model, best first: "safetensors" (the merged folder) or "gguf" (the two files).

    Args:
        version: of the server.
        gguf: whether the recipe makes GGUF files (config deliver.gguf).
    Raises:
        EqaError: older than the first Ollama that gets several pictures right, or too new to convert while there
            are no GGUF files.
    """
    have = ".".join(map(str, version))
    if version < MIN_VERSION:
        want = ".".join(map(str, MIN_VERSION))
        raise EqaError(
            f"Ollama {have} cannot serve Qwen3-VL with several pictures a question (before 0.12.7 not at all); {want} or "
            "newer is wanted: update Ollama, or set deliver.ollama=false"
        )
    if version < MIN_VERSION_GGUF:
        return ["safetensors"]
    if version < NO_CONVERTER:
        return ["safetensors", "gguf"] if gguf else ["safetensors"]
    if version == DEVELOPMENT:  # may be of any age
        return ["gguf", "safetensors"] if gguf else ["safetensors"]
    if not gguf:
        last = ".".join(map(str, NO_CONVERTER))
        raise EqaError(
            f"Ollama {have} takes Qwen3-VL as GGUF only ({last} and newer convert no safetensors of it); set "
            "deliver.gguf=true, or use an older Ollama"
        )
    return ["gguf"]


class Server:
    """The few calls that the import needs, by Ollama's own client, with every failure as one line."""

    def __init__(self, url: str) -> None:
        import httpx

        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request otherwise
        self.url = url
        # reading may take minutes while the server converts; connecting may not
        try:
            import ollama  # reads OLLAMA_HOST itself, at once

            self._client = ollama.Client(host=url, timeout=httpx.Timeout(3600, connect=10), trust_env=False)
        except (httpx.InvalidURL, ValueError):  # their words may hold a part of a password
            raise EqaError(f"OLLAMA_HOST={public(url)}: no address; one such as 127.0.0.1:11434 is wanted") from None
        self._errors = (ollama.ResponseError, httpx.HTTPError, ConnectionError, ValueError)

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._errors as error:
            raise EqaError(f"{public(self.url)}: {what}: {_short(error)}") from None

    def version(self) -> str:
        """Raises EqaError where no Ollama answers."""
        reply = self._try(
            "is an Ollama server running there? `ollama serve`",
            lambda: self._client._request_raw("GET", "/api/version").json(),
        )
        if not isinstance(reply, dict) or not isinstance(reply.get("version"), str):
            raise EqaError(f"{public(self.url)}: this is no Ollama server; set OLLAMA_HOST")
        return reply["version"]

    def models(self) -> dict[str, str]:
        """Name with tag -> digest of every model on the server."""
        listing = self._try("listing models", self._client.list)
        return {entry.model: entry.digest or "" for entry in listing.models if entry.model}

    def push(self, path: Path, digest: str) -> bool:
        """Upload a file unless the server has it; whether bytes were sent.

        The client would send the body even to a server that has the blob and does not read it, so ask first, as the
        `ollama` command does.
        """
        import httpx

        try:
            if self._client._client.head(f"/api/blobs/{digest}").status_code == 200:
                return False
        except httpx.HTTPError as error:
            raise EqaError(f"{public(self.url)}: asking for a blob: {_short(error)}") from None
        self._try(
            f"uploading {path.name}",
            lambda: self._client._request_raw(
                "POST",
                f"/api/blobs/{digest}",
                content=_blocks(path, digest),
                headers={"Content-Length": str(path.stat().st_size)},
            ),
        )
        return True

    def create(self, request: dict) -> Iterator[str]:
        """Status lines of POST /api/create.

        The client's own `create` (0.6.3) has no renderer and parser, hence the request by hand.
        """
        from ollama import ProgressResponse

        try:
            for part in self._client._request(
                ProgressResponse, "POST", "/api/create", json={**request, "stream": True}, stream=True
            ):
                yield part.status or ""
        except self._errors as error:
            raise EqaError(f"{public(self.url)}: creating {request['model']}: {_short(error)}") from None

    def delete(self, model: str) -> None:
        self._try(f"deleting {model}", lambda: self._client.delete(model))

    def copy(self, model: str, name: str) -> None:
        self._try(f"naming {model} {name}", lambda: self._client.copy(model, name))


def _blocks(path: Path, digest: str) -> Iterator[bytes]:
    """The file's bytes for an upload, their progress shown.

    Raises:
        EqaError: other bytes than `digest`: the file has changed since it was looked at.
    """
    seen = hashlib.sha256()
    with Progress(path.stat().st_size, "B", name=path.name) as progress, path.open("rb") as file:
        while block := file.read(BLOCK):
            seen.update(block)
            if file.tell() >= progress.total and f"sha256:{seen.hexdigest()}" != digest:
                raise EqaError(f"{path}: changed while it was sent; run again")
            yield block
            progress.update(len(block))


def _short(error: Exception) -> str:
    text = str(getattr(error, "error", "") or error) or type(error).__name__
    return " ".join(text.split())[:300]


def gguf_request_files(gguf: Path, quantize: str) -> dict[str, Path]:
    """The language model in the wanted quantization and the projector, beside results/gguf/manifest.json.

    Ollama does not quantize GGUF files, so the file is chosen that has been made so.

    Args:
        quantize: config serve.ollama_quantize; "" is the f16 file.
    Returns:
        File name -> path; {} where GGUF is switched off.
    Raises:
        EqaError: no such quantization was made; a file is missing.
    """
    manifest = read_json(gguf, "GGUF manifest")
    if is_disabled(manifest):
        return {}
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise EqaError(f"{gguf}: lists no files; make it again: snakemake --force {gguf}")
    model = f"model-{quantize or 'f16'}.gguf"
    for name in (model, PROJECTOR):
        if name not in manifest["files"]:
            have = [n[6:-5] for n in sorted(manifest["files"]) if n.startswith("model-") and n != "model-f16.gguf"]
            raise EqaError(
                f"{gguf.parent / name}: not made here, and this Ollama does not quantize GGUF files; "
                f"serve.ollama_quantize can be {', '.join(have) or 'nothing'}, or empty for f16"
            )
    files = {name: gguf.parent / name for name in (model, PROJECTOR)}
    for path in files.values():
        if not path.is_file():
            raise EqaError(
                f"{path}: listed in {gguf} but missing; `dvc checkout` or `snakemake --force {gguf}` brings it back"
            )
    return files


def plan_ways(name: str, routes: Sequence[str], merged: Path, gguf: Path, modelfile: str, quantize: str) -> list[Way]:
    """What each route would send, and under which name.

    Args:
        name: config serve.model_name.
        routes: of `routes_of`, best first.
        merged: results/merged/manifest.json, its files compared with it.
        gguf: results/gguf/manifest.json.
        modelfile: text of the Modelfile.
        quantize: config serve.ollama_quantize.
    Returns:
        At least one; a second way that cannot be gone is left out.
    Raises:
        EqaError: the only way cannot be gone: no such quantization, a file that is missing or differs.
    """
    ways = []
    for route in routes:
        try:
            if route == "safetensors":
                records = read_manifest(merged).get("files", {})
                files = {file: merged.parent / file for file in ollama_files(merged.parent)}
                # compared already; others lie in the folder without being listed
                known = {file: records[file]["sha256"] for file in files if file in records}
                asked = quantize
            else:
                files, known, asked = gguf_request_files(gguf, quantize), {}, ""
            digests = {file: f"sha256:{known.get(file) or sha256_file(path)}" for file, path in sorted(files.items())}
            if route == "gguf":
                check_digests(gguf, digests)
        except EqaError as error:
            if len(routes) == 1:
                raise
            log.info("%s", error)
            continue
        ways.append(Way(route, f"{name}:{model_tag(digests, modelfile, asked)}", files, digests, asked))
    return ways


def check_digests(manifest: Path, digests: Mapping[str, str]) -> None:
    """Raises EqaError where a file is another than its manifest says."""
    records = read_manifest(manifest)["files"]
    for name, digest in digests.items():
        if digest != f"sha256:{records[name]['sha256']}":
            raise EqaError(
                f"{manifest.parent / name}: differs from {manifest}; `dvc checkout` or `snakemake --force {manifest}` "
                "makes it right"
            )


def create_model(server: Server, way: Way, settings: dict) -> None:
    """Upload the files, create the model, show progress on stderr.

    Raises:
        EqaError: any failure; a model that came into being is removed by the caller.
    """
    for number, (name, path) in enumerate(sorted(way.files.items()), 1):
        sent = server.push(path, way.digests[name])
        log.info(
            "file %d of %d: %s, %.1f MB%s",
            number,
            len(way.files),
            name,
            path.stat().st_size / 1e6,
            "" if sent else ", already there",
        )
    request = {
        "model": way.model,
        "files": dict(way.digests),
        **{key: settings[key] for key in ("renderer", "parser", "template", "parameters") if settings.get(key)},
    }
    if way.quantize:
        request["quantize"] = way.quantize
    status = ""
    for line in server.create(request):
        if line != status:
            log.info("%s", line)
        status = line
    if status != "success":
        raise EqaError(
            f"{public(server.url)}: creating {way.model} ended with {status[:80]!r}, not 'success'; look into Ollama's log"
        )


def picture_tokens(data: bytes, name: str) -> int:
    """Tokens of a stored frame, whose sides are multiples of 32 px, without its marks.

    Raises:
        EqaError: no picture, or a damaged one; names it.
    """
    height, width, _ = decode_image(data, name).shape
    return (height // TOKEN_SIDE_PX) * (width // TOKEN_SIDE_PX)


def enlarged_pictures(version: tuple[int, int, int], said: str, images: Mapping[str, bytes]) -> str:
    """What to tell where Ollama shows the model larger pictures than it was trained and evaluated with; "" elsewhere.

    Args:
        version, said: the server's, as numbers and as it says it.
        images: name -> bytes of each frame.
    """
    least = min((picture_tokens(data, name) for name, data in images.items()), default=LEAST_IMAGE_TOKENS)
    if version < MIN_VERSION_GGUF or least >= LEAST_IMAGE_TOKENS:
        return ""
    first, last = ".".join(map(str, MIN_VERSION)), ".".join(map(str, MIN_VERSION_GGUF))
    return (
        f"Ollama {said} enlarges each picture to {LEAST_IMAGE_TOKENS} tokens or more, the model was trained and evaluated "
        f"with {least}: measure what that costs (snakemake results/serve/check_ollama.json), or serve by llama.cpp, "
        f"LMDeploy or an Ollama from {first} to before {last}"
    )


def create_first(server: Server, ways: Sequence[Way], settings: dict) -> Way:
    """Create the model in the first of `ways` that the server takes; which one that was.

    Raises:
        EqaError: of the last way, after all failed.
    """
    for number, way in enumerate(ways, 1):
        try:
            create_model(server, way, settings)
            return way
        except EqaError as error:
            if number == len(ways) or way.model in server.models():
                raise
            log.info("%s; trying %s", error, ways[number].route)
    raise AssertionError("no way")  # plan_ways gives at least one


def point_name(server: Server, name: str, model: str, latest: str | None, imported: Iterable[str]) -> bool:
    """Let `name` (without a tag) mean `model`, if it is free or meant a model from this folder; whether it does now.

    Args:
        latest: digest of what the name meant before; None where it was free.
        imported: digests of all that was imported from this folder, `model` among them.
    """
    if latest is not None and latest not in imported:
        log.info(
            "%s:latest on the server is not ours and stays; the model is %s. `ollama rm %s` frees the name",
            name,
            model,
            name,
        )
        return False
    server.copy(model, name)
    return True


def read_modelfile(path: Path) -> str:
    """Raises EqaError where it is missing or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EqaError(f"{path}: no such file; make it: snakemake {path}") from None
    except UnicodeDecodeError as error:
        raise EqaError(f"{path}: no UTF-8 at byte {error.start}; make it again: snakemake --force {path}") from None


def first_sample(test: Path) -> dict:
    """The first question of the test part.

    Raises:
        EqaError: there is none, or it is not shaped as build_sft writes it.
    """
    samples = read_json(test, "test part")
    if samples == []:
        raise EqaError(f"{test}: no test question to ask; raise split.test")
    try:
        sample = samples[0]
        fits = all(isinstance(sample["messages"][turn]["content"], str) for turn in (0, 1))
        fits = fits and all(isinstance(name, str) for name in sample["images"])
    except (KeyError, IndexError, TypeError):
        fits = False
    if not fits:
        raise EqaError(f"{test}: its first question is not as build_sft writes one; snakemake --force {test}")
    return sample


def read_imported(path: Path) -> list[str]:
    """Digests of all that was imported from this folder; [] where nothing is known, which costs a name at most."""
    with contextlib.suppress(EqaError, OSError, TypeError, KeyError):
        return sorted(str(digest) for digest in read_json(path)["digests"])
    return []


def run(
    merged: Path,
    modelfile: Path,
    gguf: Path,
    test: Path,
    config: dict,
    output: Path,
    frames: Path | None = None,
    work: Path = Path("work/ollama"),
) -> dict:
    """Create, ask, record.

    Args:
        merged: results/merged/manifest.json.
        modelfile: results/ollama/Modelfile.
        gguf: results/gguf/manifest.json, the second way for Ollama 0.30 and newer.
        test: results/sft/test.json.
        config: deliver.ollama, serve.model_name, serve.ollama_quantize, predict.max_new_tokens.
        output: results/ollama/import.json.
        frames: folder that the test's pictures are relative to; default results/frames beside results/sft.
        work: folder for imported.json, which remembers what was imported from here.
    Raises:
        EqaError: switched on and anything fails; a model that this run created is removed again.
    """
    if not config["deliver"]["ollama"]:
        write_json(output, disabled("deliver.ollama"))
        return {"status": "disabled"}
    check_manifest(merged)
    view = ollama_view(merged.parent)
    text = read_modelfile(modelfile)
    settings = parse_modelfile(text, modelfile)
    sample = first_sample(test)
    message = sample_message(sample, frames or test.parent.parent / "frames")
    quantize, name = config["serve"]["ollama_quantize"], config["serve"]["model_name"]
    server = Server(ollama_url())
    version_text = server.version()
    version = parse_version(version_text)
    routes = routes_of(version, not is_disabled(read_json(gguf, "GGUF manifest")))
    if version < MIN_VERSION_GGUF:
        check_engine(merged.parent)
    ways = plan_ways(name, routes, merged, gguf, text, quantize)
    before = server.models()
    enlarged = enlarged_pictures(version, version_text, dict(zip(sample["images"], message.images, strict=True)))
    end_by_exception()  # so that a stopped job removes its half-made model too
    try:
        # a server that refused the first way once would refuse it again
        way = next((one for one in ways if one.model in before), None)
        if way:
            log.info("%s is on the server already; only asking it", way.model)
        else:
            way = create_first(server, ways, settings)
        with ChatClient("ollama", server.url, way.model, timeout_s=3600) as client:
            answer = client.ask([message], Decoding(config["predict"]["max_new_tokens"]))
            prompt_tokens = client.prompt_tokens
        if enlarged:
            log.info("%s", enlarged)
        if not answer.strip():
            why = enlarged or "look into Ollama's log"
            raise EqaError(f"{public(server.url)}: {way.model} answers with nothing; {why}")
        known = work / "imported.json"
        digest = server.models().get(way.model, "")
        imported = {*read_imported(known), digest}
        write_json(known, {"digests": sorted(imported)})
        # last: what fails before it leaves the name with the model that it meant
        named = point_name(server, name, way.model, before.get(f"{name}:latest"), imported)
    except BaseException as error:
        with undisturbed():
            late_s = 0.0 if isinstance(error, EqaError) else LATE_S
            _remove_created(server, [one.model for one in ways if one.model not in before], late_s)
        raise
    record = {
        "status": "imported",
        "model": way.model,
        "digest": digest,
        "name": name if named else way.model,
        "route": way.route,
        "server_version": version_text,
        "quantize": quantize,
        "num_ctx": settings["parameters"].get("num_ctx"),
        "merged_sha256": sha256_file(merged),
        "context_length": view["context_length"],
        "question": {
            "question_id": sample["question_id"],
            "text": message.text,
            "frames": sample["images"],
            "prompt_tokens": prompt_tokens,
            "gold": sample["messages"][1]["content"],
            "answer": answer.strip(),
        },
    }
    write_json(output, record)
    return {"model": way.model, "answer": answer.strip()[:80]}


def _remove_created(server: Server, models: Sequence[str], late_s: float) -> None:
    """Delete those of `models` that are on the server, or get there within `late_s` seconds."""
    deadline = time.monotonic() + late_s
    try:
        while True:
            there = server.models()
            found = [model for model in models if model in there]
            for model in found:
                server.delete(model)
                log.info("removed %s, which this run had created", model)
            if found or time.monotonic() >= deadline:
                return
            time.sleep(0.2)
    except EqaError as error:  # the first error is the one to tell
        log.info("%s may be left behind: %s", " or ".join(models), error)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="import_ollama", description="Create the model on an Ollama server (OLLAMA_HOST)."
    )
    parser.add_argument("--merged", type=path_argument, required=True, help="manifest.json of the merged folder")
    parser.add_argument("--modelfile", type=path_argument, required=True, help="Modelfile of prepare_ollama")
    parser.add_argument("--gguf", type=path_argument, required=True, help="manifest.json of the GGUF files")
    parser.add_argument("--test", type=path_argument, required=True, help="test part, whose first question is asked")
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: the rule's part of the config")
    parser.add_argument("--output", type=path_argument, required=True, help="record to write")
    parser.add_argument(
        "--frames", type=path_argument, help="folder of the frames; default: frames beside the test part's"
    )
    parser.add_argument(
        "--work-dir", type=path_argument, default=Path("work/ollama"), help="remembers what was imported from here"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    def door(args: argparse.Namespace) -> dict:
        return run(
            args.merged,
            args.modelfile,
            args.gguf,
            args.test,
            args.config,
            args.output,
            args.frames,
            args.work_dir,
        )

    return entry("import_ollama", build_parser, door, argv)


if __name__ == "__main__":
    sys.exit(main())
