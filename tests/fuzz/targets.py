"""The parsers of foreign input, each as a function of bytes, with whole files to start from.

A parser may return, or refuse by one of the errors that its callers expect. Anything else (another exception, a signal,
a hang) is a fault of ours.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from scripts import adopt, extract_archive, split_questions
from scripts.lib import (
    archive,
    chat_client,
    config,
    evaluation,
    files,
    llm_match,
    ollama_folder,
    openai_client,
    pins,
    provenance,
    questions,
    readers,
    safetensors_heads,
    sharegpt,
)
from scripts.lib.cli import one_line
from scripts.lib.episode_frames import frames_config
from scripts.lib.errors import EqaError
from tests.lib import raw_data, serving_data
from tests.lib.project import ROOT

_EPISODE = "hm3d-v0/000-hm3d-BFRyYbPCCPE"
_SERVER = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        parse: reads the bytes; the folder is empty and its own.
        seeds: whole files.
        refusals: exceptions that callers of this parser turn into one line.
        text: its files are text, so that mutations of JSON and YAML make sense.
    """

    parse: Callable[[bytes, Path], object]
    seeds: Callable[[Path], list[bytes]]
    refusals: tuple[type[Exception], ...] = (EqaError,)
    text: bool = True


def attempt(target: Target, data: bytes, folder: Path) -> str:
    """Parse; the refusal's message, or "" where the input was accepted.

    Raises:
        Exception: whatever is no refusal.
    """
    for leftover in folder.iterdir():
        files.remove(leftover)
    try:
        target.parse(data, folder)
    except target.refusals as error:
        return one_line(str(error)) or "refused"
    return ""


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------ raw data


