"""Questions, answers and names that would like to be commands go through the whole pipeline as the text that they are.

The run has a network of its own without any connection (where the system allows it), and secrets in its environment.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
import yaml

from scripts.lib.files import read_json, read_jsonl
from tests.lib import project, raw_data
from tests.lib.chat_server import Answer, Server, completion, serving

pytestmark = pytest.mark.demo
# drawn, not written here: the clone holds this file too
SECRETS = {
    name: f"canary-{secrets.token_hex(8)}"
    for name in ("EQA_JUDGE_API_KEY", "EQA_SERVE_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
}
TEXTS = (
    "What is $(touch pwned_dollar) on the table?",
    "What is `touch pwned_tick` on the table?",
    'What is it"; touch pwned_double; echo "?',
    "What is it'; touch pwned_single; echo '?",
    "What is {config} {input} {output} {wildcards.model} {question} {{ 7 * 7 }} {% raw %}?",
    "What is it\n touch pwned_line\n\ton a second line?",
    "What is it | touch pwned_pipe & touch pwned_and > pwned_greater?",
    "--output=pwned_option -rf / %s %(x)s \\n \\ $HOME ${IFS}?",
    "What is <script>alert('pwned')</script><img src=x onerror=alert(1)> &amp;?",
    "</script></textarea>'\"><svg onload=alert(2)>?",
    "ما هذا؟ \u202eevil\u202c 这是什么？ 🛋️",
    "=cmd|' /C calc'!A1",
)
EPISODES = (
    "hm3d-v0/001-hm3d-aaaaaaaaaaa",
    "hm3d-v0/$(touch pwned_episode) `touch pwned_name`; 'x' \"y\" {z} & |",
    "hm3d-v0/003-hm3d-ccccccccccc",
)


def hostile_source(folder: Path) -> Path:
    """A user's folder: three episodes, a dozen questions each."""
    rows = []
    for number, episode in enumerate(EPISODES):
        raw_data.frame_folder(folder / "frames" / episode, 9, width=192, height=128)
        rows += [
            raw_data.question(episode, i, question=text, answer=text[:40], extra_answers=[text[-30:]])
            | {"question_id": f"q{number}-{i}; touch pwned_id"}
            for i, text in enumerate(TEXTS)
        ]
    (folder / "questions.json").write_text(json.dumps(rows))
    (folder / "prompts").mkdir()
    for prompt in sorted(
        (project.openeqa_folder() / "prompts").glob("*.txt")
    ):  # a judge needs the real ones, none without
        shutil.copyfile(prompt, folder / "prompts" / prompt.name)
    return folder


class Listeners(threading.Thread):
    """TCP sockets that listen in a process's network, seen from outside."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.found, self.looks = pid, set(), 0

    def run(self) -> None:
        while True:
            try:
                tables = [Path(f"/proc/{self.pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
            except OSError:
                return
            self.looks += 1
            for line in "".join(table.partition("\n")[2] for table in tables).splitlines():
                fields = line.split()
                if fields[3] == "0A":
                    self.found.add(fields[1])
            time.sleep(0.05)


@pytest.fixture(scope="module")
def hostile_run(finished_demo, tmp_path_factory):
    """The finished demo, given the hostile folder, trained for two steps and run to its end; and its listeners."""
    top = tmp_path_factory.mktemp("hostile")
    folder = project.copy_clone(finished_demo, top / "clone")
    source = hostile_source(top / "data")
    recipe = yaml.safe_load((folder / "config/presets/hm3d-clip.yaml").read_text())
    recipe["data"] |= {"source": str(source), "questions": "questions.json"}
    recipe["split"]["file"] = "split.json"
    recipe["train"] |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    parts = {"test": {"episodes": list(EPISODES[1:])}, "train": {"episodes": list(EPISODES[:1])}}
    (folder / "split.json").write_text(json.dumps(parts))
    (folder / "config/config.yaml").write_text(yaml.safe_dump(recipe))
    alone = ["unshare", "--net", "--map-root-user"]
    apart = subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    command = ["bash", "-c", "ip link set lo up 2> /dev/null; exec snakemake --cores 8"]
    with (top / "log").open("w") as log:
        process = subprocess.Popen(
            [*(alone if apart else []), *command],
            cwd=folder,
            env=project.environment(**SECRETS),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        while (
            apart
            and process.poll() is None
            and os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net")
        ):
            time.sleep(0.01)  # until unshare has made the network
        listeners = Listeners(process.pid)
        listeners.start()
        code = process.wait(timeout=900)
    assert code == 0, (top / "log").read_text()[-6000:]
    shutil.copy(top / "log", folder / "run.log")
    return folder, source, listeners if apart else None


def test_no_text_became_a_command(hostile_run):
    folder, source, _ = hostile_run
    found = [path for top in (folder, source.parent) for path in top.rglob("pwned_*")]
    # the episode's own folders carry such a name in the middle, never at its start
    assert not found
    assert not list(Path.home().glob("pwned_*"))


def test_texts_arrive_as_they_were_written(hostile_run):
    folder, _, _ = hostile_run
    rows = {row["question_id"]: row for row in read_json(folder / "results/index/questions.json")["questions"]}
    wanted = sorted(f"q{n}-{i}; touch pwned_id" for n in (1, 2) for i in range(len(TEXTS)))
    for i, text in enumerate(TEXTS):
        assert rows[f"q1-{i}; touch pwned_id"]["question"] == text
    for model in ("base", "tuned", "blind", "majority"):
        assert [row["question_id"] for row in read_jsonl(folder / f"results/predictions/{model}.jsonl")] == wanted
    prompts = (folder / "results/sft/test.json").read_text()
    assert all(json.dumps(text, ensure_ascii=False)[1:-1] in prompts for text in TEXTS)
    trained = (folder / "results/sft/train.json").read_text()
    assert "$(touch pwned_dollar)" in trained


def test_page_shows_markup_as_text(hostile_run):
    folder, _, _ = hostile_run
    page = (folder / "results/report/index.html").read_text()
    assert "pwned" in page
    for raw in ("<script>alert('pwned')", "<img src=x onerror", "<svg onload", "</textarea>'\"><svg"):
        assert raw not in page
    card = (folder / "results/model_card.md").read_text()
    assert "<script>alert" not in card


def files_with_secrets(folder: Path) -> tuple[int, list[str]]:
    """How many files there are, and which hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    leaks = [
        f"{name} in {path}" for path in files for name, key in SECRETS.items() if key.encode() in path.read_bytes()
    ]
    return len(files), leaks


