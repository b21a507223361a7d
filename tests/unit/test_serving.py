"""Pure parts of the delivery scripts."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import math
import socket
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from scripts import ask, bench_lmdeploy, check_serving, export_gguf, serve
from scripts.lib import (
    chat_client,
    gpu_memory,
    llamacpp_server,
    lmdeploy_server,
    ollama_folder,
    serve_settings,
    targets,
)
from scripts.lib.chat_client import Message
from scripts.lib.errors import EqaError
from scripts.lib.files import write_manifest
from scripts.lib.gguf_convert import tensor_type_q4_k_m
from tests.lib import ollama_standin, raw_data, serving_data
from tests.lib.chat_server import serving
from tests.lib.project import ROOT

# ------------------------------------------------------------------------------------------------ chat client


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:11500", "http://127.0.0.1:11500"),
        ("gpu7:9000", "http://gpu7:9000"),
        ("gpu7", "http://gpu7:11434"),
        ("https://ollama.example.org", "https://ollama.example.org:443"),
        ("http://gpu7/ollama/", "http://gpu7:80/ollama"),
        ("[::1]:11434", "http://[::1]:11434"),
        (":11435", "http://127.0.0.1:11435"),
        ("::1", "http://[::1]:11434"),
        ("::", "http://[::1]:11434"),
        ("[::]:11500", "http://[::1]:11500"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(monkeypatch, host, url):
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert chat_client.ollama_url() == url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:23333"),
        ("0.0.0.0", "http://127.0.0.1:23333"),
        ("::1", "http://[::1]:23333"),
        ("[::1]", "http://[::1]:23333"),
        ("::", "http://[::1]:23333"),
        ("fe80::2", "http://[fe80::2]:23333"),
        ("gpu7", "http://gpu7:23333"),
    ],
)
def test_clients_ask_where_the_server_listens(host, url):
    assert chat_client.default_url("llamacpp", host, 23333) == url
    assert str(httpx.URL(url)) == url


@pytest.mark.parametrize("port", [0, -1, 65536, 70000, "http", None, True])
def test_what_is_no_port_is_one_line(port):
    with pytest.raises(EqaError, match=r"serve\.port: .* is no port; choose one from 1 to 65535"):
        chat_client.default_url("lmdeploy", "127.0.0.1", port)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:70000", "http://127.0.0.1:70000: 70000 is no port"),
        ("http://::1:23333", "no address"),
        ("127.0.0.1:23333", "no http address"),
        ("gpu7", "no http address"),
        ("http://a\udc80b", "no address"),
        ("", "no http address"),
    ],
)
def test_an_address_that_is_none_is_one_line(url, said):
    with pytest.raises(EqaError, match=said):
        chat_client.ChatClient("llamacpp", url, "m")


@pytest.mark.parametrize("key", ["schl\u00fcssel", "key\r\nX-More: 1", "k ey", "a\udc80b"])
def test_a_key_that_no_header_takes_is_named_and_not_shown(monkeypatch, key):
    monkeypatch.setattr(chat_client.os, "environ", {chat_client.KEY_VARIABLE: key})
    with pytest.raises(EqaError, match=f"^{chat_client.KEY_VARIABLE}: holds white space or signs") as caught:
        chat_client.ChatClient("lmdeploy", "http://127.0.0.1:9", "m")
    assert key not in str(caught.value)


@pytest.mark.parametrize("body", [b'{"error": "bad header Bearer sk-secret-1"}', b"Bearer sk-secret-1", b"[" * 100_000])
def test_a_refusal_that_repeats_the_key_is_told_without_it(monkeypatch, body):
    monkeypatch.setenv(chat_client.KEY_VARIABLE, "sk-secret-1\r")
    with serving(lambda number, asked: (400, {}, body)) as server:
        client = chat_client.ChatClient("llamacpp", server.url, "m")
        with pytest.raises(EqaError, match="HTTP 400 from llamacpp") as caught:
            client.ask([chat_client.Message("user", "hello")], chat_client.Decoding(4))
    assert server.keys == ["Bearer sk-secret-1"]
    assert "sk-secret-1" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_server_whose_model_is_called_like_the_key_is_told_without_it(monkeypatch):
    monkeypatch.setenv(chat_client.KEY_VARIABLE, "sk-secret-1")
    with (
        serving(lambda number, asked: None, models=("sk-secret-1-model",)) as server,
        pytest.raises(EqaError, match=r"serves \*\*\*-model, not m") as caught,
    ):
        chat_client.ChatClient("llamacpp", server.url, "m").check()
    assert "sk-secret-1" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_reply_without_end_is_given_up(monkeypatch, packed):
    monkeypatch.setattr(chat_client, "LONGEST_REPLY", 2**16)
    body = gzip.compress(bytes(2**24)) if packed else bytes(2**17)
    headers = {"Content-Encoding": "gzip"} if packed else {}
    with serving(lambda number, asked: (200, headers, body)) as server:
        client = chat_client.ChatClient("llamacpp", server.url, "m")
        assert client._http.headers["accept-encoding"] == "identity"
        with pytest.raises(EqaError, match="more than 65536 bytes for one request"):
            client.ask([Message("user", "Hi")], chat_client.Decoding())
        with pytest.raises(EqaError, match="more than 65536 bytes for one request"):
            client._call("POST", "/v1/chat/completions", {})


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_server_gives_up_is_no_answer(reason):
    rows = [{"choices": [{"delta": {"content": "the so"}}]}, {"choices": [{"delta": {}, "finish_reason": reason}]}]
    data = "".join(f"data: {json.dumps(row)}\n\n" for row in rows) + "data: [DONE]\n\n"
    with (
        streaming(data.encode()) as url,
        chat_client.ChatClient("lmdeploy", url, "m") as client,
        pytest.raises(EqaError, match=rf"gave the answer up midway \({reason}\)"),
    ):
        client.ask([Message("user", "Hi")], chat_client.Decoding())


def test_who_guards_an_ollama_is_answered_in_its_address(monkeypatch):
    with (
        serving(lambda number, asked: (401, {}, b"")) as server,
        pytest.raises(EqaError, match="user and password in OLLAMA_HOST") as caught,
    ):
        chat_client.ChatClient("ollama", server.url, "m")._call("POST", "/v1/chat/completions", {})
    assert chat_client.KEY_VARIABLE not in str(caught.value)


@pytest.mark.parametrize("url", ["http://bob:hun/ter2@127.0.0.1:9", "bob:hunter2@127.0.0.1:9"])
def test_a_password_in_a_mistyped_address_is_not_shown_either(url):
    with pytest.raises(EqaError) as caught:
        chat_client.ChatClient("ollama", url, "m")
    assert "hun" not in str(caught.value)


def test_a_password_in_ollamas_address_is_sent_and_not_shown():
    with pytest.raises(EqaError, match=r"^http://127\.0\.0\.1:9: no answer") as caught:
        chat_client.ChatClient("ollama", "http://bob:hunter2@127.0.0.1:9", "m").check()
    assert "hunter2" not in str(caught.value)


def test_a_server_that_takes_no_connection_is_given_up_soon_however_long_it_may_think():
    timeout = chat_client.ChatClient("llamacpp", "http://x", "m", timeout_s=3600)._http.timeout
    assert (timeout.connect, timeout.read) == (chat_client.CONNECT_S, 3600)


# for str.splitlines these end a line; inside a JSON text they are characters like others
ODD = "a\u2028b\u2029c\u0085d"


@contextlib.contextmanager
def streaming(*pieces: bytes):
    """A server that sends these bytes as they are to every POST, each piece for itself."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.02)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def reply_of(server: str, text: str, end: str = "\n") -> bytes:
    """An answer of two parts as the server streams it, UTF-8 unescaped."""
    if server == "ollama":
        rows = [{"message": {"content": text}}, {"done": True, "prompt_eval_count": 30, "eval_count": 4}]
        return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()
    usage = {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 4}}
    rows = [json.dumps(row, ensure_ascii=False) for row in ({"choices": [{"delta": {"content": text}}]}, usage)]
    return "".join(f"data: {row}{end}{end}" for row in [*rows, "[DONE]"]).encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("server", chat_client.SERVERS)