def _parse_sens(data: bytes, folder: Path) -> None:
    reader = readers.SensFile(_file(folder, "scan.sens", data))
    with contextlib.closing(reader):
        wanted = sorted({0, reader.count // 2, reader.count - 1})
        reader.check(wanted)
        reader.jpeg(wanted)
        for _ in reader.read(wanted):
            pass


def _seed_sens(_: Path) -> list[bytes]:
    return [raw_data.sens([raw_data.encoded(i, ".jpg") for i in range(count)]) for count in (1, 3)]


def _parse_video(data: bytes, folder: Path) -> None:
    reader = readers.VideoFile(_file(folder, "clip.mp4", data))
    with contextlib.closing(reader):
        wanted = sorted({0, reader.count // 2, reader.count - 1})
        reader.check(wanted)
        for _ in reader.read(wanted):
            pass


def _parse_container(data: bytes, folder: Path) -> None:
    readers.check_container(_file(folder, "clip.mp4", data))


def _seed_video(folder: Path) -> list[bytes]:
    whole = raw_data.video(folder / "seed.mp4", 9).read_bytes()
    avi = raw_data.video(folder / "seed.avi", 5, "MJPG").read_bytes()
    matroska = bytes.fromhex("1a45dfa3 84 42868101 18538067 84 00000000".replace(" ", ""))
    return [whole, raw_data.index_first(whole), avi, matroska]


def _parse_picture(data: bytes, folder: Path) -> None:
    readers.decode_image(readers.read_picture_file(_file(folder, "0-rgb.png", data)), "0-rgb.png")


def _seed_picture(_: Path) -> list[bytes]:
    return [raw_data.encoded(3, ".png"), raw_data.encoded(3, ".jpg")]


def _parse_archive(data: bytes, folder: Path) -> None:
    path = _file(folder, "frames.tgz", data)
    listing = archive.list_archive(path, [_EPISODE])
    record = listing.get(_EPISODE)
    if record and "fault" not in record:
        spool = folder / "spool"
        spool.mkdir()
        row = {**record, "episode_history": _EPISODE, "path": "frames.tgz", "root": "source"}
        frames = frames_config(raw_data.config(frames_short="repeat"))
        extract_archive.extract(path, {_EPISODE: (row, record["names"])}, {_EPISODE}, frames, folder / "frames", spool)
    outside = [path for path in folder.parent.iterdir() if path != folder]
    if outside:
        raise AssertionError(f"the archive wrote outside its folder: {outside[:3]}")


def _seed_archive(folder: Path) -> list[bytes]:
    members = [(f"data/frames/{_EPISODE}/{i:05d}-rgb.png", raw_data.encoded(i)) for i in range(3)]
    whole = raw_data.archive(folder / "seed.tgz", members).read_bytes()
    link = tarfile.TarInfo(f"{_EPISODE}/1-rgb.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    linked = raw_data.archive(folder / "link.tgz", [*members, (link, b"")]).read_bytes()
    climbing = raw_data.archive(folder / "up.tgz", [("../../x-rgb.png", raw_data.encoded(1))]).read_bytes()
    return [whole, linked, climbing]


def _parse_tar(data: bytes, folder: Path) -> None:
    """The tar within: the fuzzer never gets through gzip's checksum by itself."""
    _parse_archive(gzip.compress(data, 1, mtime=0), folder)


def _seed_tar(folder: Path) -> list[bytes]:
    return [gzip.GzipFile(fileobj=io.BytesIO(seed)).read() for seed in _seed_archive(folder)]


def _parse_questions(data: bytes, folder: Path) -> None:
    rows = questions.read_questions(_file(folder, "open-eqa.json", data))
    for row in rows:  # what the next scripts make of them
        json.dumps(row, ensure_ascii=False).encode("utf-8")
        sharegpt.neutralize(row["question"])
        files.safe_join(folder, row["episode_history"])


def _seed_questions(_: Path) -> list[bytes]:
    rows = [raw_data.question(_EPISODE, i, extra_answers=["A light", ""]) for i in range(3)]
    return [json.dumps(rows).encode(), json.dumps(rows, indent=1).encode("utf-8"), b"[]"]


def _parse_split(data: bytes, folder: Path) -> None:
    rows = [{**raw_data.question(f"e{i % 3}", i), "space": f"s{i % 3}"} for i in range(6)]
    content = files.read_json(_file(folder, "split.json", data), "split file")
    split_questions.read_split_file(content, "split.json", rows, {"gone": "no frames"})


def _seed_split(_: Path) -> list[bytes]:
    return [
        json.dumps({"test": {"episodes": ["e0"]}, "val": {"spaces": ["s1"]}, "allow_leakage": False}).encode(),
        json.dumps({"train": {"questions": ["e2-2"]}, "test": {"episodes": ["gone"]}}).encode(),
    ]


# ------------------------------------------------------------------------------------------------ config, locks


def _parse_config(data: bytes, folder: Path) -> None:
    recipe = config.load_yaml(_file(folder, "config.yaml", data))
    config.check_shape(recipe, _schema())
    config.check_sense(recipe)
    config.canonical_json(recipe)


@functools.cache
def _schema() -> dict:
    return config.load_yaml(ROOT / "config/schema.yaml")


def _seed_config(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "config/presets").glob("*.yaml"))]


def _parse_prompt(data: bytes, folder: Path) -> None:
    text = sharegpt.read_prompt(_file(folder, "prompt.txt", data))
    sharegpt.user_message(text, "What is `$(id)` {question} {x}?", 8)


def _seed_prompt(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "config/prompts").glob("*.txt"))]


def _parse_provenance(data: bytes, folder: Path) -> None:
    """What Snakemake's start makes of a lock, in a folder with one job's files."""
    lock = _file(folder, "provenance.lock.json", data)
    (folder / "manifest.json").write_bytes(_MANIFEST)
    for name in ("a.json", "b.json"):
        (folder / name).write_text(name)
    with contextlib.chdir(folder):
        said: list[str] = []
        provenance.restore(provenance.Policy({"results": ("*",)}), said.append, Path(lock.name))
        provenance.restore(provenance.Policy(), said.append, Path(lock.name))  # over the records of the first
        provenance.read_lock(Path(lock.name))
    outside = [path for path in folder.parent.iterdir() if path != folder]
    if outside:
        raise AssertionError(f"the lock wrote outside its folder: {outside[:3]}")


_MANIFEST = b'{"files": {"b.json": {"size": 6, "sha256": "0"}}}'


def _seed_provenance(_: Path) -> list[bytes]:
    made = {"seconds": 1.5, "machine": "m", "commit": "c"}
    fine = provenance.Job(
        outputs={"a.json": hashlib.sha256(b"a.json").hexdigest()},
        inputs={"b.json": f"sha256:{hashlib.sha256(b'b.json').hexdigest()}"},
        rule="score",
        code="2" * 64,
        params=["{}"],
        log=["logs/score.txt"],
        made=made,
        input_list=None,
    )
    listed = provenance.Job(
        {"manifest.json": hashlib.sha256(_MANIFEST).hexdigest()}, {}, "merge", None, [], [], made, ["b.json", "x"]
    )
    other = provenance.Job({"results/c.json": "0" * 64, "b.json": "1" * 64}, {}, "plot", None, [], [], {})
    return [provenance.lock_text(jobs).encode() for jobs in ([fine], [fine, listed, other], [])]


def _parse_data_pin(data: bytes, folder: Path) -> None:
    pins.read_data_pin(_file(folder, "data.lock.json", data), "open-eqa-v0.json")


def _seed_data_pin(_: Path) -> list[bytes]:
    record = {"address": "https://example.org/q.json", "sha256": "0" * 64, "size": 7}
    return [
        json.dumps({"files": {"open-eqa-v0.json": record}}).encode(),
        (ROOT / "config/data.lock.json").read_bytes(),
    ]


def _parse_model_pin(data: bytes, folder: Path) -> None:
    pins.read_model_pins(_file(folder, "models.lock.json", data))


def _seed_model_pin(_: Path) -> list[bytes]:
    pin = {"revision": "f" * 40, "files": {"config.json": {"size": 3, "sha256": "0" * 64}}}
    return [json.dumps({"models": {"huggingface:Qwen/Qwen3-VL-2B-Instruct": pin}}).encode(), b'{"models": {}}']


def _parse_manifest(data: bytes, folder: Path) -> None:
    (folder / "a.txt").write_text("a")
    files.check_manifest(_file(folder, "manifest.json", data))


def _seed_manifest(folder: Path) -> list[bytes]:
    (folder / "a.txt").write_text("a")
    files.write_manifest(folder)
    return [(folder / "manifest.json").read_bytes(), json.dumps(files.disabled("deliver.gguf")).encode()]


# ------------------------------------------------------------------------------------------------ models


def _parse_safetensors(data: bytes, folder: Path) -> None:
    safetensors_heads.read_head(_file(folder, "model.safetensors", data))


def _seed_safetensors(folder: Path) -> list[bytes]:
    path = folder / "seed.safetensors"
    serving_data.write_safetensors(path, ["a.weight", "b.weight"])
    return [path.read_bytes()]


def _parse_model_config(data: bytes, folder: Path) -> None:
    """The folder's config.json as the Ollama import reads and mends it."""
    model = folder / "merged"
    serving_data.write_model_folder(model)
    (model / "config.json").write_bytes(data)
    ollama_folder.mend_for_ollama(model)
    ollama_folder.ollama_view(model)


def _seed_model_config(folder: Path) -> list[bytes]:
    serving_data.write_model_folder(folder / "merged")
    return [(folder / "merged/config.json").read_bytes()]


def _parse_adapter_config(data: bytes, folder: Path) -> None:
    """An adapter that somebody trained elsewhere, as `adopt` takes it in."""
    header = {
        "base_model.layers.0.q_proj.lora_A.weight": {"dtype": "F32", "shape": [8, 2], "data_offsets": [0, 64]},
    }
    head = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(64))
    (folder / "adapter_config.json").write_bytes(data)
    adopt.check_adapter(folder, {})


