"""One question with pictures to whatever serves the model: Ollama, LMDeploy or llama.cpp.

LMDeploy and llama.cpp speak OpenAI's `POST /v1/chat/completions`; Ollama its own `POST /api/chat`, whose options carry
the context length. Both stream.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.addresses import check_port_number, hidden, public, read_key
from scripts.lib.errors import EqaError
from scripts.lib.openai_client import GIVEN_UP

if TYPE_CHECKING:
    import httpx

SERVERS = ("ollama", "lmdeploy", "llamacpp")
IMAGE_MARK = "<image>"
KEY_VARIABLE = "EQA_SERVE_API_KEY"  # api key of `make serve`; never an argument, so never in a process list
OLLAMA_PORT = 11434
CONNECT_S = 10.0  # a server that is there takes a connection at once, however long it then thinks
SHOWN_MESSAGE = 300  # characters of a server's message that an error repeats
LONGEST_REPLY = 2**24  # bytes; an answer in pieces has some 100 kB, Ollama's list of tensors a little more
_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp", b"BM": "image/bmp"}


@dataclass(frozen=True)
class Decoding:
    """How the answer is chosen; temperature 0 is greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 7


@dataclass
class Message:
    """One turn; `images` are whole files (PNG, JPEG, WebP or BMP)."""

    role: str
    text: str
    images: list[bytes] = field(default_factory=list)


def split_prompt(content: str) -> tuple[int, str]:
    """Number of leading `<image>` marks of a sharegpt message, and the text after them."""
    count = 0
    while content.startswith(IMAGE_MARK):
        content = content[len(IMAGE_MARK) :]
        count += 1
    return count, content


def sample_message(sample: dict, frames: Path) -> Message:
    """The user turn of one line of results/sft/test.json, its pictures read.

    Raises:
        EqaError: a picture is missing, or their number differs from the `<image>` marks.
    """
    from scripts.lib.files import safe_join

    count, text = split_prompt(sample["messages"][0]["content"])
    if count != len(sample["images"]):
        raise EqaError(
            f"question {sample.get('question_id')}: {count} <image> marks for {len(sample['images'])} "
            "pictures; run build_sft again"
        )
    return Message("user", text, [read_image(safe_join(frames, name)) for name in sample["images"]])


