"""Stands in for a Kubernetes cluster, at the HTTP boundary: nothing on Snakemake's side is replaced.

The API's part checks every body against Kubernetes' own JSON schema (package kubernetes-validate) and against rules of
the real API server that no schema holds. The node's part runs a job's command here, as a process in the working
directory that its specification names, with the image's variables (`image`) and those of the specification. The volume
is this machine's file system: a claim has to be mounted where it really lies.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

VERSION = "1.34"
OBJECT = re.compile(
    r"/(?P<group>api/v1|apis/batch/v1)/namespaces/(?P<namespace>[^/]+)/(?P<resource>[a-z]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<part>status|log))?)?$"
)
KINDS = {"secrets": ("v1", "Secret"), "jobs": ("batch/v1", "Job"), "pods": ("v1", "Pod")}
EVICTED = 137  # exit code of a process ended by SIGKILL


def faults(job: dict) -> list[str]:
    """What the real API server would refuse in a job, beside its schema (k8s.io/kubernetes/pkg/apis/core/validation)."""
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    volumes = [volume["name"] for volume in pod.get("volumes") or []]
    mounts = container.get("volumeMounts") or []
    places = [mount["mountPath"] for mount in mounts]
    found = [f"volumeMounts: {m['name']} not found" for m in mounts if m["name"] not in volumes]
    found += [f"mountPath {place} must be unique" for place in places if places.count(place) > 1]
    requests, limits = (container.get("resources", {}).get(part) or {} for part in ("requests", "limits"))
    for name in requests:
        if "/" in name and requests[name] != limits.get(name):
            found.append(f"{name}: limit must be set for non overcommitable resources")
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        found.append("restartPolicy: a job's pod takes Never or OnFailure")
    for name in (job["metadata"]["name"], *volumes):
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
            found.append(f"name {name!r} is no DNS label")
    return found


@dataclass
class Job:
    """One submitted job and its process."""

    body: dict
    log: Path
    process: subprocess.Popen | None = None
    evicted: bool = False

    @property
    def rules(self) -> list[str]:
        """Rules that the job may run, from its command."""
        command = self.body["spec"]["template"]["spec"]["containers"][0]["args"][-1]
        listed = re.search(r"--allowed-rules ((?:[a-z_]+ ?)+)", command)
        return listed.group(1).split() if listed else []

    @property
    def exit_code(self) -> int | None:
        code = self.process.poll() if self.process else None
        return None if code is None else EVICTED if code < 0 else code

    def kill(self) -> None:
        """End the whole process group at once, as a node does with a container over its memory."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Cluster:
    """A running stand-in.

    Attributes:
        folder: for logs and the kubeconfig.
        image: environment variables that the container image sets.
        evict: asked for each running job several times a second; True kills it.
        locked: refuses everything, as to a user without rights.
        jobs: by name, in order of submission.
        refused: messages of refused bodies.
        asked: (verb, resource) of every request, as roles name them.
    """

    folder: Path
    image: dict[str, str]
    evict: Callable[[Job], bool] = lambda job: False
    locked: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    secrets: dict[str, dict] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    asked: set[tuple[str, str]] = field(default_factory=set)

    def __enter__(self) -> Cluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        handler = type("Handler", (_Handler,), {"cluster": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.server.serve_forever), threading.Thread(target=self._watch)]
        for thread in self.threads:
            thread.start()
        self.kubeconfig = self.folder / "kubeconfig"
        cluster = {"server": f"http://127.0.0.1:{self.server.server_address[1]}"}
        context = {"cluster": "standin", "user": "standin"}
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "standin",
                    "clusters": [{"name": "standin", "cluster": cluster}],
                    "contexts": [{"name": "standin", "context": context}],
                    "users": [{"name": "standin", "user": {"token": "none"}}],
                }
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for job in self.jobs.values():
            job.kill()
        self.server.shutdown()
        self.server.server_close()
        for thread in self.threads:
            thread.join()

    def submitted(self, rule: str) -> list[Job]:
        """Jobs that ran a rule."""
        return [job for job in self.jobs.values() if rule in job.rules]

    def start(self, body: dict) -> Job:
        """The node's part."""
        container = body["spec"]["template"]["spec"]["containers"][0]
        variables = dict(self.image)
        for variable in container.get("env") or []:
            reference = variable["valueFrom"]["secretKeyRef"]
            value = self.secrets[reference["name"]]["data"][reference["key"]]
            variables[variable["name"]] = base64.b64decode(value).decode()
        job = Job(body, self.folder / f"{body['metadata']['name']}.log")
        with job.log.open("wb") as log:
            job.process = subprocess.Popen(
                [*container["command"], *container["args"]],
                cwd=container["workingDir"],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return job

    def _watch(self) -> None:
        while not self.stopping.wait(0.2):
            for job in list(self.jobs.values()):
                if job.exit_code is None and not job.evicted and self.evict(job):
                    job.evicted = True
                    job.kill()


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self, code: int, body: object) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _status(self, code: int, message: str) -> None:
        self._answer(
            code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}
        )

    def _find(self, verb: str) -> tuple[re.Match, dict] | None:
        parts = urlsplit(self.path)
        match = OBJECT.match(parts.path)
        if not match or match["resource"] not in KINDS:
            self._status(404, f"the stand-in has no {parts.path}")
            return None
        resource = match["resource"] + (f"/{match['part']}" if match["part"] else "")
        if verb == "get" and not match["name"]:
            verb = "list"
        self.cluster.asked.add((verb, resource))
        return match, parse_qs(parts.query)

    def do_POST(self) -> None:
        found = self._find("create")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not found:
            return
        if self.cluster.locked:
            self._status(403, "forbidden")
            return
        resource = found[0]["resource"]
        version, kind = KINDS[resource]
        body = {"apiVersion": version, "kind": kind, **body}
        try:
            kubernetes_validate.validate(body, VERSION, strict=True)
            wrong = faults(body) if resource == "jobs" else []
        except kubernetes_validate.ValidationError as error:
            wrong = [f"{'.'.join(map(str, error.path))}: {error.message}"]
        if wrong:
            self.cluster.refused += wrong
            self._status(422, "; ".join(wrong))
            return
        name = body["metadata"]["name"]
        if resource == "secrets":
            self.cluster.secrets[name] = body
        else:
            self.cluster.jobs[name] = self.cluster.start(body)
        self._answer(201, body)

    def do_GET(self) -> None:
        found = self._find("get")
        if not found:
            return
        match, query = found
        if match["part"] == "log":
            if query.get("previous") == ["true"]:
                self._status(400, f'previous terminated container "snakemake" in pod "{match["name"]}" not found')
            else:
                self._answer(200, self.cluster.jobs[match["name"]].log.read_text(errors="replace"))
            return
        if match["resource"] == "pods":
            name = query["labelSelector"][0].removeprefix("job-name=")
            job = self.cluster.jobs.get(name)
            self._answer(200, {"kind": "PodList", "apiVersion": "v1", "items": [self._pod(name, job)] if job else []})
            return
        job = self.cluster.jobs.get(match["name"])
        if job is None:
            self._status(404, f"job {match['name']} not found")
            return
        code = job.exit_code
        counts = {"active": 1} if code is None else {"failed": 1} if code else {"succeeded": 1}
        self._answer(200, {**job.body, "status": counts})

    def _pod(self, name: str, job: Job) -> dict:
        code = job.exit_code
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        container = {"name": "snakemake", "image": "", "imageID": "", "ready": code is None, "restartCount": 0}
        pod = job.body["spec"]["template"]["spec"]
        return {
            "metadata": {"name": name},
            "spec": pod,
            "status": {"containerStatuses": [{**container, "state": state}]},
        }

    def do_DELETE(self) -> None:
        found = self._find("delete")
        if not found:
            return
        match = found[0]
        if match["resource"] == "jobs" and match["name"] in self.cluster.jobs:
            self.cluster.jobs[match["name"]].kill()
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