def _seed_adapter_config(_: Path) -> list[bytes]:
    return [json.dumps({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "peft_type": "LORA"}).encode()]


def _parse_adapter_arguments(data: bytes, folder: Path) -> None:
    """The training arguments beside such an adapter; notes on them are kept."""
    _parse_adapter_config(b'{"r": 8}', folder)
    arguments = config.load_yaml(_file(folder, "training_args.yaml", data))
    if isinstance(arguments, dict):
        notes = "".join(adopt.check_adapter(folder, arguments)["notes"])
        if len(notes.encode("utf-8")) > 1000:
            raise AssertionError(f"notes of {len(notes)} characters")


def _seed_adapter_arguments(_: Path) -> list[bytes]:
    return [b"lora_rank: 8\nquantization_bit: 4\nquantization_method: bitsandbytes\nval_size: 0.125\nlr: 1.0e-4\n"]


# ------------------------------------------------------------------------------------------------ answers


def _parse_predictions(data: bytes, folder: Path) -> None:
    found = evaluation.read_predictions(_file(folder, "tuned.jsonl", data))
    for answer in found.values():
        answer.encode("utf-8")
        llm_match.shown_prediction(answer)


def _seed_predictions(_: Path) -> list[bytes]:
    rows = [{"question_id": f"q{i}", "prediction": text} for i, text in enumerate(("a lamp", "", "杯子", "{x} $(id)"))]
    return ["".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()]


