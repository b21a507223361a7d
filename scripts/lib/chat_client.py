"""One question with pictures to whatever serves the model: Ollama, LMDeploy or llama.cpp.

LMDeploy and llama.cpp speak OpenAI's `POST /v1/chat/completions`; Ollama its own `POST /api/chat`, whose options carry
the context length. Both stream.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.errors import EqaError

if TYPE_CHECKING:
    import httpx

SERVERS = ("ollama", "lmdeploy", "llamacpp")
IMAGE_MARK = "<image>"
KEY_VARIABLE = "EQA_SERVE_API_KEY"  # api key of `make serve`; never an argument, so never in a process list
OLLAMA_PORT = 11434
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
    if not colon or "]" in port:
        name, port = (
            place,
            str(
                {"http": OLLAMA_PORT, "https": 443}.get(scheme, OLLAMA_PORT)
                if not found
                else {"https": 443}.get(scheme, 80)
            ),
        )
    name = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(name, name)
    return f"{scheme}://{name}:{port}{slash}{path}".rstrip("/")


def default_url(server: str, host: str, port: int) -> str:
    """Where `make serve` (config serve.host, serve.port) or Ollama listens."""
    if server == "ollama":
        return ollama_url()
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


class ChatClient:
    """Talks to one server. Raises EqaError, one line, for whatever goes wrong on the way."""

    def __init__(self, server: str, url: str, model: str, timeout_s: float = 600.0, num_ctx: int | None = None) -> None:
        import httpx

        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request otherwise
        self.server, self.url, self.model, self.num_ctx = server, url.removesuffix("/v1").rstrip("/"), model, num_ctx
        self.prompt_tokens: int | None = None  # of the last whole answer, where the server says it (Ollama)
        key = os.environ.get(KEY_VARIABLE) if server != "ollama" else None
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise EqaError(f"{url}: no address ({error}); one such as http://127.0.0.1:23333 is wanted") from None
        self._http = httpx.Client(
            timeout=timeout_s, headers={"Authorization": f"Bearer {key}"} if key else {}, trust_env=False
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
            names = [str(entry[inner]) for entry in reply.json()[outer]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EqaError(
                f"{self.url}{path}: the answer is not {self.server}'s; is another program on that port?"
            ) from None
        if self.server == "ollama":
            if self.model not in names and f"{self.model}:latest" not in names:
                raise EqaError(
                    f"{self.url}: Ollama has no model {self.model}; import it: set deliver.ollama=true and "
                    "run snakemake"
                )
        elif self.model not in names:
            raise EqaError(
                f"{self.url}: serves {', '.join(names) or 'nothing'}, not {self.model}; say --model "
                f"{names[0] if names else 'NAME'}"
            )
        return names

    def context_length(self) -> int | None:
        """Tokens that the server holds for one conversation; None where it does not say (LMDeploy, old versions)."""
        if self.server == "llamacpp":
            try:
                found = self._parse(self._call("GET", "/v1/models").text)["data"][0]["meta"]["n_ctx"]
            except (KeyError, IndexError, TypeError):  # older servers have no "meta"
                return None
            return found if isinstance(found, int) else None
        if self.server == "ollama":
            if self.num_ctx:
                return self.num_ctx
            shown = self._parse(self._call("POST", "/api/show", {"model": self.model}).text)
            match = re.search(r"^num_ctx\s+([0-9]{1,9})", str(shown.get("parameters", "")), re.MULTILINE)
            return int(match[1]) if match else None
        return None

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
        import httpx

        try:
            with self._http.stream("POST", self.url + path, json=body) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise EqaError(self._refusal(path, reply, messages))
                yield from pieces(reply.iter_lines())
        except httpx.HTTPError as error:
            raise EqaError(self._down(error)) from None

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
        }

    def _ollama_body(self, messages: Sequence[Message], decoding: Decoding) -> dict:
        options = {"temperature": decoding.temperature, "seed": decoding.seed, "num_predict": decoding.max_new_tokens}
        if self.num_ctx:
            options["num_ctx"] = self.num_ctx
        turns = [
            {"role": m.role, "content": m.text, "images": [base64.b64encode(i).decode() for i in m.images]}
            for m in messages
        ]
        return {"model": self.model, "messages": turns, "options": options, "stream": True}

    def _openai_pieces(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            part = self._parse(data)
            if part.get("error"):
                raise EqaError(f"{self.url}: {_message_of(part)}")
            choices = part.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                if text := _content(choice, "delta"):
                    yield text
        raise EqaError(f"{self.url}: the answer broke off; look into the server's log")

    def _ollama_pieces(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            part = self._parse(line)
            if part.get("error"):
                raise EqaError(f"{self.url}: {_message_of(part)}")
            if text := _content(part, "message"):
                yield text
            if part.get("done"):
                count = part.get("prompt_eval_count")
                self.prompt_tokens = count if isinstance(count, int) else None
                return
        raise EqaError(f"{self.url}: the answer broke off; look into Ollama's log")

    def _parse(self, text: str) -> dict:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise EqaError(
                f"{self.url}: the answer is not {self.server}'s ({text[:60]!r}); is another program on that port?"
            )
        return value

    def _call(self, method: str, path: str, body: dict | None = None) -> httpx.Response:
        import httpx

        try:
            reply = self._http.request(method, self.url + path, json=body)
        except httpx.HTTPError as error:
            raise EqaError(self._down(error)) from None
        if reply.status_code != 200:
            raise EqaError(self._refusal(path, reply, ()))
        return reply

    def _down(self, error: Exception) -> str:
        start = (
            "start it: `ollama serve`" if self.server == "ollama" else f"start it: `make serve SERVER={self.server}`"
        )
        return f"{self.url}: no answer from {self.server} ({type(error).__name__}); {start}"

    def _refusal(self, path: str, reply: httpx.Response, messages: Sequence[Message]) -> str:
        if reply.status_code in (401, 403):
            return f"{self.url}: {self.server} refuses the key (HTTP {reply.status_code}); export {KEY_VARIABLE}"
        try:
            said = _message_of(reply.json())
        except ValueError:
            said = reply.text[:200]
        pictures = sum(len(m.images) for m in messages)
        hint = ""
        if pictures and any(word in said.lower() for word in ("context", "session_len", "exceed", "too long")):
            hint = (
                f"; {pictures} pictures do not fit its context: send fewer or smaller ones, or serve a longer context"
            )
        return f"{self.url}{path}: HTTP {reply.status_code} from {self.server}: {said[:300]}{hint}"


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
