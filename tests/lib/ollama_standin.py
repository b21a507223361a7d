"""A stand-in for an Ollama server. It is NOT Ollama: no model runs in it; it keeps Ollama's manners on the wire.

Each shape is that of ollama v0.33.0-rc2 (fb30760996871fa9460115c753afd2c60d4ab0f7):
* GET /api/version, HEAD and POST /api/blobs/:digest ("digest mismatch", 400; 201 for new bytes), DELETE
  /api/delete (404 "model '...' not found"), POST /api/copy: server/routes.go.
* POST /api/create: server/create.go CreateHandler; status lines "converting model", "creating new layer ...",
  "writing manifest", "success"; an error before the first line is an HTTP status, later a line {"error": ...}
  (server/routes.go streamResponse). The uploaded folder is read as its converter reads it (scripts.lib.ollama_folder).
* POST /api/chat, GET /api/tags, POST /api/show: docs/api.md.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scripts.lib.errors import EqaError
from scripts.lib.ollama_folder import ollama_view


@dataclass
class StandIn:
    """State and switches; tests set the switches."""

    version: str = "0.33.0"
    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict] = field(default_factory=dict)  # name with tag -> the create request
    requests: list[tuple[str, str, dict]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)  # digests whose bytes were sent
    fail_create_after: str = ""  # status line after which an error line comes
    break_create_after: str = ""  # status line after which the connection ends
    pause_create_after: str = ""  # status line after which it works on for `pause_s`, whether or not the client waits
    pause_s: float = 0.0
    paused: threading.Event = field(default_factory=threading.Event)  # set where that pause begins
    fail_create_http: int = 0  # status of an error before the first line
    refuse_safetensors: bool = False
    fail_chat: str = ""  # error in the middle of an answer
    answer: str = "the sofa is red"

    def digest(self, name: str) -> str:
        text = json.dumps({k: v for k, v in self.models[name].items() if k != "model"}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[StandIn]:
    """Listen on a free port of 127.0.0.1."""
    state = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _full(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _handler(state: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _json(self, status: int, value: object) -> None:
            data = json.dumps(value).encode() if value is not None else b""
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _start_stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def _line(self, value: dict) -> None:
            data = json.dumps(value).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _end_stream(self) -> None:
            self.wfile.write(b"0\r\n\r\n")

        def do_HEAD(self) -> None:
            digest = self.path.removeprefix("/api/blobs/")
            self._json(200, None) if digest in state.blobs else self._json(404, {"error": f'blob "{digest}" not found'})

        def do_GET(self) -> None:
            state.requests.append(("GET", self.path, {}))
            if self.path == "/api/version":
                return self._json(200, {"version": state.version})
            if self.path == "/api/tags":
                rows = [
                    {
                        "name": name,
                        "model": name,
                        "size": 1,
                        "digest": state.digest(name),
                        "details": {"format": "gguf"},
                    }
                    for name in state.models
                ]
                return self._json(200, {"models": rows})
            return self._json(404, {"error": "not found"})

        def do_DELETE(self) -> None:
            body = json.loads(self._body())
            state.requests.append(("DELETE", self.path, body))
            if state.models.pop(_full(body["model"]), None) is None:
                return self._json(404, {"error": f"model '{body['model']}' not found"})
            return self._json(200, None)

        def do_POST(self) -> None:
            data = self._body()
            if self.path.startswith("/api/blobs/"):
                return self._blob(self.path.removeprefix("/api/blobs/"), data)
            body = json.loads(data)
            state.requests.append(("POST", self.path, body))
            if self.path == "/api/create":
                return self._create(body)
            if self.path == "/api/chat":
                return self._chat(body)
            if self.path == "/api/copy":
                if _full(body["source"]) not in state.models:
                    return self._json(404, {"error": f'model "{body["source"]}" not found'})
                state.models[_full(body["destination"])] = state.models[_full(body["source"])]
                return self._json(200, None)
            if self.path == "/api/show":
                parameters = state.models[_full(body["model"])].get("parameters", {})
                return self._json(200, {"parameters": "\n".join(f"{k:<30} {v}" for k, v in parameters.items())})
            return self._json(404, {"error": "not found"})

        def _blob(self, digest: str, data: bytes) -> None:
            state.uploads.append(digest)
            found = f"sha256:{hashlib.sha256(data).hexdigest()}"
            if found != digest:
                return self._json(400, {"error": f'digest mismatch, expected "{digest}", got "{found}"'})
            state.blobs[digest] = data
            return self._json(201, None)

        def _create(self, body: dict) -> None:
            if state.fail_create_http:
                return self._json(state.fail_create_http, {"error": "no files provided to convert"})
            missing = sorted(d for d in body.get("files", {}).values() if d not in state.blobs)
            if missing:
                return self._json(500, {"error": f"open {missing[0]}: no such file or directory"})
            self._start_stream()
            safetensors = any(name.endswith(".safetensors") for name in body["files"])
            lines = ["converting model"] if safetensors else ["parsing GGUF"]
            if body.get("quantize"):
                lines.append(f"quantizing F16 model to {body['quantize'].upper()}")
            lines += ["creating new layer sha256:00", "writing manifest"]
            for line in lines:
                self._line({"status": line})
                if line == state.fail_create_after:
                    self._line({"error": "write: no space left on device"})
                    return self._end_stream()
                if line == state.break_create_after:
                    self.close_connection = True
                    return None
                if line == state.pause_create_after:
                    state.paused.set()
                    time.sleep(state.pause_s)
                if line == "converting model" and (error := self._convert(body["files"])):
                    self._line({"error": error})
                    return self._end_stream()
            state.models[_full(body["model"])] = body
            self._line({"status": "success"})
            return self._end_stream()

        def _convert(self, files: dict[str, str]) -> str:
            if state.refuse_safetensors:
                return "unsupported architecture"
            with tempfile.TemporaryDirectory() as folder:
                for name, digest in files.items():
                    (Path(folder) / name).write_bytes(state.blobs[digest])
                try:
                    ollama_view(Path(folder))
                except EqaError as error:
                    return str(error)
            return ""

        def _chat(self, body: dict) -> None:
            if _full(body["model"]) not in state.models:
                return self._json(404, {"error": f"model '{body['model']}' not found"})
            for message in body["messages"]:
                for image in message.get("images", []):
                    base64.b64decode(image, validate=True)
            self._start_stream()
            words = state.answer.split(" ")
            for number, word in enumerate(words):
                text = word if number == 0 else f" {word}"
                self._line({"model": body["model"], "message": {"role": "assistant", "content": text}, "done": False})
                if state.fail_chat and number == 0:
                    self._line({"error": state.fail_chat})
                    return self._end_stream()
            done = {
                "message": {"role": "assistant", "content": ""},
                "done_reason": "stop",
                "done": True,
                "prompt_eval_count": 257,
                "eval_count": 4,
            }
            self._line({"model": body["model"], **done})
            return self._end_stream()

    return Handler
