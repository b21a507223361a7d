"""A local HTTP server as hubs and file hosts are: ranges, ETags, redirects, and connections that break."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Behaviour:
    """What the server does; tests change it between requests."""

    files: dict[str, bytes] = field(default_factory=dict)  # by path, such as "/a/b.bin"
    drops: int = 0  # so many answers still break
    drop_after: int = 1000  # bytes of the answer before it breaks
    ranges: bool = True
    etags: bool = True
    status: dict[str, int] = field(default_factory=dict)  # path: error to answer
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # path with query, headers
    url: str = ""

    def sent_ranges(self) -> list[str]:
        return [headers["range"] for _, headers in self.requests if "range" in headers]

    def add_hub(
        self, name: str, commit: str, files: dict[str, bytes], lfs: tuple[str, ...] = (".safetensors",)
    ) -> None:
        """Serve a repository the way the Hugging Face hub does: its listing and its files by commit."""
        siblings = []
        for file, data in sorted(files.items()):
            row = {"rfilename": file, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if file.endswith(lfs):
                row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(row)
            self.files[f"/{name}/resolve/{commit}/{file}"] = data
        info = {"_id": "0" * 24, "id": name, "modelId": name, "sha": commit, "private": False, "gated": False}
        info |= {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
        for revision in ("main", commit):
            self.files[f"/api/models/{name}/revision/{revision}"] = json.dumps(info).encode()

    def add_modelscope(self, name: str, revision: str, files: dict[str, bytes]) -> None:
        """Serve a repository the way ModelScope does."""
        rows = [
            {"Path": file, "Name": file, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "Type": "blob"}
            for file, data in sorted(files.items())
        ]
        base = f"/api/v1/models/{name}/repo"
        self.files[f"{base}/files?Recursive=True&Revision={revision}"] = json.dumps(
            {"Code": 200, "Data": {"Files": rows}}
        ).encode()
        for file, data in files.items():
            self.files[f"{base}?FilePath={file}&Revision={revision}"] = data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        behaviour: Behaviour = self.server.behaviour
        behaviour.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        query = "&".join(f"{k}={v[0]}" for k, v in sorted(parse_qs(parts.query).items()))
        full = f"{path}?{query}" if query and f"{path}?{query}" in behaviour.files else path
        if path in behaviour.redirects:
            self._send(302, b"", {"Location": behaviour.redirects[path]})
        elif path in behaviour.status:
            self._send(behaviour.status[path], b"no", {})
        elif full not in behaviour.files:
            self._send(404, b"not found", {"X-Error-Code": self._why(behaviour, path)})
        else:
            self._file(behaviour, behaviour.files[full], body)

    def _why(self, behaviour: Behaviour, path: str) -> str:
        if not path.startswith("/api/models/"):
            return "EntryNotFound"
        repository = path.partition("/revision/")[0]
        return "RevisionNotFound" if any(p.startswith(repository) for p in behaviour.files) else "RepoNotFound"

    def _file(self, behaviour: Behaviour, data: bytes, body: bool) -> None:
        headers = {"Accept-Ranges": "bytes", "X-Repo-Commit": "c" * 40}
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        if behaviour.etags:
            headers["ETag"] = etag
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", etag) == etag
        if asked and behaviour.ranges and same:
            start = int(asked.group(1))
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(
            206 if start or (asked and behaviour.ranges and same) else 200, data[start:], headers, body, behaviour
        )

    def _send(
        self, code: int, data: bytes, headers: dict, body: bool = True, behaviour: Behaviour | None = None
    ) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        if behaviour is not None and behaviour.drops > 0 and len(data) > behaviour.drop_after:
            behaviour.drops -= 1
            self.wfile.write(data[: behaviour.drop_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(data)


@contextlib.contextmanager
def local_server() -> Iterator[Behaviour]:
    """A server on a free loopback port for as long as the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.behaviour = Behaviour(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
