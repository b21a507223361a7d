"""The GGUF of a tiny random Qwen3-VL in a real llama.cpp server on the CPU, against transformers.

Random weights answer with nonsense, yet any slip in tokens, positions or pictures changes its numbers: what is compared
is the log-probabilities of the first token as well as the greedy answer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from scripts.lib.chat_client import KEY_VARIABLE, ChatClient, Decoding, Message, openai_content
from scripts.lib.errors import EqaError
from scripts.lib.files import check_manifest, read_json, write_json, write_jsonl, write_manifest
from scripts.lib.ollama_folder import mend_for_ollama
from tests.lib import ollama_standin, recording_proxy, serving_data
from tests.lib.project import ROOT, call

GGUF = ["uv", "run", "--frozen", "--no-sync", "--project", "envs/gguf", "python", "-m"]
TRAIN = ["uv", "run", "--frozen", "--no-sync", "--project", "envs/train", "python", "-m"]
QUESTION = "What color is the sofa?"
QUESTIONS = [QUESTION, "How many lamps are there?", "Is the door open?", "Where is the plant?", "What is on the desk?"]
NEW_TOKENS = 12
# f16 weights against float32 ones; measured 0.003
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> Path:
    """A tiny random Qwen3-VL as the merge leaves it; returns its manifest."""
    folder = tmp_path_factory.mktemp("model") / "merged"
    config = {"model": {"demo_seed": 7, "demo_steps": 0}, "frames": {"count": 8}}
    config["vision"] = {"image_max_pixels": 24576, "image_min_pixels": 1024}
    prompt = ["--prompt", "config/prompts/short_answer.txt", "--config", json.dumps(config)]
    call(ROOT, *TRAIN, "scripts.make_demo_model", *prompt, "--output-dir", str(folder))
    mend_for_ollama(folder)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    return folder / "manifest.json"


def export(merged: Path, folder: Path, **env: str) -> Path:
    config = ["--config", '{"deliver":{"gguf":true}}', "--output-dir", str(folder)]
    call(ROOT, *GGUF, "scripts.export_gguf", "--merged", str(merged), *config, **env)
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def gguf(merged, tmp_path_factory) -> Path:
    """results/gguf of the tiny model; returns its manifest."""
    return export(merged, tmp_path_factory.mktemp("gguf") / "gguf")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return serving_data.write_pictures(tmp_path_factory.mktemp("pictures"), 9)


@pytest.fixture(scope="module")
def requests(pictures) -> list[dict]:
    """Text alone, one picture, eight pictures, and the eight backwards."""
    sets = [[], pictures[:1], pictures[:8], pictures[7::-1]]
    return [{"text": QUESTION, "images": [str(p) for p in images], "max_new_tokens": NEW_TOKENS} for images in sets]


@pytest.fixture(scope="module")
def reference(merged, requests, workplace, tmp_path_factory) -> list[dict]:
    """What transformers answers to `requests`, then to the test part."""
    folder = tmp_path_factory.mktemp("reference")
    test = read_json(workplace / "results/sft/test.json")
    frames = workplace / "results/frames"
    more = [
        {"text": text, "images": [str(frames / name) for name in row["images"]], "max_new_tokens": 16}
        for row, text in zip(test, QUESTIONS, strict=True)
    ]
    write_json(folder / "requests.json", [*requests, *more])
    paths = ["--requests", str(folder / "requests.json"), "--output", str(folder / "answers.json")]
    call(ROOT, *TRAIN, "tests.lib.serving_reference", "--model", str(merged.parent), *paths)
    return read_json(folder / "answers.json")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def make_workplace(folder: Path, gguf: Path) -> Path:
    """A folder with the project's code linked in, where `serve` may leave its pid file and log."""
    for name in ("scripts", "config", "envs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "results").mkdir()
    (folder / "results/gguf").symlink_to(gguf.parent)
    serving_data.write_test_part(folder / "results", QUESTIONS)
    return folder


@pytest.fixture(scope="module")
def workplace(gguf, tmp_path_factory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("workplace"), gguf)


@pytest.fixture
def other_workplace(gguf, tmp_path) -> Path:
    """One more, for servers of a test's own."""
    return make_workplace(tmp_path, gguf)


def serve(folder: Path, *words: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    return call(folder, sys.executable, "-m", "scripts.serve", "--server", "llamacpp", *words, check=check, **env)


@pytest.fixture(scope="module")
def server(workplace):
    """A running background server; yields its address."""
    done = serve(workplace, "--background", "true", "--port", str(free_port()))
    yield json.loads(done.stdout)["url"]
    serve(workplace, "--stop")


def completion(url: str, request: dict) -> dict:
    message = Message("user", request["text"], [Path(path).read_bytes() for path in request["images"]])
    body = {"messages": [{"role": "user", "content": openai_content(message)}], "max_tokens": NEW_TOKENS}
    body |= {"temperature": 0, "top_k": 1, "logprobs": True, "top_logprobs": 20}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status().json()


# ------------------------------------------------------------------------------------------------ export


def test_all_four_files_are_made_and_their_manifest_tells_the_truth(gguf):
    manifest = check_manifest(gguf)
    assert set(manifest["files"]) == {"model-f16.gguf", "model-q8_0.gguf", "model-q4_K_M.gguf", "mmproj-f16.gguf"}
    mix = manifest["tensors"]["model-q4_K_M.gguf"]
    assert set(mix) == {"F32", "Q4_K", "Q6_K"}
    assert mix["Q4_K"] > mix["Q6_K"]
    sizes = {name: record["size"] for name, record in manifest["files"].items()}
    assert sizes["model-q4_K_M.gguf"] < sizes["model-q8_0.gguf"] < sizes["model-f16.gguf"]


def test_a_second_export_from_another_place_gives_equal_bytes(merged, gguf, tmp_path):
    shutil.copytree(merged.parent, tmp_path / "elsewhere")
    again = export(tmp_path / "elsewhere/manifest.json", tmp_path / "gguf")
    assert again.read_bytes() == gguf.read_bytes()


def test_no_file_tells_where_it_was_made(gguf, merged):
    for path in sorted(gguf.parent.glob("*.gguf")):
        data = path.read_bytes()
        assert str(merged.parent).encode() not in data
        assert str(gguf.parent).encode() not in data


def test_quantized_weights_are_near_the_f16_ones(gguf):
    """By gguf-py's own reading of the bytes that llama.cpp's kernels wrote."""
    code = """
import sys, json, gguf, numpy as np
f16, other = (gguf.GGUFReader(path) for path in sys.argv[1:])
named = {t.name: t for t in other.tensors}
worst = 0
for t in f16.tensors:
    a = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
    b = gguf.dequantize(named[t.name].data, named[t.name].tensor_type).astype(np.float32)
    assert a.shape == b.shape, t.name
    worst = max(worst, float(np.sqrt(((a - b) ** 2).mean() / (a ** 2).mean())))
print(json.dumps(worst))
"""
    worst = {}
    for kind in ("q8_0", "q4_K_M"):
        files = [str(gguf.parent / f"model-{name}.gguf") for name in ("f16", kind)]
        worst[kind] = json.loads(call(ROOT, *GGUF[:-1], "-c", code, *files).stdout)
    assert 0 < worst["q8_0"] < 0.01
    assert 0.01 < worst["q4_K_M"] < 0.12


def test_switched_off_export_is_a_record(tmp_path):
    config = ["--config", '{"deliver":{"gguf":false}}', "--output-dir", str(tmp_path / "gguf")]
    call(ROOT, *GGUF, "scripts.export_gguf", "--merged", "nowhere", *config)
    assert read_json(tmp_path / "gguf/manifest.json") == {"status": "disabled", "key": "deliver.gguf"}


def test_an_unknown_pre_tokenizer_is_still_refused(merged, tmp_path):
    folder = tmp_path / "merged"
    shutil.copytree(merged.parent, folder)
    text = (folder / "tokenizer.json").read_text()
    assert "\\\\p{N}" in text
    (folder / "tokenizer.json").write_text(text.replace("\\\\p{N}|", "\\\\p{N}{1,3}|", 1))
    write_manifest(folder)
    config = ["--config", '{"deliver":{"gguf":true}}', "--output-dir", str(tmp_path / "gguf")]
    done = call(ROOT, *GGUF, "scripts.export_gguf", "--merged", str(folder / "manifest.json"), *config, check=False)
    assert done.returncode == 2
    assert "llama.cpp knows neither this vocabulary nor its Split regex" in done.stderr
    assert not (tmp_path / "gguf").exists()
    assert not (tmp_path / "gguf.part").exists()


def test_a_shard_cut_short_is_named_and_nothing_is_left(merged, tmp_path):
    folder = tmp_path / "merged"
    shutil.copytree(merged.parent, folder)
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    write_manifest(folder)
    config = ["--config", '{"deliver":{"gguf":true}}', "--output-dir", str(tmp_path / "gguf")]
    done = call(ROOT, *GGUF, "scripts.export_gguf", "--merged", str(folder / "manifest.json"), *config, check=False)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr.strip().splitlines()[-1]
    assert "cut short" in done.stderr
    assert not (tmp_path / "gguf").exists()


# from the named step on, no file may grow beyond 100 kB: the kernel then cuts a write short, as a full disk does
FULL_DISK = """
import resource, sys
from scripts import export_gguf
from scripts.lib import gguf_convert
step = sys.argv.pop(1)
real = getattr(gguf_convert, step)
def limited(*words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    return real(*words)
setattr(gguf_convert, step, limited)
sys.exit(export_gguf.main())
"""


@pytest.mark.parametrize("step", ["convert", "quantize_q4_k_m"])
def test_a_disk_that_fills_up_during_the_export_is_one_line_and_leaves_nothing(merged, tmp_path, step):
    words = ["--merged", str(merged), "--config", '{"deliver":{"gguf":true}}', "--output-dir", str(tmp_path / "gguf")]
    done = call(ROOT, *GGUF[:-1], "-c", FULL_DISK, step, *words, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"export_gguf: {tmp_path / 'gguf'}: the disk is full or a file may not grow")
    assert last.endswith("free space and run again, or set deliver.gguf=false")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ the server's answers


@pytest.mark.parametrize("number", [0, 1, 2, 3], ids=["text", "one picture", "eight pictures", "eight backwards"])
def test_llama_cpp_agrees_with_transformers(server, requests, reference, number):
    reply, wanted = completion(server, requests[number]), reference[number]
    choice = reply["choices"][0]
    assert reply["usage"]["prompt_tokens"] == wanted["prompt_tokens"]
    said = [row["id"] for row in choice["logprobs"]["content"]]
    if said != wanted["tokens"][: len(said)]:
        # half precision may turn a near tie, and what follows is another text: equal up to there, and a tie it must be
        at = next(i for i, (one, other) in enumerate(zip(said, wanted["tokens"], strict=False)) if one != other)
        assert wanted["leads"][at] < TOLERANCE, (
            at,
            wanted["leads"][at],
            choice["message"]["content"],
            wanted["answer"],
        )
    first = {row["id"]: row["logprob"] for row in choice["logprobs"]["content"][0]["top_logprobs"]}
    expected = {int(token): value for token, value in wanted["first"].items()}
    common = set(first) & set(expected)
    assert len(common) >= 18  # ranks at the edge may swap
    assert max(abs(first[token] - expected[token]) for token in common) < TOLERANCE


def test_most_answers_are_equal_to_the_last_token(server, requests, reference):
    pairs = zip(requests[:4], reference[:4], strict=True)
    equal = [
        completion(server, request)["choices"][0]["message"]["content"] == wanted["answer"] for request, wanted in pairs
    ]
    assert sum(equal) >= 3, equal


def test_the_comparison_would_see_swapped_pictures(reference):
    forwards, backwards = reference[2]["first"], reference[3]["first"]
    common = set(forwards) & set(backwards)
    assert max(abs(forwards[token] - backwards[token]) for token in common) > 2 * TOLERANCE


def test_answers_stream_in_pieces(server, pictures):
    message = Message("user", QUESTION, [path.read_bytes() for path in pictures[:2]])
    with ChatClient("llamacpp", server, "qwen3-vl-openeqa") as client:
        pieces = list(client.stream([message], Decoding(max_new_tokens=8)))
        assert len(pieces) > 1
        assert "".join(pieces) == client.ask([message], Decoding(max_new_tokens=8))
        assert client.context_length() == 4096


@pytest.mark.parametrize("kind", ["q8_0", "q4_K_M"])
def test_quantized_files_load_and_answer(other_workplace, requests, reference, kind):
    port = str(free_port())
    done = serve(other_workplace, "--background", "true", "--port", port, "--quantization", kind)
    try:
        reply = completion(json.loads(done.stdout)["url"], requests[2])
    finally:
        serve(other_workplace, "--stop")
    first = {row["id"]: row["logprob"] for row in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    common = set(first) & {int(token) for token in reference[2]["first"]}
    assert len(common) >= 5
    assert reply["usage"]["prompt_tokens"] == reference[2]["prompt_tokens"]


# ------------------------------------------------------------------------------------------------ ask, check_serving


def ask(folder: Path, *words: str, check: bool = True, stdin: str = "", **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.ask", "--server", "llamacpp", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(
        command, cwd=folder, env=environment, input=stdin, capture_output=True, text=True, timeout=120
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("count", [0, 1, 8])
def test_ask_answers_about_pictures_as_transformers_does(workplace, server, pictures, reference, count):
    words = [str(path) for path in pictures[:count]]
    done = ask(workplace, "--url", server, "--raw", "--question", QUESTION, "--max-new-tokens", str(NEW_TOKENS), *words)
    wanted = reference[{0: 0, 1: 1, 8: 2}[count]]["answer"]
    assert done.stdout == wanted + "\n"
    assert done.stderr == ""


def test_ask_holds_a_conversation(workplace, server, pictures):
    """Each question carries all turns before it, the pictures in the first one, and what was answered."""
    with recording_proxy.record(server) as recording:
        words = ["--url", recording.url, "--max-new-tokens", "4", "--raw", *map(str, pictures[:2])]
        once = ask(workplace, *words, "--question", "What is it?").stdout
        both = ask(workplace, *words, stdin="What is it?\nAnd the other?\n\nnot read\n").stdout
    assert both.startswith(once)
    assert len(both) > len(once)
    single, first, second = recording.chats()
    assert first["messages"] == single["messages"]
    assert [part["type"] for part in first["messages"][0]["content"]] == ["image_url", "image_url", "text"]
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][1] == {"role": "assistant", "content": once.removesuffix("\n")}
    assert second["messages"][2:] == [{"role": "user", "content": "And the other?"}]


def test_a_conversation_that_would_outgrow_the_context_ends_in_one_line(other_workplace, pictures):
    # 512 tokens hold 160 for a question, 140 for an answer, and so 212 of what was said before
    done = serve(other_workplace, "--background", "true", "--port", str(free_port()), "--context", "512")
    try:
        words = ["--url", json.loads(done.stdout)["url"], "--max-new-tokens", "140", *map(str, pictures[:7])]
        asked = ask(other_workplace, *words, stdin="What is it?\n" * 9, check=False)
    finally:
        serve(other_workplace, "--stop")
    assert asked.returncode == 2
    (error,) = asked.stderr.strip().splitlines()
    assert re.match(
        r"ask: the conversation holds \d+ tokens, with 160 for the next question and 140 for its answer", error
    )
    assert "more than the server's context of 512; start a new one" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--question", "Hi", "nowhere.jpg"], "nowhere.jpg: this picture does not exist"),
        (["--question", "Hi", "results/sft/test.json"], "results/sft/test.json: no picture"),
        (["--question", "Hi", "results"], "results: a folder, no picture"),
        (["--question", "Hi", "--model", "other"], "not other; say --model qwen3-vl-openeqa"),
        (["--question", " "], "a question is wanted"),
        (["--question", os.fsdecode(b"Hi \xff")], "character 4 of the question is no UTF-8 text"),
        (["--question", "Hi", "results/sft/test.json/a.jpg"], "Not a directory; name a picture that can be read"),
        (["--question", "Hi", "x" * 300 + ".jpg"], "File name too long; name a picture that can be read"),
        (["--question", "Hi", "--url", "http://127.0.0.1:70000"], "70000 is no port; choose one from 1 to 65535"),
        (["--question", "Hi", "--url", "http://127.0.0.1:9"], "no answer from llamacpp (ConnectError); start it"),
    ],
)
def test_ask_says_what_is_wrong_in_one_line(workplace, server, words, said):
    done = ask(workplace, *(["--url", server] if "--url" not in words else []), *words, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_nine_pictures_for_a_context_of_eight_is_one_line(other_workplace, pictures):
    # llama.cpp rounds a context up to 256: 512 hold 160 for text, 150 for the answer and 7 pictures of 26
    port = str(free_port())
    url = json.loads(serve(other_workplace, "--background", "true", "--port", port, "--context", "512").stdout)["url"]
    try:
        words = ["--url", url, "--question", "Hi", "--max-new-tokens", "140", *map(str, pictures)]
        done = ask(other_workplace, *words, check=False)
        ask(other_workplace, *words[:-1])
        body = {"messages": [{"role": "user", "content": "word " * 600}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 400
        # the server's own refusal, where the client did not count
        images = [path.read_bytes() for path in pictures] * 3
        client = ChatClient("llamacpp", url, "qwen3-vl-openeqa")
        with pytest.raises(EqaError, match="27 pictures do not fit its context"):
            client.ask([Message("user", "Hi", images)], Decoding(4))
    finally:
        serve(other_workplace, "--stop")
    assert done.returncode == 2
    assert "9 pictures are 234 tokens" in done.stderr
    assert "send 8 or fewer" in done.stderr


def check_serving(folder: Path, url: str, *words: str, check: bool = True) -> subprocess.CompletedProcess:
    recipe = serving_data.recipe()
    config = json.dumps({"serve": recipe["serve"], "predict": recipe["predict"]})
    paths = ["--test", "results/sft/test.json", "--predictions", "tuned.jsonl", "--output", "check.json"]
    command = [sys.executable, "-m", "scripts.check_serving", "--server", "llamacpp", "--url", url]
    return call(folder, *command, *paths, "--config", config, *words, check=check)


def test_what_is_served_is_what_was_predicted(workplace, server, reference):
    answers = [row["answer"].strip() for row in reference[4:]]
    ids = [row["question_id"] for row in read_json(workplace / "results/sft/test.json")]
    rows = [{"question_id": i, "prediction": a} for i, a in zip(ids, answers, strict=True)]
    write_jsonl(workplace / "tuned.jsonl", rows)
    check_serving(workplace, server)
    record = read_json(workplace / "check.json")
    assert record["passed"]
    assert record["agreement"] == 1.0
    assert record["questions"] == len(QUESTIONS)
    assert record["offenders"] == []


def test_a_served_model_that_differs_fails_and_names_the_worst(workplace, server, reference):
    (workplace / "check.json").unlink(missing_ok=True)
    ids = [row["question_id"] for row in read_json(workplace / "results/sft/test.json")]
    write_jsonl(workplace / "tuned.jsonl", [{"question_id": i, "prediction": "something else"} for i in ids])
    done = check_serving(workplace, server, check=False)
    assert done.returncode == 2
    assert "agreement 0 < serve.agreement=0.9" in done.stderr
    assert "see work/serve/failed_check_llamacpp.json" in done.stderr
    assert not (workplace / "check.json").exists()
    record = read_json(workplace / "work/serve/failed_check_llamacpp.json")
    assert not record["passed"]
    assert record["offenders"][0]["predicted"] == "something else"


def test_a_question_without_prediction_is_named(workplace, server):
    write_jsonl(workplace / "tuned.jsonl", [])
    done = check_serving(workplace, server, check=False)
    assert done.returncode == 2
    assert "no prediction for question q000" in done.stderr


# ------------------------------------------------------------------------------------------------ the server's life


def test_a_port_in_use_is_one_line(other_workplace, server):
    port = server.rpartition(":")[2]
    done = serve(other_workplace, "--port", port, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        f"serve: 127.0.0.1:{port}: Address already in use; free it, or set serve.port to another"
    )


def test_a_second_background_server_is_refused(workplace, server):
    done = serve(workplace, "--background", "true", "--port", str(free_port()), check=False)
    assert done.returncode == 2
    assert "runs already in the background" in done.stderr


def test_background_leaves_pid_and_log_and_stop_takes_all_away(other_workplace):
    port = free_port()
    done = serve(other_workplace, "--background", "true", "--port", str(port))
    facts = json.loads(done.stdout)
    assert int((other_workplace / "work/serve/llamacpp.pid").read_text()) == facts["pid"]
    assert "listening" in (other_workplace / "logs/serve_llamacpp.log").read_text()
    stopped = json.loads(serve(other_workplace, "--stop").stdout)
    assert stopped["clean"]
    assert not (other_workplace / "work/serve/llamacpp.pid").exists()
    with socket.create_server(("127.0.0.1", port)):
        pass
    again = serve(other_workplace, "--stop", check=False)
    assert again.returncode == 2
    assert "nothing to stop" in again.stderr


def test_a_stale_pid_file_of_another_process_is_no_server(other_workplace):
    """Process numbers come round again: stopping must not hit whoever has it now."""
    (other_workplace / "work/serve").mkdir(parents=True)
    (other_workplace / "work/serve/llamacpp.pid").write_text(f"{os.getpid()}\n")
    done = serve(other_workplace, "--stop", check=False)
    assert done.returncode == 2
    assert "nothing to stop" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_foreground_server_stops_cleanly(other_workplace, number):
    port = free_port()
    command = [sys.executable, "-m", "scripts.serve", "--server", "llamacpp", "--port", str(port)]
    process = subprocess.Popen(command, cwd=other_workplace, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/health"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=60)
    codes = {signal.SIGINT: 0, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}
    assert process.returncode == codes[number]
    deadline = time.monotonic() + (20 if number == signal.SIGKILL else 0)  # then the kernel and uv tell the server
    while True:
        try:
            httpx.get(url, trust_env=False)
        except httpx.ConnectError:
            break
        assert time.monotonic() < deadline, "the server is still there"
        time.sleep(0.2)


def test_the_key_is_wanted_and_in_no_process_list_or_log(other_workplace):
    key, port = "s3cret-of-this-test", free_port()
    done = serve(other_workplace, "--background", "true", "--port", str(port), **{KEY_VARIABLE: key})
    try:
        facts = json.loads(done.stdout)
        words = ["--url", facts["url"], "--question", "Hi", "--max-new-tokens", "2"]
        assert f"export {KEY_VARIABLE}" in ask(other_workplace, *words, check=False).stderr
        assert ask(other_workplace, *words, **{KEY_VARIABLE: key}).stdout
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert not any(key.encode() in line for line in lines)
        assert key not in (other_workplace / facts["log"]).read_text() + done.stderr
    finally:
        serve(other_workplace, "--stop")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model-f16.gguf").unlink(), "model-f16.gguf: listed in"),
        (lambda folder: write_json(folder / "manifest.json", {"status": "disabled"}), "set deliver.gguf=true"),
    ],
)
def test_missing_gguf_files_are_one_line(other_workplace, gguf, spoil, said):
    (other_workplace / "results/gguf").unlink()
    shutil.copytree(gguf.parent, other_workplace / "results/gguf")
    spoil(other_workplace / "results/gguf")
    done = serve(other_workplace, "--port", str(free_port()), check=False)
    assert done.returncode == 2
    assert said in done.stderr.strip().splitlines()[-1]


def test_a_file_that_llama_cpp_refuses_ends_with_its_reason_at_hand(other_workplace, gguf):
    (other_workplace / "results/gguf").unlink()
    shutil.copytree(gguf.parent, other_workplace / "results/gguf")
    broken = other_workplace / "results/gguf/model-f16.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * (broken.stat().st_size - 4))
    done = serve(other_workplace, "--background", "true", "--port", str(free_port()), check=False)
    assert done.returncode == 2
    assert "ended with exit code 2 before it was ready" in done.stderr.strip().splitlines()[-1]
    assert not (other_workplace / "work/serve/llamacpp.pid").exists()


# ------------------------------------------------------------------------------------------------ docs/serving.md


def documented(word: str) -> list[str]:
    """The shell blocks of docs/serving.md that hold `word`."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/serving.md").read_text(), flags=re.DOTALL)
    return [block for block in blocks if word in block]


def paste(folder: Path, block: str, url: str) -> subprocess.CompletedProcess:
    """Run a block as it stands, but for the server's address."""
    place = url.removeprefix("http://")
    text = block.replace("127.0.0.1:23333", place).replace("scripts.ask", f"scripts.ask --url {url}")
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("number", range(2))
def test_curl_examples_work_as_pasted(workplace, server, number):
    block = documented("/v1/chat/completions")[number]
    done = paste(workplace, block, server)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["choices"][0]["message"]["content"]
    assert reply["usage"]["prompt_tokens"] > (26 if number == 0 else 208)


def test_ask_examples_work_as_pasted(workplace, server):
    blocks = documented("scripts.ask --server llamacpp")
    assert blocks
    for block in blocks:
        done = paste(workplace, block, server)
        assert done.returncode == 0, done.stderr
        assert done.stdout  # random weights may well answer with line feeds


def test_the_ollama_curl_example_sends_what_ollama_reads(workplace):
    (block,) = documented("/api/chat")
    with ollama_standin.serve() as state:
        state.models["qwen3-vl-openeqa:latest"] = {"model": "qwen3-vl-openeqa"}
        done = paste(workplace, block.replace("http://127.0.0.1:11434", state.url), "http://nowhere")
    assert done.returncode == 0, done.stderr
    (body,) = [body for _, path, body in state.requests if path == "/api/chat"]
    assert len(body["messages"][0]["images"]) == 1


# ------------------------------------------------------------------------------------------------ the demo


@pytest.mark.demo
def test_the_demos_gguf_answers_as_the_demos_predictions(demo_copy):
    done = serve(demo_copy, "--background", "true", "--port", str(free_port()))
    try:
        port = json.loads(done.stdout)["url"].rpartition(":")[2]
        config = demo_copy / "config/config.yaml"
        config.write_text(config.read_text().replace("port: 23333", f"port: {port}"))
        call(demo_copy, "snakemake", "--cores", "2", "results/serve/check_llamacpp.json")
    finally:
        serve(demo_copy, "--stop")
    record = read_json(demo_copy / "results/serve/check_llamacpp.json")
    assert record["passed"]
    assert record["questions"] == 20
