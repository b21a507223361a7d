"""The chat client against a real local server that fails in every way."""

from __future__ import annotations

import time

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


@pytest.mark.parametrize("url", ["", "ftp://x/v1", "127.0.0.1:80", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(EqaError, match=r"judge\.url=.*no http address"):
        openai_client.endpoint(url, "judge.url")


def test_addresses() -> None:
    assert openai_client.endpoint("http://h:1/v1/") == "http://h:1/v1/chat/completions"
    assert openai_client.endpoint("http://h/v1/chat/completions") == "http://h/v1/chat/completions"
    assert [
        openai_client.is_local(f"http://{h}/v1") for h in ("127.0.0.1:9", "localhost", "[::1]:8", "example.org")
    ] == [
        True,
        True,
        True,
        False,
    ]


def test_passwords_in_an_address_are_not_shown() -> None:
    with serving(lambda number, body: (400, {}, {})) as server:
        url = server.url.replace("http://", "http://user:hunter2@")
        with pytest.raises(EqaError) as caught:
            openai_client.chat(url, "m", MESSAGES)
    assert "hunter2" not in str(caught.value)


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
