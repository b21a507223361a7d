"""The Ollama import against a real Ollama server: the one at OLLAMA_HOST where it answers, else one built here.

Ollama before 0.30 runs Qwen3-VL in an engine of its own, with Qwen3-VL's token ids and grid built in: there the demo's
model takes part renumbered (tests/lib/numbered_model.py). From 0.30 on llama.cpp runs it and enlarges each picture to
1,024 tokens, which the demo's model has never seen: there the answers to text alone are compared.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from scripts import check_serving, import_ollama, prepare_ollama
from scripts.lib.chat_client import ChatClient, Decoding, Message, ollama_url, split_prompt
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, write_json, write_jsonl
from scripts.lib.ollama_folder import MIN_VERSION_GGUF, NO_CONVERTER
from tests.lib import build_ollama, ollama_server, recording_proxy, serving_data
from tests.lib.project import ROOT, call

pytestmark = pytest.mark.demo
TRAIN = ["uv", "run", "--frozen", "--no-sync", "--project", "envs/train", "python", "-m"]
NAME = "openeqa-e2e"
AGREEMENT = 0.9  # measured 1.0 with 0.34.2 and 0.24.0


@dataclass
class Ollama:
    url: str
    version: tuple[int, int, int]
    binary: Path | None  # None where the server is somebody else's

    @property
    def own_engine(self) -> bool:
        return self.version < MIN_VERSION_GGUF


@pytest.fixture(scope="module")
def ollama(tmp_path_factory) -> Ollama:
    """A running server; skips, saying why, where none can be had."""
    said = os.environ.get("OLLAMA_HOST")
    if said:
        try:
            version = httpx.get(f"{ollama_url()}/api/version", timeout=5, trust_env=False).json()["version"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            pytest.skip(f"OLLAMA_HOST={said}: no Ollama answers there ({type(error).__name__})")
        yield Ollama(ollama_url(), import_ollama.parse_version(version), None)
        return
    version = os.environ.get("EQA_OLLAMA_VERSION", build_ollama.VERSION)
    try:
        binary = build_ollama.build(version)
    except build_ollama.NotBuilt as error:
        pytest.skip(f"no OLLAMA_HOST, and no Ollama can be built here: {error}")
    with ollama_server.serve(binary, tmp_path_factory.mktemp("ollama")) as url:
        yield Ollama(url, import_ollama.parse_version(version), binary)


@pytest.fixture(scope="module")
def results(ollama, finished_demo, tmp_path_factory) -> Path:
    """results/ with a merged model that the server's engine knows, and the demo's GGUF, frames and test part."""
    results = tmp_path_factory.mktemp("project") / "results"
    for name in ("gguf", "sft", "frames", "predictions"):
        shutil.copytree(finished_demo / "results" / name, results / name)
    if ollama.own_engine:
        paths = ["--merged", str(finished_demo / "results/merged"), "--output", str(results / "merged")]
        call(ROOT, *TRAIN, "tests.lib.numbered_model", *paths)
    else:
        shutil.copytree(finished_demo / "results/merged", results / "merged")
    config = {"predict": {"max_new_tokens": 16, "decoding": "greedy"}, "frames": {"count": 8}}
    paths = ["--merged", str(results / "merged/manifest.json"), "--budget", str(results / "sft/token_budget.json")]
    output = ["--output", str(results / "ollama/Modelfile")]
    assert prepare_ollama.main([*paths, "--config", json.dumps(config), *output]) == 0
    return results


def transformers_answers(results: Path, requests: list[dict], folder: Path) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "requests.json", requests)
    paths = ["--requests", str(folder / "requests.json"), "--output", str(folder / "answers.json")]
    call(ROOT, *TRAIN, "tests.lib.serving_reference", "--model", str(results / "merged"), *paths)
    return read_json(folder / "answers.json")


@pytest.fixture(scope="module")
def asked(results, ollama, tmp_path_factory) -> Path:
    """A test part whose every question the server can answer as transformers does, and predictions beside it.

    With pictures for Ollama's own engine; without them from 0.30 on.
    """
    part = tmp_path_factory.mktemp("asked")
    rows = check_serving.choose(read_json(results / "sft/test.json"), check_serving.QUESTIONS)
    requests = []
    for row in rows:
        text = split_prompt(row["messages"][0]["content"])[1]
        if not ollama.own_engine:
            row["images"], row["messages"][0]["content"] = [], text
        images = [str(results / "frames" / name) for name in row["images"]]
        requests.append({"text": text, "images": images, "max_new_tokens": 16})
    answers = transformers_answers(results, requests, part)
    pairs = [(row["question_id"], answer) for row, answer in zip(rows, answers, strict=True)]
    write_jsonl(part / "tuned.jsonl", [{"question_id": q, "prediction": a["answer"].strip()} for q, a in pairs])
    write_json(part / "prompt_tokens.json", {q: a["prompt_tokens"] for q, a in pairs})
    write_json(part / "test.json", rows)
    return part


@pytest.fixture
def own_models(ollama):
    """What a test brings onto the server goes again, and nothing else."""
    os.environ["OLLAMA_HOST"], before = ollama.url, os.environ.get("OLLAMA_HOST")
    server = import_ollama.Server(ollama.url)
    there = server.models()
    try:
        yield server
        assert {name: digest for name, digest in server.models().items() if name in there} == there
    finally:
        for name in set(server.models()) - set(there):
            server.delete(name)
        if before is None:
            del os.environ["OLLAMA_HOST"]
        else:
            os.environ["OLLAMA_HOST"] = before


def load(results: Path, test: Path, output: Path, **serve) -> int:
    config = serving_data.recipe()
    config["deliver"]["ollama"] = True
    config["serve"] |= {"model_name": NAME, **serve}
    part = {key: config[key] for key in ("deliver", "serve", "predict")}
    paths = ["--merged", str(results / "merged/manifest.json"), "--modelfile", str(results / "ollama/Modelfile")]
    paths += ["--gguf", str(results / "gguf/manifest.json"), "--test", str(test), "--output", str(output)]
    more = ["--frames", str(results / "frames"), "--work-dir", str(output.parent / "work")]
    return import_ollama.main([*paths, "--config", json.dumps(part), *more])


def test_import_creates_asks_and_records_and_what_is_served_is_what_was_predicted(
    results, asked, ollama, own_models, tmp_path
):
    assert load(results, asked / "test.json", tmp_path / "import.json") == 0
    record = read_json(tmp_path / "import.json")
    assert record["route"] == ("safetensors" if ollama.version < NO_CONVERTER else "gguf")
    assert set(own_models.models()) >= {record["model"], f"{NAME}:latest"}
    first = read_json(asked / "test.json")[0]
    assert record["question"]["question_id"] == first["question_id"]
    # the very prompt of training: not a space more between the pictures and the question
    wanted = read_json(asked / "prompt_tokens.json")[first["question_id"]]
    assert record["question"]["prompt_tokens"] == wanted

    recipe = serving_data.recipe()
    recipe["serve"] |= {"model_name": NAME, "agreement": AGREEMENT}
    paths = ["--server", "ollama", "--test", str(asked / "test.json"), "--predictions", str(asked / "tuned.jsonl")]
    more = ["--frames", str(results / "frames"), "--output", str(tmp_path / "check.json")]
    more += ["--imported", str(tmp_path / "import.json")]
    assert check_serving.main([*paths, *more, "--config", json.dumps(recipe)]) == 0
    check = read_json(tmp_path / "check.json")
    assert check["agreement"] >= AGREEMENT
    assert (check["model"], check["digest"]) == (record["model"], own_models.models()[record["model"]])
    answers = {row["question_id"]: row["served"] for row in check["answers"]}
    assert record["question"]["answer"] == answers[first["question_id"]]

    # a second import uploads nothing and says the same
    before = (tmp_path / "import.json").read_bytes()
    assert load(results, asked / "test.json", tmp_path / "import.json") == 0
    assert (tmp_path / "import.json").read_bytes() == before


def test_quantized_model_is_one_and_answers(results, asked, ollama, own_models, tmp_path):
    assert load(results, asked / "test.json", tmp_path / "import.json", ollama_quantize="q8_0") == 0
    record = read_json(tmp_path / "import.json")
    shown = httpx.post(f"{ollama.url}/api/show", json={"model": record["model"]}, trust_env=False).json()
    assert shown["details"]["quantization_level"] == "Q8_0"
    assert "vision" in shown["capabilities"]
    assert record["question"]["answer"]


def test_a_foreign_model_of_our_name_stays(results, asked, ollama, own_models, tmp_path):
    assert load(results, asked / "test.json", tmp_path / "import.json") == 0
    model = read_json(tmp_path / "import.json")["model"]
    foreign = {"model": NAME, "from": model, "system": "the user's own", "stream": False}
    httpx.post(f"{ollama.url}/api/create", json=foreign, timeout=60, trust_env=False).raise_for_status()
    digest = own_models.models()[f"{NAME}:latest"]
    assert load(results, asked / "test.json", tmp_path / "import.json", ollama_quantize="q8_0") == 0
    assert own_models.models()[f"{NAME}:latest"] == digest
    record = read_json(tmp_path / "import.json")
    assert record["name"] == record["model"] != model


def test_eight_frames_are_asked_about_and_enlarged_ones_are_told(results, ollama, own_models, tmp_path, capsys):
    """From 0.30 on the demo's model may well answer with nothing: then the refusal says why, and nothing is left."""
    code = load(results, results / "sft/test.json", tmp_path / "import.json")
    said = capsys.readouterr().err
    assert ("enlarges each picture to 1024 tokens or more" in said) != ollama.own_engine
    if code == 0:
        question = read_json(tmp_path / "import.json")["question"]
        assert len(question["frames"]) == 8
        least, most = (8 * 26, 8 * 26 + 100) if ollama.own_engine else (8 * 1024, 8 * 1200)
        assert least < question["prompt_tokens"] < most
        assert question["answer"]
    else:
        assert not ollama.own_engine
        assert "answers with nothing" in said
        assert not any(name.startswith(NAME) for name in own_models.models())
        assert not (tmp_path / "import.json").exists()