def test_only_a_line_feed_ends_a_line_of_an_answer(server, end):
    with streaming(reply_of(server, ODD, end)) as url, chat_client.ChatClient(server, url, "m") as client:
        assert client.ask([Message("user", "Hi")], chat_client.Decoding()) == ODD
        assert (client.prompt_tokens, client.answer_tokens) == (30, 4)


@pytest.mark.parametrize("server", chat_client.SERVERS)
def test_a_character_may_come_in_two_pieces(server):
    data = reply_of(server, ODD)
    at = data.index("\u2028".encode()) + 1
    with streaming(data[:at], data[at:]) as url, chat_client.ChatClient(server, url, "m") as client:
        assert client.ask([Message("user", "Hi")], chat_client.Decoding()) == ODD


@pytest.mark.parametrize("server", chat_client.SERVERS)
def test_bytes_that_are_no_text_are_another_programs(server):
    with (
        streaming(b"\xff\xfe\n") as url,
        chat_client.ChatClient(server, url, "m") as client,
        pytest.raises(EqaError, match="is another program on that port"),
    ):
        client.ask([Message("user", "Hi")], chat_client.Decoding())


def test_ollama_is_told_to_drop_no_turn():
    body = chat_client.ChatClient("ollama", "http://x", "m")._ollama_body(
        [Message("user", "Hi")], chat_client.Decoding()
    )
    assert body["truncate"] is False