def _parse_tutorial_predictions(data: bytes, folder: Path) -> None:
    path = _file(folder, "generated_predictions.jsonl", data)
    adopt.join_predictions(files.read_jsonl(path), [raw_data.question(_EPISODE)], path)


def _seed_tutorial_predictions(_: Path) -> list[bytes]:
    row = {"prompt": "user\nWhat is on the table?\nassistant\n", "predict": "a lamp", "label": "A lamp"}
    return [(json.dumps(row) + "\n").encode() * 2]


def _parse_tutorial_questions(data: bytes, folder: Path) -> None:
    rows = adopt.read_questions(_file(folder, "questions.json", data))
    row = {"prompt": "user\nWhat is on the table?\nassistant\n", "predict": "a lamp", "label": "A lamp"}
    joined, _ = adopt.join_predictions([row], rows, folder / "generated_predictions.jsonl")
    files.write_jsonl(folder / "predictions.jsonl", joined)


def _seed_tutorial_questions(_: Path) -> list[bytes]:
    rows = [raw_data.question(_EPISODE, number) for number in range(2)]
    return [json.dumps(rows).encode(), json.dumps({"questions": rows[:1]}).encode()]


def _parse_judge_reply(data: bytes, _: Path) -> None:
    reply = openai_client.parse_reply(data)
    mark = llm_match.parse_mark(reply.text)
    if mark is not None and not 0 <= llm_match.match_score(mark) <= 100:
        raise AssertionError(f"mark {mark} scores {llm_match.match_score(mark)}")
    openai_client.retry_after(reply.text)


def _seed_judge_reply(_: Path) -> list[bytes]:
    texts = ("Your mark: 4", "5", "I cannot say.", "Your mark: ٣", "Wed, 21 Oct 2015 07:28:00 GMT", "nan")
    return [
        json.dumps(
            {
                "model": "judge",
                "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 200, "completion_tokens": 4},
            }
        ).encode()
        for text in texts
    ]


def _served(server: str, path: str) -> Callable[[bytes, Path], None]:
    """A server that answers everything with these bytes."""

    body = b""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body)

    @functools.cache  # a client costs 25 ms, an answer 0.3
    def client() -> chat_client.ChatClient:
        made = chat_client.ChatClient(server, _SERVER, "eqa")
        made._http = httpx.Client(transport=httpx.MockTransport(answer))
        return made

    def parse(data: bytes, _: Path) -> None:
        nonlocal body
        body = data
        if path == "models":
            client().check()
        elif path == "context":
            client().context_length()
        else:
            client().ask([chat_client.Message("user", "What?")], chat_client.Decoding())

    return parse