def test_a_model_of_other_token_ids_is_refused_before_any_upload(
    results, finished_demo, asked, ollama, own_models, tmp_path, capsys
):
    if not ollama.own_engine:
        pytest.skip("Ollama from 0.30 on reads token ids from the model")
    demo = tmp_path / "results"
    shutil.copytree(results, demo)
    shutil.rmtree(demo / "merged")
    shutil.copytree(finished_demo / "results/merged", demo / "merged")
    assert load(demo, asked / "test.json", tmp_path / "import.json") == 2
    assert "use Ollama 0.30.0 or newer" in capsys.readouterr().err


def test_a_broken_file_is_ollamas_own_error_in_one_line(results, asked, ollama, own_models, tmp_path, capsys):
    if ollama.own_engine:
        pytest.skip("GGUF files are no way into Ollama before 0.30")
    from scripts.lib.files import write_manifest

    spoilt = tmp_path / "results"
    shutil.copytree(results, spoilt)
    broken = spoilt / "gguf/model-f16.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * (broken.stat().st_size - 4))
    (spoilt / "gguf/manifest.json").unlink()
    write_manifest(spoilt / "gguf")
    assert load(spoilt, asked / "test.json", tmp_path / "import.json") == 2
    assert f"creating {NAME}:" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not any(name.startswith(NAME) for name in own_models.models())


