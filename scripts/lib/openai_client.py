"""One question to any OpenAI-compatible server: retries with backoff, rate limit, no key in any message."""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scripts.lib.addresses import check_address, hidden, is_local, public
from scripts.lib.errors import EqaError

log = logging.getLogger(__name__)
ATTEMPTS = 6
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
TIMEOUT_S = 120.0
FIRST_TIMEOUT_S = 30.0  # of the question which models there are
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
SHOWN_BODY = 200  # characters of a server's message that an error repeats
GIVEN_UP = ("abort", "error")  # as LMDeploy ends a request that was cancelled or grew stale, with HTTP 200
LEAST_KEY = 8  # characters; a shorter one ("EMPTY", "1") is a word that answers may hold, and no secret
LONGEST_REPLY = 2**20  # bytes; an answer has some hundred tokens, a list of models some hundred names


@dataclass(frozen=True)
class Reply:
    """What a server said.

    Attributes:
        text: the first choice's content.
        model: the model that the server names; may be more exact than the one asked for.
        fingerprint: the server's own revision mark (OpenAI's system_fingerprint), "" without one.
        finish: why it ended: "stop", "length", ...; "" where not said.
        prompt_tokens, answer_tokens: as the server counts; 0 where it does not.
    """

    text: str
    model: str = ""
    fingerprint: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass
class RateLimit:
    """At most `per_minute` starts a minute, evenly spaced, over all threads."""

    per_minute: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _next: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def wait(self) -> None:
        """Return when the next request may start."""
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + 60.0 / self.per_minute
        if start > now:
            self.sleep(start - now)


def chat(
    url: str,
    model: str,
    messages: Sequence[Mapping],
    *,
    key: str = "",
    timeout_s: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    limit: RateLimit | None = None,
    sleep: Callable[[float], None] = time.sleep,
    what: str = "server",
    **options: object,
) -> Reply:
    """Ask once, patiently.

    Args:
        url: base address such as http://127.0.0.1:23333/v1, with or without /chat/completions.
        model: name that the server knows.
        messages: OpenAI chat messages.
        key: bearer token, as addresses.read_key gives it; "" sends none.
        timeout_s: of each attempt, from its start to the reply's last byte, head included; a look-up of the server's name that
            hangs may take longer.
        attempts: tries before giving up: on timeouts, broken connections, 429, 5xx and replies that are no chat reply.
        limit: shared by all callers that the server counts together.
        sleep: replaced in tests.
        what: names the server in messages, such as "judge.url".
        options: temperature, max_tokens, seed, top_p and the like, sent as they are.
    Raises:
        EqaError: the server refuses (4xx), or still fails at the last attempt. Never shows the key, nor does the reply.
    """
    import httpx

    address = endpoint(url, what)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": model, "messages": list(messages), **options}
    fault = ""
    for attempt in range(attempts):
        if limit:
            limit.wait()
        asked_wait: float | None = None
        try:
            status, head, reply = _asked("POST", address, headers, timeout_s, body)
            if status == 200:
                return without_key(parse_reply(reply), key)
            fault = f"HTTP {status}: {_shown(reply.decode(errors='replace'), key)}"
            if status not in RETRIED_STATUS:
                raise EqaError(f"{what}={public(address)} refused the request: {fault}; {_advice(status, what)}")
            asked_wait = retry_after(head.get("retry-after", ""))
        except httpx.TimeoutException:
            fault = f"no answer within {timeout_s:g} s"
        except httpx.TransportError as error:
            fault = f"{type(error).__name__}: {_shown(str(error), key)}"
        except ValueError as error:
            fault = f"a reply that is no chat completion ({_shown(str(error), key)})"
        if attempt + 1 < attempts:
            wait = asked_wait if asked_wait is not None else min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S)
            log.info("%s: %s; attempt %d of %d in %.1f s", public(address), fault, attempt + 2, attempts, wait)
            sleep(wait)
    raise EqaError(f"{what}={public(address)}: {fault}, {attempts} times; see that the server runs, then run again")


