"""A proxy that keeps what a client sends to a chat server, and passes request and answer on as they are."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


@dataclass
class Recording:
    """Address of the proxy, and (path, parsed body) of each POST, in order."""

    url: str = ""
    posts: list[tuple[str, dict]] = field(default_factory=list)

    def chats(self) -> list[dict]:
        """Bodies of the questions, Ollama's or OpenAI's."""
        return [body for path, body in self.posts if path in ("/api/chat", "/v1/chat/completions")]


@contextlib.contextmanager
def record(target: str) -> Iterator[Recording]:
    """Listen on a free port of 127.0.0.1 in front of `target`."""
    recording = Recording()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.command == "POST":
                recording.posts.append((self.path, json.loads(body)))
            headers = {k: v for k, v in self.headers.items() if k.lower() in ("content-type", "authorization")}
            with httpx.stream(
                self.command, target + self.path, content=body, headers=headers, timeout=120, trust_env=False
            ) as reply:
                self.send_response(reply.status_code)
                self.send_header("Content-Type", reply.headers.get("content-type", ""))
                self.end_headers()  # HTTP/1.0: the answer ends with the connection
                for chunk in reply.iter_bytes():
                    self.wfile.write(chunk)
                    self.wfile.flush()

        do_GET = do_POST = _pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    recording.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield recording
    finally:
        server.shutdown()
        server.server_close()