def test_pictures_over_the_context_are_one_line(results, asked, ollama, own_models, tmp_path):
    assert load(results, asked / "test.json", tmp_path / "import.json") == 0
    pictures = [path.read_bytes() for path in serving_data.write_pictures(tmp_path / "pictures", 9)]
    per_picture = 26 if ollama.own_engine else 1082
    context = 8 * per_picture
    with ChatClient("ollama", ollama.url, NAME, num_ctx=context) as client, pytest.raises(EqaError) as caught:
        client.ask([Message("user", "Hi", pictures)], Decoding(4))
    assert len(str(caught.value).splitlines()) == 1
    assert "context" in str(caught.value)


def test_a_conversation_over_the_context_is_one_line_and_no_answer_without_its_first_turn(
    results, asked, ollama, own_models, tmp_path
):
    assert load(results, asked / "test.json", tmp_path / "import.json") == 0
    turns = [Message("user", "Is the sofa red? " * 500), Message("assistant", "yes"), Message("user", "Why?")]
    with ChatClient("ollama", ollama.url, NAME, num_ctx=2048) as client:  # Ollama raises smaller ones to it
        assert client.ask(turns[1:], Decoding(4)) is not None
        with pytest.raises(EqaError, match="context") as caught:
            client.ask(turns, Decoding(4))
    assert len(str(caught.value).splitlines()) == 1