def _asked(
    method: str, address: str, headers: Mapping, timeout_s: float, body: object = None
) -> tuple[int, Mapping[str, str], bytes]:
    """(status, head, body) of one request.

    Raises:
        httpx.TimeoutException: not whole within `timeout_s`. httpx's own limit is for each piece, and a server that sends
            a byte now and then would hold its caller for ever; so an event loop counts the time of the whole.
        httpx.TransportError: no connection, or it broke.
        ValueError: more than LONGEST_REPLY bytes.
    """
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line with the address for each request otherwise

    async def ask() -> tuple[int, Mapping[str, str], bytes]:
        # a proxy from the environment must not see what is meant for this machine
        client = httpx.AsyncClient(timeout=timeout_s, trust_env=not is_local(address), follow_redirects=False)
        packed = {"Accept-Encoding": "identity"}  # unpacked, a small reply can be of any size
        async with client, client.stream(method, address, json=body, headers=packed | dict(headers)) as response:
            whole = bytearray()
            async for part in response.aiter_bytes():
                whole += part
                if len(whole) > LONGEST_REPLY:
                    raise ValueError(f"over {LONGEST_REPLY} bytes")
            return response.status_code, response.headers, bytes(whole)

    async def in_time() -> tuple[int, Mapping[str, str], bytes]:
        async with asyncio.timeout(timeout_s):
            return await ask()

    try:
        return asyncio.run(in_time())
    except TimeoutError:
        raise httpx.ReadTimeout("the reply is not whole") from None
    except httpx.ConnectError as error:
        raise httpx.ConnectError(_why(error)) from None


def _why(error: BaseException) -> str:
    """What the system said, which asynchronous connections wrap several times."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        if isinstance(inner, OSError) and inner.errno is not None:
            # a name that is not found has a number of its own below zero, and its own words
            return f"[Errno {inner.errno}] {os.strerror(inner.errno)}" if inner.errno > 0 else str(inner)
        inner = inner.__cause__ or inner.__context__
    return str(error)


def without_key(reply: Reply, key: str) -> Reply:
    """`reply` with the key masked wherever the server repeats it: texts and names of models go into artifacts."""
    if len(key) < LEAST_KEY:
        return reply
    texts = {name: value.replace(key, "***") for name, value in vars(reply).items() if isinstance(value, str)}
    return dataclasses.replace(reply, **texts)


def models(url: str, key: str = "", what: str = "server") -> list[str]:
    """Names of the models that a server offers (GET /models), sorted.

    Raises:
        EqaError: it cannot be reached or gives no such list.
    """
    import httpx

    address = endpoint(url, what).removesuffix("/chat/completions") + "/models"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        status, _, reply = _asked("GET", address, headers, FIRST_TIMEOUT_S)
        if status != 200:
            raise ValueError(f"HTTP {status}")
        return sorted(str(row["id"]) for row in json.loads(reply)["data"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError) as error:
        fault = _shown(str(error) or type(error).__name__, key)
        raise EqaError(f"{what}={public(address)} lists no models: {fault}; see that the server runs") from None


def endpoint(url: str, what: str = "url") -> str:
    """The address of chat completions under a base address.

    Raises:
        EqaError: see `addresses.check_address`.
    """
    check_address(url, what)
    base = url.rstrip("/")
    return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


def parse_reply(body: bytes) -> Reply:
    """The first choice of a chat completion.

    Raises:
        ValueError: not JSON, not that shape, or an answer that the server gave up.
    """
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        text = choice["message"]["content"]
    except (UnicodeDecodeError, RecursionError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if choice.get("finish_reason") in GIVEN_UP:
        raise ValueError(f"the server gave the answer up midway: {choice['finish_reason']}")
    if text is None:
        text = ""  # a refusal or an empty answer
    if not isinstance(text, str):
        raise ValueError(f"content is {type(text).__name__}")
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}

    def count(name: str) -> int:
        return usage[name] if isinstance(usage.get(name), int) else 0

    return Reply(
        text,
        str(data.get("model") or ""),
        str(data.get("system_fingerprint") or ""),
        str(choice.get("finish_reason") or ""),
        count("prompt_tokens"),
        count("completion_tokens"),
    )


def retry_after(header: str, now: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, at most LONGEST_WAIT_S; None without a readable one."""
    header = header.strip()
    if not header:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(header).timestamp() - (time.time() if now is None else now)
        except (ValueError, TypeError, OverflowError):  # also a year or an hour of a hundred digits
            return None
    return min(max(wait, 0.0), LONGEST_WAIT_S) if wait == wait else None


def _shown(text: str, key: str) -> str:
    return hidden(text, key)[:SHOWN_BODY]


def _advice(status: int, what: str) -> str:
    if status in (401, 403):
        return "its key is wrong or missing"
    if status == 404:
        return f"correct {what} (it ends in /v1 as a rule) or the model's name"
    return "mend what it names, then run again"
