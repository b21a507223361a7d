"""The chat client against a real local server that fails in every way."""

from __future__ import annotations

import contextlib
import gzip
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from scripts.lib import openai_client
from scripts.lib.errors import EqaError
from tests.lib.chat_server import Answer, completion, serving

KEY = "sk-very-secret-0123456789"
MESSAGES = [{"role": "user", "content": "hello"}]


def ask(answer: Answer, **options: object) -> tuple[openai_client.Reply, list, list[float]]:
    waits: list[float] = []
    with serving(answer) as server:
        reply = openai_client.chat(server.url, "m", MESSAGES, key=KEY, sleep=waits.append, what="judge.url", **options)
    return reply, server.requests, waits


@contextlib.contextmanager
def dripping(every_s: float, head: bool = False) -> Iterator[str]:
    """A server whose reply, or already its head, comes byte by byte, for ten seconds at most."""

    class Drip(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n" + (b"X-More: " if head else b"\r\n"))
                for _ in range(round(10 / every_s)):
                    self.wfile.write(b" ")
                    time.sleep(every_s)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def test_a_reply_with_what_the_server_says_of_itself() -> None:
    with serving(lambda number, body: (200, {}, completion("4"))) as server:
        reply = openai_client.chat(server.url, "m", MESSAGES, key=KEY, temperature=0.2, seed=1234, max_tokens=32)
    assert reply == openai_client.Reply("4", "judge-exact-2024", "fp_1", "stop", 100, 3)
    assert server.requests == [{"model": "m", "messages": MESSAGES, "temperature": 0.2, "seed": 1234, "max_tokens": 32}]
    assert server.keys == [f"Bearer {KEY}"]


def test_500_and_broken_connections_are_tried_again_with_growing_waits() -> None:
    def answer(number: int, body: dict) -> tuple | None:
        return [(500, {}, {"error": "oops"}), None, (503, {}, b"busy"), (200, {}, completion("5"))][number]

    reply, requests, waits = ask(answer)
    assert reply.text == "5"
    assert len(requests) == 4
    assert waits == [1.0, 2.0, 4.0]


def test_429_waits_as_long_as_the_server_asks() -> None:
    def answer(number: int, body: dict) -> tuple:
        return [(429, {"Retry-After": "7"}, {}), (429, {"Retry-After": "9999"}, {}), (200, {}, completion("1"))][number]

    _, _, waits = ask(answer)
    assert waits == [7.0, openai_client.LONGEST_WAIT_S]


def test_a_server_that_hangs_is_given_up_after_its_attempts() -> None:
    def answer(number: int, body: dict) -> tuple:
        time.sleep(1.0)
        return 200, {}, completion("5")

    with pytest.raises(EqaError, match=r"judge\.url=http://127.*no answer within 0\.2 s, 2 times"):
        ask(answer, timeout_s=0.2, attempts=2)


@pytest.mark.parametrize(
    "body",
    [b"<html>busy</html>", {}, {"choices": []}, {"choices": [{"message": {"content": 4}}]}, [1], b"\xff\xfe", b""],
)
def test_nonsense_is_tried_again_and_then_told(body: object) -> None:
    with pytest.raises(EqaError, match="a reply that is no chat completion"):
        ask(lambda number, _: (200, {}, body), attempts=2)


@pytest.mark.parametrize(("status", "advice"), [(401, "its key is wrong"), (404, "ends in /v1"), (400, "mend what")])
def test_a_refusal_is_final_and_never_shows_the_key(status: int, advice: str) -> None:
    refusing = serving(lambda number, body: (status, {}, {"error": f"bad key {KEY}"}))
    with refusing as server, pytest.raises(EqaError, match=advice) as caught:
        openai_client.chat(server.url, "m", MESSAGES, key=KEY, what="judge.url")
    assert len(server.requests) == 1
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_redirect_is_not_followed_with_the_key() -> None:
    moved = serving(lambda number, body: (307, {"Location": "http://127.0.0.1:9/steal"}, {}))
    with moved as server, pytest.raises(EqaError, match="HTTP 307"):
        openai_client.chat(server.url, "m", MESSAGES, key=KEY)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x/v1", "127.0.0.1:80", "http://", "http://[bad", "http://h:99999/v1", "http://h:abc", "http://h/a b"],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(EqaError, match=r"judge\.url=.*no http address"):
        openai_client.endpoint(url, "judge.url")


def test_addresses() -> None:
    assert openai_client.endpoint("http://h:1/v1/") == "http://h:1/v1/chat/completions"
    assert openai_client.endpoint("http://h/v1/chat/completions") == "http://h/v1/chat/completions"


@pytest.mark.parametrize("dressed", ["http://user:hunter2@h/v1", "http://h/v1?key=hunter2", "http://h/v1#hunter2"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(dressed: str) -> None:
    with pytest.raises(EqaError, match=r"judge\.url holds a user name") as caught:
        openai_client.chat(dressed, "m", MESSAGES, what="judge.url")
    assert "hunter2" not in str(caught.value)


def test_a_reply_without_end_is_given_up() -> None:
    huge = {"choices": [{"message": {"content": "x" * 2**20}}]}
    with pytest.raises(EqaError, match="over 1048576 bytes"):
        ask(lambda number, _: (200, {}, huge), attempts=2)


def test_a_packed_reply_is_not_asked_for_and_not_unpacked_without_end() -> None:
    packed = gzip.compress(bytes(2**26))
    with pytest.raises(EqaError, match="over 1048576 bytes"):
        ask(lambda number, _: (200, {"Content-Encoding": "gzip"}, packed), attempts=1)


@pytest.mark.parametrize("head", [False, True], ids=["body", "head"])
def test_a_server_that_drips_is_given_up_after_the_whole_time(head: bool) -> None:
    with dripping(every_s=0.05, head=head) as url, pytest.raises(EqaError, match=r"no answer within 0\.4 s, 1 times"):
        openai_client.chat(url, "m", MESSAGES, timeout_s=0.4, attempts=1)


def test_retry_after_reads_seconds_and_dates() -> None:
    assert openai_client.retry_after("3") == 3
    assert openai_client.retry_after("-3") == 0
    assert openai_client.retry_after("Wed, 21 Oct 2015 07:28:10 GMT", now=1445412480.0) == 10
    assert openai_client.retry_after("soon") is None
    assert openai_client.retry_after("nan") is None
    assert openai_client.retry_after("") is None


def test_the_rate_limit_spaces_requests_evenly() -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    limit = openai_client.RateLimit(120, clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        limit.wait()
    assert slept == [0.5, 0.5, 0.5]
    now[0] += 10
    limit.wait()
    assert len(slept) == 3, "a pause is not saved up for"


def test_models_are_listed() -> None:
    with serving(lambda number, body: None, models=("b", "a")) as server:
        assert openai_client.models(server.url) == ["a", "b"]
    with pytest.raises(EqaError, match="lists no models"):
        openai_client.models(server.url)


def test_a_key_that_the_server_repeats_stays_out_of_what_is_kept() -> None:
    said = completion(f"no mark {KEY}") | {"model": f"judge-{KEY}", "system_fingerprint": KEY}
    reply, _, _ = ask(lambda number, body: (200, {}, said))
    assert (reply.text, reply.model, reply.fingerprint) == ("no mark ***", "judge-***", "***")


def test_a_word_that_serves_as_key_is_left_in_answers() -> None:
    with serving(lambda number, body: (200, {}, completion("Your mark: 1"))) as server:
        assert openai_client.chat(server.url, "m", MESSAGES, key="1").text == "Your mark: 1"


def test_a_connection_that_is_refused_says_so() -> None:
    with pytest.raises(EqaError, match=r"ConnectError: \[Errno 111\] .*refused"):
        openai_client.chat("http://127.0.0.1:9/v1", "m", MESSAGES, attempts=1)