@pytest.mark.parametrize(
    ("content", "found"),
    [("<image><image>Hi", (2, "Hi")), ("Hi", (0, "Hi")), ("Hi <image>", (0, "Hi <image>")), ("<image>", (1, ""))],
)
def test_leading_image_marks_are_counted(content, found):
    assert chat_client.split_prompt(content) == found


@pytest.mark.parametrize("data", [b"", b"GIF89a" + b"x" * 50, b"\xff\xd8\xff", b"%PDF-1.4" + b"x" * 99])
def test_no_picture_is_refused_by_name(data):
    with pytest.raises(EqaError, match=r"x\.jpg: no picture"):
        chat_client.media_type(data, "x.jpg")


def test_openai_content_puts_pictures_before_the_text():
    picture = b"\xff\xd8\xff" + b"x" * 40
    content = chat_client.openai_content(Message("user", "Hi", [picture, picture]))
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    assert content[0]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert chat_client.openai_content(Message("user", "Hi")) == "Hi"


def test_a_sample_whose_marks_and_pictures_differ_is_refused(tmp_path):
    sample = {"question_id": "q1", "messages": [{"role": "user", "content": "<image>Hi"}], "images": []}
    with pytest.raises(EqaError, match="question q1: 1 <image> marks for 0 pictures"):
        chat_client.sample_message(sample, tmp_path)


def test_a_sample_may_not_leave_its_folder(tmp_path):
    messages = [{"role": "user", "content": "<image>Hi"}]
    with pytest.raises(EqaError, match="may not leave its folder"):
        chat_client.sample_message({"messages": messages, "images": ["../../etc/passwd"]}, tmp_path)


def test_the_key_is_sent_to_openai_servers_only(monkeypatch):
    monkeypatch.setenv(chat_client.KEY_VARIABLE, "secret")
    assert chat_client.ChatClient("llamacpp", "http://x", "m")._http.headers["authorization"] == "Bearer secret"
    assert "authorization" not in chat_client.ChatClient("ollama", "http://x", "m")._http.headers


# ------------------------------------------------------------------------------------------------ ask


def test_eight_pictures_fit_and_nine_do_not():
    ask.check_room([26] * 8, 8 * 26 + ask.TEXT_ALLOWANCE + 16, 16)
    with pytest.raises(EqaError, match=r"9 pictures are 234 tokens.*send 8 or fewer"):
        ask.check_room([26] * 9, 8 * 26 + ask.TEXT_ALLOWANCE + 16, 16)


def test_a_server_that_names_no_context_has_the_last_word():
    ask.check_room([10**6], None, 16)


def test_a_conversation_ends_before_the_server_would_drop_its_first_turn():
    ask.check_next_turn(300, 300 + ask.TEXT_ALLOWANCE + 16, 16)
    ask.check_next_turn(None, 4096, 16)
    ask.check_next_turn(10**6, None, 16)
    with pytest.raises(EqaError, match=r"the conversation holds 301 tokens.*context of 476; start a new one"):
        ask.check_next_turn(301, 300 + ask.TEXT_ALLOWANCE + 16, 16)


@pytest.mark.parametrize(("version", "cost"), [("0.24.0", 26), ("0.30.0", 1107), ("0.0.0", 1107)])
def test_a_picture_costs_what_this_ollama_makes_of_it(version, cost):
    with ollama_standin.serve() as server, chat_client.ChatClient("ollama", server.url, "m") as client:
        server.version = version
        assert ask.picture_costs(client, [(b"", 26)]) == [cost]
        assert ask.picture_costs(client, [(b"", 4000)]) == [4000]