def pictures_of(folder: Path) -> list[str]:
    """One picture, where the test part has none."""
    return [str(path) for path in serving_data.write_pictures(folder / "one", 1)]


def ask(*words: str, stdin: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.ask", "--server", "ollama", "--model", NAME, *words]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=300)


def test_ask_answers_once_and_in_a_conversation(results, asked, ollama, own_models, tmp_path):
    assert load(results, asked / "test.json", tmp_path / "import.json") == 0
    rows = read_json(asked / "test.json")
    text = split_prompt(rows[0]["messages"][0]["content"])[1]
    images = [str(results / "frames" / name) for name in rows[0]["images"]]
    predicted = {r["question_id"]: r["prediction"] for r in map(json.loads, (asked / "tuned.jsonl").open())}
    once = ask("--raw", "--question", text, *images)
    assert once.stdout.strip() == predicted[rows[0]["question_id"]]
    with recording_proxy.record(ollama.url) as recording:
        questions = "What color is the sofa?\nIs the door open?\n\n"
        both = ask("--raw", "--url", recording.url, *(images or pictures_of(tmp_path)), stdin=questions)
    assert both.returncode == 0, both.stderr
    first, second = recording.chats()
    assert first["messages"][0]["content"] == "What color is the sofa?"
    assert len(first["messages"][0]["images"]) == len(images or pictures_of(tmp_path)) > 0
    assert second["messages"][0] == first["messages"][0]
    answer = second["messages"][1]
    assert (answer["role"], both.stdout.startswith(answer["content"] + "\n")) == ("assistant", True)
    assert second["messages"][2]["content"] == "Is the door open?"
    assert second["truncate"] is False
    assert ask("--question", "Hi", "--model", "nobody-has-this").returncode == 2


def test_the_documented_commands_work_as_pasted(results, ollama, own_models):
    if ollama.binary is None or ollama.own_engine:
        pytest.skip("wants an `ollama` of 0.30 or newer that was built here")
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/serving.md").read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "ollama create" in block]
    (curl,) = [block for block in blocks if "/api/chat" in block]
    path = f"{ollama.binary.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block + curl.replace("http://127.0.0.1:11434", ollama.url)],
        cwd=results.parent,
        env={**os.environ, "PATH": path, "HOME": str(results.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "qwen3-vl-openeqa:latest" in own_models.models()
    reply = json.loads(done.stdout.strip().splitlines()[-1])
    assert reply["done"]
    assert reply["prompt_eval_count"] > 1024  # the picture was seen