def judged(folder: Path, answer: Answer, log: str) -> tuple[int, Server]:
    """Have the tuned model's answers judged by a server of the test; its key ends in a carriage return."""
    recipe = yaml.safe_load((folder / "config/config.yaml").read_text())
    recipe["deliver"]["llm_match"] = True
    with serving(answer) as server, (folder / log).open("w") as output:
        recipe["judge"] |= {"url": server.url, "requests_per_minute": 6000}
        (folder / "config/config.yaml").write_text(yaml.safe_dump(recipe))
        done = subprocess.run(
            ["snakemake", "--cores", "2", "results/metrics/llm_match_tuned.json"],
            cwd=folder,
            env=project.environment(**SECRETS | {"EQA_JUDGE_API_KEY": SECRETS["EQA_JUDGE_API_KEY"] + "\r"}),
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
    return done.returncode, server


def test_no_secret_is_written_anywhere(hostile_run):
    folder, _, _ = hostile_run
    looked, leaks = files_with_secrets(folder)
    assert looked > 1000  # results, logs, .snakemake, the DVC cache, git
    assert not leaks


def test_no_key_is_written_though_a_judge_repeats_it(hostile_run, openeqa):
    folder, _, _ = hostile_run
    key = SECRETS["EQA_JUDGE_API_KEY"]
    said = {"error": f"Bearer {key}"}
    code, server = judged(folder, lambda number, body: (400, {}, said), "refused.log")
    assert code == 1
    assert set(server.keys) == {f"Bearer {key}"}
    assert "Bearer ***" in (folder / "logs/judge_answers/tuned.log").read_text()
    assert not files_with_secrets(folder)[1]
    # at first it is out of order, and says so with the key; then it calls itself by it
    named = completion("3") | {"model": f"judge-{key}", "system_fingerprint": key}
    code, server = judged(
        folder, lambda number, body: (500, {}, said) if number == 0 else (200, {}, named), "judged.log"
    )
    assert code == 0, (folder / "judged.log").read_text()[-3000:]
    assert set(server.keys) == {f"Bearer {key}"}
    assert read_json(folder / "results/metrics/llm_match_tuned.json")["overall"]["value"] == 50.0
    assert not files_with_secrets(folder)[1]


def test_nothing_listens_and_nothing_needs_a_network(hostile_run):
    _, _, listeners = hostile_run
    if listeners is None:
        pytest.skip("this system allows no network namespaces (unshare --net), so its listeners cannot be told apart")
    assert listeners.looks > 100
    assert not listeners.found


def test_nothing_written_is_open_to_others(hostile_run):
    folder, _, _ = hostile_run
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            assert not mode & (stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID), path


def test_run_prints_one_line_for_each_fact(hostile_run):
    folder, _, _ = hostile_run
    assert not re.search(r"^\s*touch pwned_line", (folder / "run.log").read_text(), re.MULTILINE)