def test_no_picture_of_usual_shape_costs_more_than_what_is_reserved():
    """llama.cpp's own arithmetic (mtmd-image.cpp, calc_size_preserved_ratio), over all shapes up to four to one."""
    most = 0
    for width in range(32, 1025):
        for height in range(max(32, -(-width // 4)), width + 1):
            scale = math.sqrt(1024 * 1024 / (width * height)) / 32
            most = max(most, math.ceil(width * scale) * math.ceil(height * scale))
    assert most <= ollama_folder.MOST_ENLARGED_TOKENS
    assert (
        math.ceil(192 * 32 / math.sqrt(192 * 128)) * math.ceil(128 * 32 / math.sqrt(192 * 128)) == 1080
    )  # as measured


@pytest.mark.parametrize(
    ("name", "said"),
    [("file.txt/a.jpg", "Not a directory"), ("x" * 300 + ".jpg", "File name too long")],
)
def test_a_path_that_cannot_be_one_is_one_line(tmp_path, name, said):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(EqaError, match=f"{said}; name a picture that can be read"):
        ask.read_pictures([tmp_path / name], 24576)
    with pytest.raises(EqaError, match=f"{said}; name a picture that can be read"):
        chat_client.read_image(tmp_path / name)


def test_a_picture_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    """Root may read everything, so the refusal is stood in for."""
    (picture,) = serving_data.write_pictures(tmp_path, 1)

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(EqaError, match=r"000\.jpg: Permission denied; name a picture"):
        ask.read_pictures([picture], 24576)


def test_a_question_that_is_no_text_is_one_line():
    with pytest.raises(EqaError, match="--question: character 3 of the question is no UTF-8 text"):
        list(ask.questions("Hi\udcff"))


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_line_that_is_no_text_is_one_line(monkeypatch, errors):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi \xff\n"), "utf-8", errors=errors))
    with pytest.raises(EqaError, match=r"standard input: .* no UTF-8 text"):
        list(ask.questions(None))


def test_pictures_are_sized_as_in_training(tmp_path):
    import cv2
    import numpy as np

    (picture,) = serving_data.write_pictures(tmp_path, 1, (1920, 1080))
    data, tokens = ask.prepare_picture(picture, 24576)
    height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    assert width * height <= 24576
    assert width % 32 == height % 32 == 0
    assert tokens == width * height // 1024 + 2


def test_a_stored_frame_is_sent_as_it_is(tmp_path):
    (picture,) = serving_data.write_pictures(tmp_path, 1)
    assert ask.prepare_picture(picture, 24576) == (picture.read_bytes(), 26)


def test_a_frame_that_exif_turns_is_sent_upright(tmp_path):
    """Servers differ in whether they heed the mark, so none is left."""
    import cv2
    import numpy as np

    (picture,) = serving_data.write_pictures(tmp_path, 1)
    plain = picture.read_bytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0"  # orientation 3: upside down
    exif = b"Exif\0\0" + tiff
    picture.write_bytes(plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:])
    sent, tokens = ask.prepare_picture(picture, 24576)
    assert tokens == 26
    assert b"Exif" not in sent
    shown = cv2.imdecode(np.frombuffer(sent, np.uint8), cv2.IMREAD_COLOR).astype(int)
    wanted = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR)[::-1, ::-1]
    assert np.abs(shown - wanted).mean() < 4


def test_a_picture_too_long_for_its_width_is_named(tmp_path):
    (picture,) = serving_data.write_pictures(tmp_path, 1, (2000, 2))
    with pytest.raises(EqaError, match=r"000\.jpg: .*2000x2"):
        ask.prepare_picture(picture, 24576)


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "nan"],
        ["--temperature", "-1"],
        ["--max-new-tokens", "-1"],
        ["--max-new-tokens", "x"],
        ["--max-new-tokens", "000010000000"],
    ],
)
def test_numbers_of_the_decoding_are_checked_at_the_door(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        ask.main(["--question", "Hi", *words])
    assert "is wanted" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "serve: {}", None], ids=["a list", "a part", "a folder"])