def read_image(path: Path) -> bytes:
    """The bytes of a picture file.

    Raises:
        EqaError: missing, or no PNG, JPEG, WebP or BMP.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise EqaError(f"{path}: this picture does not exist") from None
    except IsADirectoryError:
        raise EqaError(f"{path}: a folder, no picture; name its files") from None
    except OSError as error:  # a folder that is a file, a name too long, no permission
        raise EqaError(f"{path}: {error.strerror}; name a picture that can be read") from None
    media_type(data, str(path))
    return data


def media_type(data: bytes, name: str) -> str:
    """MIME type by the first bytes; names say nothing.

    Raises:
        EqaError: no picture that all three servers read.
    """
    for magic, kind in _MAGIC.items():
        if data.startswith(magic) and len(data) > 32:
            return kind
    raise EqaError(f"{name}: no picture (PNG, JPEG, WebP or BMP is wanted); convert it first")


def ollama_url(host: str | None = None) -> str:
    """Base address of the Ollama server: `host`, else OLLAMA_HOST, else 127.0.0.1:11434.

    A server's own OLLAMA_HOST may be the wildcard 0.0.0.0; a client then means this machine.
    """
    text = (host or os.environ.get("OLLAMA_HOST") or "127.0.0.1").strip()
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    place, slash, path = rest.partition("/")
    name, colon, port = place.rpartition(":")
    if not colon or "]" in port or _is_ipv6(place):
        standard = {"http": 80, "https": 443}.get(scheme, 80) if found else OLLAMA_PORT
        name, port = place, str(standard)
    if not name.strip("[]") or _is_ipv6(name.strip("[]")) or name == "0.0.0.0":
        name = url_host(name)
    return f"{scheme}://{name}:{port}{slash}{path}".rstrip("/")


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def url_host(host: str) -> str:
    """A server's host as it stands in an address for clients.

    A wildcard, which means every interface to a server, becomes this machine; IPv6 goes into brackets.
    """
    bare = host.removeprefix("[").removesuffix("]")
    bare = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bare, bare)
    return f"[{bare}]" if ":" in bare else bare


def default_url(server: str, host: str, port: int) -> str:
    """Where `make serve` (config serve.host, serve.port) or Ollama listens.

    Raises:
        EqaError: no such port.
    """
    if server == "ollama":
        return ollama_url()
    check_port_number(port, "serve.port")
    return f"http://{url_host(host)}:{port}"


def checked_url(url: str) -> str:
    """`url` without /v1 and slashes at its end.

    Raises:
        EqaError: no http address, or no such port.
    """
    import httpx

    base = url.removesuffix("/").removesuffix("/v1").rstrip("/")
    # without a scheme a user name looks like one, and the password like the host
    shown = "..." if "@" in url and "://" not in url else public(url)
    try:
        parts = httpx.URL(base)
    except (httpx.InvalidURL, ValueError):  # their words may hold a part of a password
        raise EqaError(f"{shown}: no address; one such as http://127.0.0.1:23333 is wanted") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise EqaError(f"{shown}: no http address; one such as http://127.0.0.1:23333 is wanted")
    if parts.port is not None:
        check_port_number(parts.port, shown)
    return base


class ChatClient:
    """Talks to one server. Raises EqaError, one line, for whatever goes wrong on the way."""

    def __init__(self, server: str, url: str, model: str, timeout_s: float = 600.0, num_ctx: int | None = None) -> None:
        import httpx

        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request otherwise
        self.server, self.url, self.model, self.num_ctx = server, checked_url(url), model, num_ctx
        self.shown = public(self.url)  # OLLAMA_HOST may hold a password
        # of the last whole answer, where the server counts them
        self.prompt_tokens: int | None = None
        self.answer_tokens: int | None = None
        self.digest: str | None = None  # of the model, after `check`, where the server tells it (Ollama)
        self._key = key = read_key(KEY_VARIABLE) if server != "ollama" else ""
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S),
            # packed, a small reply could unpack to any size
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})},
            trust_env=False,
        )

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def check(self) -> list[str]:
        """Names of the models that the server has, ours among them.

        Raises:
            EqaError: server down, key refused, or the model is not there.
        """
        path, outer, inner = (
            ("/api/tags", "models", "name") if self.server == "ollama" else ("/v1/models", "data", "id")
        )
        reply = self._call("GET", path)
        try:
            rows = json.loads(reply)[outer]
            names = [str(row[inner]) for row in rows]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EqaError(
                f"{self.shown}{path}: the answer is not {self.server}'s; is another program on that port?"
            ) from None
        if self.server == "ollama":
            if self.model not in names and f"{self.model}:latest" not in names:
                raise EqaError(
                    f"{self.shown}: Ollama has no model {self.model}; import it: set deliver.ollama=true, then "
                    "`snakemake --force results/ollama/import.json`"
                )
            row = rows[names.index(self.model if self.model in names else f"{self.model}:latest")]
            self.digest = str(row.get("digest") or "") or None
        elif self.model not in names:
            there = [hidden(name, self._key)[:SHOWN_MESSAGE] for name in names[:5]]
            raise EqaError(
                f"{self.shown}: serves {', '.join(there) or 'nothing'}, not {self.model}; say --model "
                f"{there[0] if there else 'NAME'}"
            )
        return names

    def context_length(self) -> int | None:
        """Tokens that the server holds for one conversation; None where it does not say (LMDeploy, old versions)."""
        if self.server == "llamacpp":
            try:
                found = self._parse(self._call("GET", "/v1/models"))["data"][0]["meta"]["n_ctx"]
            except (KeyError, IndexError, TypeError):  # older servers have no "meta"
                return None
            return found if isinstance(found, int) else None
        if self.server == "ollama":
            if self.num_ctx:
                return self.num_ctx
            shown = self._parse(self._call("POST", "/api/show", {"model": self.model}))
            match = re.search(r"^num_ctx\s+([0-9]{1,9})", str(shown.get("parameters", "")), re.MULTILINE)
            return int(match[1]) if match else None
        return None

    def version(self) -> str:
        """What an Ollama server says it is, such as "0.34.2"."""
        return str(self._parse(self._call("GET", "/api/version")).get("version", ""))

    def ask(self, messages: Sequence[Message], decoding: Decoding) -> str:
        """The whole answer."""
        return "".join(self.stream(messages, decoding))

    def stream(self, messages: Sequence[Message], decoding: Decoding) -> Iterator[str]:
        """The answer in pieces as they come.

        Raises:
            EqaError: server down, refused request (such as pictures over its context), broken answer.
        """
        path = "/api/chat" if self.server == "ollama" else "/v1/chat/completions"
        body = (
            self._ollama_body(messages, decoding) if self.server == "ollama" else self._openai_body(messages, decoding)
        )
        pieces = self._ollama_pieces if self.server == "ollama" else self._openai_pieces
        self._count(None, None)
        import httpx

        try:
            with self._http.stream("POST", self.url + path, json=body) as reply:
                if reply.status_code != 200:
                    said = b"".join(self._bounded(reply))
                    raise EqaError(self._refusal(path, reply.status_code, said, messages))
                yield from pieces(self._lines(self._bounded(reply)))
        except httpx.HTTPError as error:
            raise EqaError(self._down(error)) from None

    def _bounded(self, reply: httpx.Response) -> Iterator[bytes]:
        """The body in pieces as they come.

        Raises:
            EqaError: over LONGEST_REPLY bytes.
        """
        size = 0
        for chunk in reply.iter_bytes():
            size += len(chunk)
            if size > LONGEST_REPLY:
                raise EqaError(
                    f"{self.shown}: sends more than {LONGEST_REPLY} bytes for one request; is another program on that port?"
                )
            yield chunk

    def _lines(self, chunks: Iterator[bytes]) -> Iterator[str]:
        """The lines of a streamed body.

        Only a line feed ends one. httpx's own `iter_lines` also splits at U+2028, U+0085 and the like, which are
        ordinary characters inside a JSON text.
        """
        rest: list[bytes] = []
        for chunk in chunks:
            *whole, last = chunk.split(b"\n")
            for line in whole:
                yield self._text(b"".join([*rest, line]))
                rest.clear()
            rest.append(last)
        if any(rest):
            yield self._text(b"".join(rest))

    def _text(self, line: bytes) -> str:
        try:
            return line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError:
            raise EqaError(
                f"{self.shown}: the answer is not {self.server}'s ({hidden(line.decode(errors='replace'), self._key)[:60]!r}); is another program on that port?"
            ) from None

    def _openai_body(self, messages: Sequence[Message], decoding: Decoding) -> dict:
        return {
            "model": self.model,
            "messages": [{"role": m.role, "content": openai_content(m)} for m in messages],
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "seed": decoding.seed,
            # LMDeploy: top_k 1 is greedy whatever it makes of temperature 0; llama.cpp reads it as well
            **({"top_k": 1} if decoding.temperature == 0 else {}),
            "stream": True,
            "stream_options": {"include_usage": True},  # a last part with the counts
        }

    def _ollama_body(self, messages: Sequence[Message], decoding: Decoding) -> dict:
        options = {"temperature": decoding.temperature, "seed": decoding.seed, "num_predict": decoding.max_new_tokens}
        if self.num_ctx:
            options["num_ctx"] = self.num_ctx
        turns = [
            {"role": m.role, "content": m.text, "images": [base64.b64encode(i).decode() for i in m.images]}
            for m in messages
        ]
        # Ollama would drop the oldest turns, the pictures with them, to make an overlong conversation fit (truncate: since
        # 0.12.6, api/types.go)
        return {"model": self.model, "messages": turns, "options": options, "stream": True, "truncate": False}

    def _openai_pieces(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            part = self._parse(data)
            if part.get("error"):
                raise EqaError(f"{self.shown}: {self._said(part)}")
            if isinstance(usage := part.get("usage"), dict):
                self._count(usage.get("prompt_tokens"), usage.get("completion_tokens"))
            choices = part.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                if text := _content(choice, "delta"):
                    yield text
                # LMDeploy ends a request that it gave up with an ordinary last part
                if isinstance(choice, dict) and choice.get("finish_reason") in GIVEN_UP:
                    raise EqaError(
                        f"{self.shown}: {self.server} gave the answer up midway ({choice['finish_reason']}); look into its log"
                    )
        raise EqaError(f"{self.shown}: the answer broke off; look into the server's log")

    def _ollama_pieces(self, lines: Iterator[str]) -> Iterator[str]:
        for line in filter(str.strip, lines):
            part = self._parse(line)
            if part.get("error"):
                raise EqaError(f"{self.shown}: {self._said(part)}")
            if text := _content(part, "message"):
                yield text
            if part.get("done"):
                self._count(part.get("prompt_eval_count"), part.get("eval_count"))
                return
        raise EqaError(f"{self.shown}: the answer broke off; look into Ollama's log")

    def _count(self, prompt: object, answer: object) -> None:
        self.prompt_tokens = prompt if isinstance(prompt, int) else None
        self.answer_tokens = answer if isinstance(answer, int) else None

    def _parse(self, text: str) -> dict:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise EqaError(
                f"{self.shown}: the answer is not {self.server}'s ({hidden(text, self._key)[:60]!r}); is another program on that port?"
            )
        return value

    def _call(self, method: str, path: str, body: dict | None = None) -> str:
        """The body of a reply that is HTTP 200."""
        import httpx

        try:
            with self._http.stream(method, self.url + path, json=body) as reply:
                said = b"".join(self._bounded(reply))
        except httpx.HTTPError as error:
            raise EqaError(self._down(error)) from None
        if reply.status_code != 200:
            raise EqaError(self._refusal(path, reply.status_code, said, ()))
        return said.decode("utf-8", errors="replace")

    def _down(self, error: Exception) -> str:
        start = (
            "start it: `ollama serve`" if self.server == "ollama" else f"start it: `make serve SERVER={self.server}`"
        )
        return f"{self.shown}: no answer from {self.server} ({type(error).__name__}); {start}"

    def _said(self, value: object) -> str:
        """What a server said, on one line, without the key that it may repeat."""
        return hidden(_message_of(value), self._key)[:SHOWN_MESSAGE]

    def _refusal(self, path: str, status: int, body: bytes, messages: Sequence[Message]) -> str:
        if status in (401, 403):
            if self.server == "ollama":
                way_out = "give user and password in OLLAMA_HOST (http://USER:PASSWORD@HOST:PORT)"
                return f"{self.shown}: who answers for Ollama wants to know who asks (HTTP {status}); {way_out}"
            return f"{self.shown}: {self.server} refuses the key (HTTP {status}); export {KEY_VARIABLE}"
        text = body.decode("utf-8", errors="replace")
        try:
            said = self._said(json.loads(text))
        except (ValueError, RecursionError):
            said = self._said(text)
        pictures = sum(len(m.images) for m in messages)
        hint = ""
        if pictures and any(word in said.lower() for word in ("context", "session_len", "exceed", "too long")):
            hint = (
                f"; {pictures} pictures do not fit its context: send fewer or smaller ones, or serve a longer context"
            )
        return f"{self.shown}{path}: HTTP {status} from {self.server}: {said}{hint}"


def openai_content(message: Message) -> list[dict] | str:
    """OpenAI's content of a turn: pictures as data URLs, then the text; only the text where there is no picture."""
    if not message.images:
        return message.text
    parts: list[dict] = []
    for number, data in enumerate(message.images, 1):
        url = f"data:{media_type(data, f'picture {number}')};base64,{base64.b64encode(data).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return [*parts, {"type": "text", "text": message.text}]


def _content(holder: object, key: str) -> str:
    """The text of holder[key]["content"]; "" where a server sends none, or something else than text."""
    inner = holder.get(key) if isinstance(holder, dict) else None
    text = inner.get("content") if isinstance(inner, dict) else None
    return text if isinstance(text, str) else ""


def _message_of(value: object) -> str:
    if isinstance(value, dict):
        error = value.get("error", value.get("message", value.get("detail", value)))
        return _message_of(error) if isinstance(error, dict) and error is not value else str(error)
    return str(value)