def _seed_openai_stream(_: Path) -> list[bytes]:
    events = [{"choices": [{"delta": {"role": "assistant"}}]}, {"choices": [{"delta": {"content": "a lamp"}}]}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    error = 'data: {"error": {"message": "context exceeded", "code": 400}}\n\n'
    return [f"{body}data: [DONE]\n\n".encode(), f"{body}{error}".encode()]


def _seed_ollama_stream(_: Path) -> list[bytes]:
    events = [
        {"message": {"role": "assistant", "content": "a lamp"}, "done": False},
        {"done": True, "done_reason": "stop"},
    ]
    return ["".join(json.dumps(event) + "\n" for event in events).encode(), b'{"error": "model not found"}\n']


def _seed_openai_models(_: Path) -> list[bytes]:
    return [json.dumps({"data": [{"id": "eqa", "meta": {"n_ctx": 4096}}]}).encode()]


def _seed_ollama_models(_: Path) -> list[bytes]:
    return [
        json.dumps({"models": [{"name": "eqa:latest"}]}).encode(),
        json.dumps({"parameters": "num_ctx    16384\nstop   x"}).encode(),
    ]


TARGETS: dict[str, Target] = {
    "sens": Target(_parse_sens, _seed_sens, text=False),
    "video": Target(_parse_video, _seed_video, text=False),
    "container": Target(_parse_container, _seed_video, text=False),
    "picture": Target(_parse_picture, _seed_picture, text=False),
    "archive": Target(_parse_archive, _seed_archive, text=False),
    "tar": Target(_parse_tar, _seed_tar, text=False),
    "safetensors": Target(_parse_safetensors, _seed_safetensors, (ValueError,), text=False),
    "questions": Target(_parse_questions, _seed_questions),
    "split": Target(_parse_split, _seed_split),
    "config": Target(_parse_config, _seed_config),
    "prompt": Target(_parse_prompt, _seed_prompt),
    "provenance": Target(_parse_provenance, _seed_provenance),
    "data_pin": Target(_parse_data_pin, _seed_data_pin),
    "model_pin": Target(_parse_model_pin, _seed_model_pin),
    "manifest": Target(_parse_manifest, _seed_manifest),
    "model_config": Target(_parse_model_config, _seed_model_config),
    "adapter_config": Target(_parse_adapter_config, _seed_adapter_config),
    "adapter_arguments": Target(_parse_adapter_arguments, _seed_adapter_arguments),
    "predictions": Target(_parse_predictions, _seed_predictions),
    "tutorial_predictions": Target(_parse_tutorial_predictions, _seed_tutorial_predictions),
    "tutorial_questions": Target(_parse_tutorial_questions, _seed_tutorial_questions),
    "judge_reply": Target(_parse_judge_reply, _seed_judge_reply, (ValueError,)),
    "openai_stream": Target(_served("llamacpp", "chat"), _seed_openai_stream),
    "openai_models": Target(_served("lmdeploy", "models"), _seed_openai_models),
    "openai_context": Target(_served("llamacpp", "context"), _seed_openai_models),
    "ollama_stream": Target(_served("ollama", "chat"), _seed_ollama_stream),
    "ollama_models": Target(_served("ollama", "models"), _seed_ollama_models),
    "ollama_context": Target(_served("ollama", "context"), _seed_ollama_models),
}


# ------------------------------------------------------------------------------------------------ mutations

# values that parsers meet in files of others, and rarely expect
HOSTILE: tuple[object, ...] = (
    None, True, False, 0, -1, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", " ", "\0", "\ud800", "é", "..",
    "../../etc/passwd", "/etc/passwd", "a" * 5000, "$(id)`id`{x}'\"\n", "<image>", "<|im_end|>", "1e-4", [], {}, [[]],
    [None], [1], {"": ""}, {"a": None},
)  # fmt: skip


MOST_PLACES = 10_000  # YAML's aliases make millions of nodes of some bytes


def places(value: object, at: tuple = ()) -> list[tuple]:
    """Paths of all nodes of a parsed JSON or YAML value.

    Raises:
        ValueError: more than MOST_PLACES.
    """
    found = [at]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*at, key))
        if len(found) > MOST_PLACES:
            raise ValueError("too many nodes")
    return found


def replaced(value: object, at: tuple, new: object) -> object:
    """A copy of `value` in which the node at a path is another, or gone (`new` is Ellipsis)."""
    if not at:
        return None if new is Ellipsis else new
    result = copy.deepcopy(value)
    node = result
    for key in at[:-1]:
        node = node[key]
    if new is Ellipsis:
        del node[at[-1]]
    else:
        node[at[-1]] = new
    return result


def parsed(data: bytes) -> list | None:
    """[head, JSON or YAML value] of each document of a text seed (JSON lines, events of a stream); None for plain text."""
    text = data.decode("utf-8")
    try:
        return [("", json.loads(text))]
    except ValueError:
        pass
    documents = []
    for line in text.splitlines():
        head = "data: " if line.startswith("data: ") else ""
        try:
            documents.append((head, json.loads(line.removeprefix(head))))
        except ValueError:
            documents.append((line, ...))
    if any(value is not ... for _, value in documents):
        return documents
    value = yaml.safe_load(text)
    return [("yaml", value)] if isinstance(value, dict) else None


def unparsed(documents: list) -> bytes:
    """The bytes of what `parsed` gave. JSON keeps NaN, surrogates and huge numbers as Python writes them."""
    if documents[0][0] == "yaml":
        return yaml.safe_dump(documents[0][1], allow_unicode=False).encode("utf-8", "surrogatepass")
    lines = [head if value is ... else head + json.dumps(value) for head, value in documents]
    return ("\n".join(lines) + "\n").encode("utf-8")