def test_a_recipe_that_is_none_is_one_line(tmp_path, content, capsys):
    recipe = tmp_path / "config.yaml"
    recipe.write_text(content) if content else recipe.mkdir()
    assert ask.main(["--question", "Hi", "--config", str(recipe)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert str(recipe) in said


def test_a_full_disk_behind_the_answer_is_one_line(tmp_path):
    data = reply_of("llamacpp", "the sofa")
    with streaming(data) as url, open("/dev/full", "w") as full:
        code = (
            "from scripts.lib.chat_client import ChatClient; import sys; from scripts import ask;"
            "ChatClient.check = lambda self: []; ChatClient.context_length = lambda self: None; sys.exit(ask.main())"
        )
        command = [sys.executable, "-c", code, "--server", "llamacpp", "--url", url, "--raw", "--question", "Hi"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["ask: No space left on device; free space or mend permissions, then ask again"]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xe0" + b"\0" * 100])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(EqaError, match=r"a\.jpg: no (PNG or JPEG )?picture"):
        ask.prepare_picture(tmp_path / "a.jpg", 24576)


def test_a_picture_that_claims_too_many_pixels_is_refused_before_decoding(tmp_path):
    (tmp_path / "a.png").write_bytes(raw_data.png_claiming(60000, 60000))
    with pytest.raises(EqaError, match=r"a\.png: claims 60000x60000 px"):
        ask.prepare_picture(tmp_path / "a.png", 24576)


def test_the_question_goes_into_the_recipes_prompt(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = ask.fill_prompt("short_answer", "Is {it} red?")
    assert text == (ROOT / "config/prompts/short_answer.txt").read_text().rstrip("\n").replace(
        "{question}", "Is {it} red?"
    )
    assert ask.fill_prompt("", "Is it red?") == "Is it red?"


def test_marks_in_a_question_end_no_turn():
    assert "<|im_end|>" not in ask.fill_prompt("", "Hi<|im_end|><image>")
    assert "<image>" not in ask.fill_prompt("", "Hi<|im_end|><image>")


# ------------------------------------------------------------------------------------------------ check_serving


def test_the_same_questions_are_chosen_from_a_larger_test_part():
    few = [{"question_id": f"q{n}"} for n in range(30)]
    assert check_serving.choose(few, 20) == check_serving.choose(few[::-1], 20)
    assert len(check_serving.choose(few, 20)) == 20
    assert check_serving.choose(few[:3], 20) == few[:3]


def test_agreement_counts_identical_answers_and_lists_the_worst_first():
    rows = [
        {"question_id": "a", "predicted": "red", "served": " red\n"},
        {"question_id": "b", "predicted": "two lamps", "served": "two chairs"},
        {"question_id": "c", "predicted": "kitchen", "served": "bedroom"},
        {"question_id": "d", "predicted": "", "served": ""},
    ]
    result = check_serving.compare(rows)
    assert result["agreement"] == 0.5
    assert [row["question_id"] for row in result["offenders"]] == ["c", "b"]
    assert result["token_f1"] == pytest.approx((100 + 50 + 0 + 100) / 4)


def rows_of(*pairs: tuple[str, str]) -> list[dict]:
    return [{"question_id": f"q{n}", "predicted": p, "served": s} for n, (p, s) in enumerate(pairs)]


def refusal_of(*pairs: tuple[str, str]) -> str:
    """What check_serving says against a comparison of these answers; "" where it has nothing to say."""
    sides = [check_serving.variety([pair[side] for pair in pairs]) for side in (0, 1)]
    try:
        check_serving.check_variety("ollama", Path("tuned.jsonl"), *sides, len(pairs))
    except EqaError as error:
        return str(error)
    return ""


def test_agreement_of_empty_answers_is_refused_with_that_reason():
    assert "tuned.jsonl: 3 of 3 predicted answers are empty" in refusal_of(("", ""), (" ", ""), ("\n", ""))
    assert "tuned.jsonl: 2 of 3 predicted answers are empty" in refusal_of(("", ""), ("", ""), ("red", "red"))
    assert refusal_of(("", ""), ("blue", "blue")) == ""


def test_one_answer_to_everything_is_refused_where_the_predictions_differ():
    said = refusal_of(*[("red", "red")] * 19, ("blue", "red"))
    assert "ollama gives one and the same answer to all 20 questions, the predictions hold 2 different ones" in said
    assert refusal_of(*[("red", "red")] * 3) == ""


# ------------------------------------------------------------------------------------------------ bench_lmdeploy


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (RuntimeError("No enough gpu memory for kv cache."), True),
        (AssertionError("No enough GPU memory for state cache."), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_every_way_to_run_out_of_gpu_memory_is_known(error, is_it):
    assert gpu_memory.ran_out(error) == is_it


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [([3.0], 0.95, 3.0), ([1, 2, 3, 4], 0.5, 2), (list(range(1, 101)), 0.95, 95), ([5, 1], 1.0, 5)],
)
def test_percentiles_are_nearest_rank(values, share, found):
    assert bench_lmdeploy.percentile(values, share) == found


def test_neighbours_in_a_batch_come_from_different_episodes():
    samples = [{"episode_history": f"e{n // 3}", "n": n} for n in range(9)]
    picked = bench_lmdeploy.pick_samples(samples, 12)
    assert [s["episode_history"] for s in picked[:6]] == ["e0", "e1", "e2"] * 2
    assert len(picked) == 12
    assert {s["n"] for s in picked} == set(range(9))


def test_throughput_is_requests_over_the_sum_of_rounds():
    request = {"latency": 2.0, "first": 0.5, "new_tokens": 10, "prompt_tokens": 200}
    rounds = [
        {"seconds": 2.0, "requests": [request] * 4},
        {"seconds": 6.0, "requests": [{**request, "latency": 6.0}] * 4},
    ]
    row = bench_lmdeploy.summarize(rounds)
    assert row["requests_per_s"] == 1.0
    assert row["tokens_per_s"] == 10.0
    assert row["latency_s"] == {"p50": 2.0, "p95": 6.0}


def test_one_picture_means_the_first_frame(tmp_path):
    test = serving_data.write_test_part(tmp_path, ["a", "b"])
    from scripts.lib.files import read_json

    prompts = bench_lmdeploy.chat_prompts(read_json(test), tmp_path / "frames", 1)
    assert [len(prompt[0]["content"]) for prompt in prompts] == [2, 2]


# a pipeline stands in for LMDeploy's, which needs CUDA: parts as lmdeploy 0.18.0 messages.Response has them
class Part:
    def __init__(self, index, tokens, finish=None):
        self.index, self.generate_token_len, self.input_token_len, self.finish_reason = index, tokens, 200, finish


class Pipe:
    def __init__(self, parts):
        self.parts = parts

    def stream_infer(self, prompts, gen_config):
        yield from self.parts


def test_a_round_times_the_first_and_last_token_of_each_request():
    parts = [Part(1, 1), Part(0, 1), Part(1, 2, "stop"), Part(0, 2), Part(0, 3, "length")]
    result = bench_lmdeploy.run_round(Pipe(parts), [[], []], None)
    assert [request["new_tokens"] for request in result["requests"]] == [3, 2]
    assert all(0 <= request["first"] <= request["latency"] for request in result["requests"])
    assert math.isclose(result["seconds"], max(request["latency"] for request in result["requests"]))


@pytest.mark.parametrize(
    ("parts", "said"),
    [([Part(0, 1, "error")], "gave up on a request"), ([Part(0, 1, "stop")], "answered 1 of 2 requests")],
)
def test_lost_requests_are_an_error(parts, said):
    with pytest.raises(EqaError, match=said):
        bench_lmdeploy.run_round(Pipe(parts), [[], []], None)


def lmdeploy_words(results: Path, enabled: bool) -> list[str]:
    recipe = serving_data.recipe()
    config = {"deliver": {"lmdeploy": enabled}, "serve": recipe["serve"], "predict": recipe["predict"]}
    paths = ["--merged", str(results / "merged/manifest.json"), "--test", str(results / "sft/test.json")]
    paths += ["--budget", str(results / "sft/token_budget.json"), "--config", json.dumps(config)]
    return [*paths, "--output", str(results / "serve/lmdeploy.json")]


def without_shard(results: Path, listed: bool) -> Path:
    """A merged folder and a test part, one shard gone; with `listed` False its manifest does not know of it either."""
    serving_data.write_test_part(results, ["a"])
    manifest = serving_data.write_model_folder(results / "merged")
    (manifest.parent / "model-00002-of-00002.safetensors").unlink()
    if not listed:
        manifest.unlink()
        write_manifest(manifest.parent)
    return manifest


@pytest.mark.parametrize("listed", [True, False], ids=["by the manifest", "by the index"])
def test_the_bench_names_a_missing_shard_before_it_looks_for_a_device(tmp_path, capsys, listed):
    without_shard(tmp_path, listed)
    assert bench_lmdeploy.main(lmdeploy_words(tmp_path, True)) == 2
    assert "model-00002-of-00002.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "serve").exists()


def test_a_switched_off_bench_leaves_no_plot_of_an_earlier_one(tmp_path):
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve/lmdeploy.png").write_bytes(b"old")
    assert bench_lmdeploy.main(lmdeploy_words(tmp_path, False)) == 0
    assert [path.name for path in (tmp_path / "serve").iterdir()] == ["lmdeploy.json"]


# ------------------------------------------------------------------------------------------------ serve


def test_session_length_is_whole_cache_blocks():
    assert serve_settings.session_length({"cutoff_len": 768, "max_new_tokens": 16}, Path("b.json")) == 832
    with pytest.raises(EqaError, match=r"b\.json: no cutoff_len"):
        serve_settings.session_length([], Path("b.json"))


def test_lmdeploy_is_told_what_the_recipe_says():
    recipe = {**serving_data.recipe()["serve"], "eager_mode": True, "max_batch_size": 4}
    words = serve.lmdeploy_arguments(Path("results/merged"), recipe, "float16", 832)
    assert words[0] == "results/merged"
    said = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
    assert said["--backend"] == "pytorch"
    assert said["--server-name"] == "127.0.0.1"
    assert said["--session-len"] == "832"
    assert said["--dtype"] == "float16"
    assert said["--max-batch-size"] == "4"
    assert words[-1] == "--eager-mode"
    assert "--eager-mode" not in serve.lmdeploy_arguments(Path("x"), {**recipe, "eager_mode": False}, "float32", 832)


def test_no_argument_carries_the_key(monkeypatch):
    monkeypatch.setenv(chat_client.KEY_VARIABLE, "secret")
    recipe = serving_data.recipe()["serve"]
    assert "secret" not in " ".join(serve.lmdeploy_arguments(Path("x"), recipe, "float16", 832))
    assert "secret" not in " ".join(serve.llamacpp_arguments(Path("x"), "f16", recipe, 4096))


@pytest.mark.parametrize(
    ("key", "last"), [("secret", ["--api-keys=secret"]), ("-Xy9", ["--api-keys=-Xy9"]), ("", ["1"])]
)
def test_lmdeploy_gets_the_key_inside_its_own_process(monkeypatch, key, last):
    """LMDeploy's command line is stood in for by one that notes its arguments."""
    seen: list[str] = []
    entrypoint = types.ModuleType("lmdeploy.cli.entrypoint")
    entrypoint.run = lambda: seen.extend(sys.argv)
    for name in ("lmdeploy", "lmdeploy.cli"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lmdeploy.cli.entrypoint", entrypoint)
    monkeypatch.setattr(sys, "argv", ["lmdeploy_server", "results/merged", "--tp", "1"])
    monkeypatch.setenv(chat_client.KEY_VARIABLE, key)
    lmdeploy_server.main()
    assert seen[:4] == ["lmdeploy", "serve", "api_server", "results/merged"]
    assert seen[-1:] == last
    assert seen.count("--tp") == 1


def test_llamacpp_server_names_a_missing_file(tmp_path, capsys):
    words = ["--model", str(tmp_path / "model-f16.gguf"), "--mmproj", str(tmp_path / "mmproj-f16.gguf")]
    assert llamacpp_server.main(words) == 2
    assert "model-f16.gguf: no such GGUF file; set deliver.gguf=true" in capsys.readouterr().err


@pytest.mark.parametrize("listed", [True, False], ids=["by the manifest", "by the index"])
def test_serve_names_a_missing_shard_before_anything_starts(tmp_path, capsys, monkeypatch, listed):
    manifest = without_shard(tmp_path, listed)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(serving_data.recipe()))
    monkeypatch.chdir(tmp_path)
    words = ["--server", "lmdeploy", "--config", str(config), "--merged", str(manifest)]
    assert serve.main([*words, "--budget", str(tmp_path / "sft/token_budget.json")]) == 2
    assert "model-00002-of-00002.safetensors" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_serve_refuses_a_port_that_is_none(tmp_path, capsys, monkeypatch, port):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(serving_data.recipe()))
    monkeypatch.chdir(tmp_path)
    assert serve.main(["--server", "llamacpp", "--config", str(config), "--port", port]) == 2
    assert capsys.readouterr().err == f"serve: --port: {port} is no port; choose one from 1 to 65535\n"


def test_a_host_that_is_no_name_is_one_line():
    with pytest.raises(EqaError, match="no host name"):
        serve.check_port("\u00fc" * 70, 23333)


def test_a_start_that_takes_too_long_ends_with_the_logs_last_line_of_then(tmp_path, monkeypatch):
    log_file = tmp_path / "serve.log"
    log_file.write_text("starting\n")
    monkeypatch.setattr(serve, "healthy", lambda url: log_file.write_text("starting\nout of memory\n") == 0)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            with pytest.raises(EqaError, match=r"not ready after 0\.3 s; .*serve\.log ends with: out of memory"):
                serve.wait_healthy(process, "http://127.0.0.1:9", 0.3, log_file)
        finally:
            process.kill()


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EqaError, match=f"127.0.0.1:{port}: Address already in use; free it, or set serve.port"):
            serve.check_port("127.0.0.1", port)


# ------------------------------------------------------------------------------------------------ early checks


def deliver(**keys) -> dict:
    return {"deliver": {"gguf": True, "ollama": False, "lmdeploy": False, **keys}}


def test_rules_that_do_not_run_are_not_checked(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    targets.check_targets({"export_gguf"}, deliver(ollama=True, lmdeploy=True))


def test_switched_off_targets_are_made_on_any_machine(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    targets.check_targets({"import_ollama", "bench_lmdeploy"}, deliver())


def test_a_missing_ollama_server_is_one_line(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    with pytest.raises(EqaError, match=r"deliver.ollama=true, but no Ollama server answers at http://127.0.0.1:9"):
        targets.check_targets({"import_ollama"}, deliver(ollama=True))


def test_a_missing_cuda_device_is_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EqaError, match=r"deliver.lmdeploy=true, but there is no CUDA device"):
        targets.check_targets({"bench_lmdeploy"}, deliver(lmdeploy=True))


def test_an_answering_server_lets_the_run_start(monkeypatch):
    with ollama_standin.serve() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        targets.check_targets({"import_ollama"}, deliver(ollama=True))
        server.version = "0.9.0"
        with pytest.raises(EqaError, match=r"Ollama 0\.9\.0 cannot serve Qwen3-VL"):
            targets.check_targets({"import_ollama"}, deliver(ollama=True))
        server.version = "0.34.2"
        targets.check_targets({"import_ollama"}, deliver(ollama=True))
        with pytest.raises(EqaError, match=r"Ollama 0\.34\.2 takes Qwen3-VL as GGUF only"):
            targets.check_targets({"import_ollama"}, deliver(ollama=True, gguf=False))


# ------------------------------------------------------------------------------------------------ export_gguf


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(EqaError, match=r"gguf: 1000000000\.0 GB are needed, .* GB are free"):
        export_gguf.check_disk(tmp_path / "not/there/gguf", 10**18)
    export_gguf.check_disk(tmp_path, 1)


def test_metadata_with_a_path_of_this_machine_is_refused(tmp_path):
    export_gguf.check_metadata(tmp_path / "a.gguf", {"general.name": "qwen", "template": "a / b"}, tmp_path / "merged")
    with pytest.raises(EqaError, match=r"metadata general\.source=.* holds a path of this machine"):
        export_gguf.check_metadata(tmp_path / "a.gguf", {"general.source": f"{tmp_path}/x"}, tmp_path / "merged")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("1048576 requested and 4096 written"), True),  # numpy's short write, without a number
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError("something else"), False),
    ],
)
def test_a_disk_that_fills_up_is_told_and_nothing_else_is(tmp_path, error, told):
    with pytest.raises(EqaError if told else OSError) as caught, export_gguf.full_disk_told(tmp_path / "gguf"):
        raise error
    if told:
        assert str(caught.value).startswith(f"{tmp_path / 'gguf'}: the disk is full")
        assert str(caught.value).endswith("free space and run again, or set deliver.gguf=false")


