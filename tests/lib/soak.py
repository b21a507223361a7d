"""A llama.cpp server under mixed requests with pictures: good ones, malformed ones, and ones whose client goes away.

    python -m tests.lib.soak --folder . --requests 200       # in a project whose demo is finished

Starts `scripts.serve --server llamacpp` in that folder on a free port, asks each of a few test questions once, sends the
mixture from several clients at once, asks the same questions again and stops the server. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from scripts.lib.chat_client import Message, openai_content, sample_message
from scripts.lib.files import read_json
from tests.lib.project import call

QUESTIONS = 8
CLIENTS = 4
CONTEXT = 1024  # holds 8 or 9 of the demo's pictures with the question, and not 40 of them. Unit: tokens
TIMEOUT_S = 120.0
# kind of request: (weight, HTTP statuses that are right)
KINDS: dict[str, tuple[int, set[int]]] = {
    "eight pictures": (6, {200}),
    "one picture": (3, {200}),
    "text": (2, {200}),
    "nine pictures": (2, {200}),
    "forty pictures": (2, {400}),
    "bad JSON": (1, {400, 500}),
    "broken base64": (1, {400, 500}),
    "no picture": (2, {400, 500}),
    "truncated picture": (1, {200, 400, 500}),
    "no messages": (1, {400, 500}),
    "cancelled at once": (3, set()),
    "cancelled midway": (3, set()),
    "half a request": (2, set()),
}
GONE = {kind for kind, (_, statuses) in KINDS.items() if not statuses}


@dataclass
class Result:
    """What came of it; `wrong` has one line for each thing that should not have been."""

    sent: Counter = field(default_factory=Counter)
    statuses: dict[str, Counter] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: int, wrong: str = "") -> None:
        with self.lock:
            self.sent[kind] += 1
            self.statuses.setdefault(kind, Counter())[status] += 1
            if wrong:
                self.wrong.append(f"{kind}: {wrong}")


class Server:
    """The server under test: its address, the questions, and what it answered before the mixture."""

    def __init__(self, url: str, pid: int, samples: list[dict], frames: Path) -> None:
        self.url, self.pid = url, pid
        self.messages = [sample_message(sample, frames) for sample in samples]
        self.before = [self.answer(message) for message in self.messages]

    def body(self, message: Message, **more: object) -> dict:
        messages = [{"role": "user", "content": openai_content(message)}]
        return {"messages": messages, "max_tokens": 16, "temperature": 0, "top_k": 1, **more}

    def post(self, **words: object) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", timeout=TIMEOUT_S, trust_env=False, **words)

    def answer(self, message: Message) -> str:
        return self.post(json=self.body(message)).raise_for_status().json()["choices"][0]["message"]["content"]

    def usage(self) -> tuple[float, int]:
        """(resident memory in MB, open files) of the process that listens."""
        pid = listener(self.pid)
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        return resident / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def listener(leader: int) -> int:
    """Pid of the largest process of the group that `leader` leads: uv, which starts it, is small."""
    sizes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, StopIteration):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == leader:
                    sizes.append((int(fields[21]), int(entry.name)))
    return max(sizes)[1]


def spoilt(body: dict, data: bytes) -> dict:
    """The body with `data` in place of its first picture."""
    text = json.dumps(body)
    first = next(p for p in body["messages"][0]["content"] if p["type"] == "image_url")["image_url"]["url"]
    return json.loads(text.replace(first, f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", 1))


def send(server: Server, kind: str, number: int, result: Result) -> None:
    """One request of `kind` about question `number`; its outcome goes into `result`."""
    message = server.messages[number]
    body = server.body(message)
    if kind in GONE:
        _go_away(server, kind, {**body, "max_tokens": 200, "ignore_eos": True, "stream": True})
        return result.note(kind, 0)
    words: dict[str, object] = {"json": body}
    if kind == "one picture":
        words["json"] = server.body(Message("user", message.text, message.images[:1]))
    elif kind == "text":
        words["json"] = server.body(Message("user", message.text))
    elif kind in ("nine pictures", "forty pictures"):
        count = 9 if kind == "nine pictures" else 40
        words["json"] = server.body(Message("user", message.text, (message.images * 5)[:count]))
    elif kind == "bad JSON":
        words = {"content": json.dumps(body)[:-20], "headers": {"Content-Type": "application/json"}}
    elif kind == "broken base64":
        text = json.dumps(body).replace(";base64,", ";base64,@@@!", 1)
        words = {"content": text, "headers": {"Content-Type": "application/json"}}
    elif kind == "no picture":
        words["json"] = spoilt(body, b"this is no picture, whatever its name says " * 20)
    elif kind == "truncated picture":
        words["json"] = spoilt(body, message.images[0][: len(message.images[0]) // 3])
    elif kind == "no messages":
        words["json"] = {"model": "qwen3-vl-openeqa"}
    try:
        reply = server.post(**words)
    except httpx.HTTPError as error:
        return result.note(kind, 0, f"{type(error).__name__}: {error}")
    wrong = ""
    if reply.status_code not in KINDS[kind][1]:
        wrong = f"HTTP {reply.status_code}: {reply.text[:200]}"
    elif kind == "eight pictures":
        said = reply.json()["choices"][0]["message"]["content"]
        if said != server.before[number]:
            wrong = f"question {number}: {said!r}, before {server.before[number]!r}"
    elif reply.status_code != 200 and "error" not in reply.json():
        wrong = f"HTTP {reply.status_code} without an error: {reply.text[:200]}"
    return result.note(kind, reply.status_code, wrong)


def _go_away(server: Server, kind: str, body: dict) -> None:
    """Send the request, or half of it, and close the connection: at once, or after the first piece of the answer."""
    place = httpx.URL(server.url)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    request = f"{head}\r\n\r\n".encode() + data
    with socket.create_connection((place.host, place.port), timeout=TIMEOUT_S) as wire, contextlib.suppress(OSError):
        wire.sendall(request[: len(request) // 2] if kind == "half a request" else request)
        if kind == "cancelled midway":
            wire.recv(200)


def run(folder: Path, requests: int, seed: int = 7, clients: int = CLIENTS) -> dict:
    """Soak the server of a finished project.

    Args:
        folder: project with results/gguf, results/sft and results/frames.
        requests: of the mixture, at least 20.
        seed: of the mixture.
        clients: requests at the same time.
    Returns:
        {"requests", "statuses": {kind: {status: count}}, "wrong": [...], "rss_mb": [after warm-up, ..., end], "files",
        "same_answers": of the questions asked before and after, "questions"}.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "scripts.serve", "--server", "llamacpp"]
    done = call(folder, *command, "--background", "true", "--port", str(port), "--context", str(CONTEXT))
    facts = json.loads(done.stdout)
    try:
        samples = read_json(folder / "results/sft/test.json")[:QUESTIONS]
        server = Server(facts["url"], facts["pid"], samples, folder / "results/frames")
        result = Result()
        choice = random.Random(seed)
        kinds = choice.choices(list(KINDS), [weight for weight, _ in KINDS.values()], k=requests - len(KINDS))
        kinds += list(KINDS)  # each at least once
        choice.shuffle(kinds)
        parts = 4  # memory is read after each; the first is the warm-up
        for part in range(parts):
            with ThreadPoolExecutor(clients) as pool:
                some = kinds[part * len(kinds) // parts : (part + 1) * len(kinds) // parts]
                jobs = [pool.submit(send, server, k, choice.randrange(len(samples)), result) for k in some]
            for job in jobs:
                job.result()
            # waits behind whatever cancelled requests still run
            server.answer(server.messages[0])
            rss, files = server.usage()
            result.rss_mb.append(round(rss, 1))
            result.files.append(files)
        after = [server.answer(message) for message in server.messages]
    finally:
        stopped = call(folder, *command, "--stop", check=False)
    if stopped.returncode:
        result.wrong.append(f"the server was gone at the end: {stopped.stderr.strip()}")
    return {
        "requests": sum(result.sent.values()),
        "clients": clients,
        "statuses": {kind: dict(sorted(count.items())) for kind, count in sorted(result.statuses.items())},
        "wrong": result.wrong,
        "rss_mb": result.rss_mb,
        "files": result.files,
        "same_answers": sum(one == other for one, other in zip(server.before, after, strict=True)),
        "questions": len(after),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="soak", description="A llama.cpp server under mixed requests.")
    parser.add_argument("--folder", type=Path, default=Path(), help="project with a finished demo")
    parser.add_argument("--requests", type=int, default=200, help="of the mixture")
    parser.add_argument("--seed", type=int, default=7, help="of the mixture")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="requests at the same time")
    args = parser.parse_args(argv)
    facts = run(args.folder, args.requests, args.seed, args.clients)
    print(json.dumps(facts))
    return 1 if facts["wrong"] or facts["same_answers"] < facts["questions"] else 0


if __name__ == "__main__":
    sys.exit(main())