# ------------------------------------------------------------------------------------------------ q4_K_M


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("token_embd.weight", (768, 2048), "Q6_K"),  # tied: it is the output too
        ("blk.0.attn_q.weight", (2048, 2048), "Q4_K"),
        ("blk.0.attn_v.weight", (1024, 2048), "Q6_K"),  # the first eighth
        ("blk.4.ffn_down.weight", (2048, 6144), "Q4_K"),
        ("blk.5.ffn_down.weight", (2048, 6144), "Q6_K"),  # every third between: (5 - 28 // 8) % 3 == 2
        ("blk.27.ffn_down.weight", (2048, 6144), "Q6_K"),  # the last eighth
        ("blk.0.attn_norm.weight", (2048,), ""),
        ("blk.0.attn_q_norm.weight", (128,), ""),
        ("blk.0.attn_q.weight", (2048, 96), "Q5_0"),  # rows that are no multiple of 256
        ("blk.0.attn_v.weight", (2048, 96), "Q8_0"),
        ("blk.0.attn_q.weight", (2048, 90), "F16"),  # nor of 32
    ],
)
def test_q4_k_m_mixes_types_as_llama_cpp_does(name, shape, kind):
    assert tensor_type_q4_k_m(name, shape, 28, tied=True) == kind


def test_an_embedding_of_its_own_is_q4_k():
    assert tensor_type_q4_k_m("token_embd.weight", (768, 2048), 28, tied=False) == "Q4_K"
    assert tensor_type_q4_k_m("output.weight", (768, 2048), 28, tied=False) == "Q6_K"
