"""fetch_questions, fetch_prompts, fetch_episodes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from scripts import fetch_episodes, fetch_prompts, fetch_questions
from scripts.lib import pins
from tests.lib.servers import local_server

ROWS = [
    {"question_id": "a", "question": "What?", "answer": "It", "category": "world knowledge", "episode_history": "e/1"}
]
QUESTIONS = json.dumps(ROWS, indent=3).encode()
PROMPT = b"Look.\nUser Query: {question}"
ARCHIVE = b"tgz" * 20_000


@pytest.fixture
def server():
    with local_server() as behaviour:
        behaviour.files = {"/q.json": QUESTIONS, "/p.txt": PROMPT, "/f.tgz": ARCHIVE}
        yield behaviour


@pytest.fixture
def lock(server, tmp_path) -> Path:
    def pin(path: str, **hashes: str) -> dict:
        return {"address": server.url + path, **hashes}

    sha = {path: hashlib.sha256(data).hexdigest() for path, data in server.files.items()}
    files = {
        "open-eqa-v0.json": pin("/q.json", sha256=sha["/q.json"]),
        fetch_episodes.ARCHIVE: pin("/f.tgz", md5=hashlib.md5(ARCHIVE).hexdigest()),
        **{f"prompts/{name}": pin("/p.txt", sha256=sha["/p.txt"]) for name in fetch_prompts.PROMPTS},
    }
    file = tmp_path / "data.lock.json"
    file.write_text(json.dumps({"files": files}))
    return file


def questions(tmp_path: Path, lock: Path, source: str, name: str = "open-eqa-v0.json") -> tuple[int, Path]:
    output = tmp_path / "out" / "questions.json"
    config = json.dumps({"data": {"source": source, "questions": name}})
    return fetch_questions.main(["--lock", str(lock), "--config", config, "--output", str(output)]), output


def test_no_source_means_no_questions(tmp_path, lock):
    code, output = questions(tmp_path, lock, "")
    assert code == 0
    assert json.loads(output.read_text()) == []


@pytest.mark.parametrize("folder", ["", "data"])
def test_the_users_own_file_is_copied_byte_for_byte(tmp_path, lock, server, folder):
    own = tmp_path / "src" / folder
    own.mkdir(parents=True)
    (own / "my.json").write_bytes(QUESTIONS + b"\n\n")
    code, output = questions(tmp_path, lock, str(tmp_path / "src"), "my.json")
    assert code == 0
    assert output.read_bytes() == QUESTIONS + b"\n\n"
    assert server.requests == []


def test_a_variable_names_the_folder(tmp_path, lock, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/my.json").write_bytes(QUESTIONS)
    monkeypatch.setenv("OPENEQA_DATA", str(tmp_path / "src"))
    assert questions(tmp_path, lock, "$OPENEQA_DATA", "my.json")[0] == 0


def test_open_eqas_file_is_fetched_where_the_folder_lacks_it(tmp_path, lock, server):
    (tmp_path / "src").mkdir()
    server.drops = 1
    server.drop_after = 20
    code, output = questions(tmp_path, lock, str(tmp_path / "src"))
    assert code == 0
    assert output.read_bytes() == QUESTIONS
    assert [p.name for p in output.parent.iterdir()] == ["questions.json"]


def test_a_changed_download_says_expected_and_found(tmp_path, lock, server, capsys):
    (tmp_path / "src").mkdir()
    server.files["/q.json"] = b"[]"
    code, output = questions(tmp_path, lock, str(tmp_path / "src"))
    message = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert hashlib.sha256(QUESTIONS).hexdigest() in message
    assert hashlib.sha256(b"[]").hexdigest() in message
    assert not output.exists()


def test_a_file_of_another_name_is_not_replaced_by_open_eqas(tmp_path, lock, server, capsys):
    (tmp_path / "src").mkdir()
    assert questions(tmp_path, lock, str(tmp_path / "src"), "mine.json")[0] == 2
    assert "mine.json: no such question file" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe[]", "not UTF-8"),
        (b'{"a": 1}', "a list of questions is wanted"),
        (b"[]", "holds no question"),
        (b'[{"question": "?"}]', "lacks question_id"),
        (json.dumps(ROWS * 2).encode(), "repeats question_id"),
        (json.dumps([ROWS[0] | {"episode_history": "../x"}]).encode(), "leaves its root"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_question_file_is_one_line_and_nothing_is_written(tmp_path, lock, capsys, content, part):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/bad.json").write_bytes(content)
    code, output = questions(tmp_path, lock, str(tmp_path / "src"), "bad.json")
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert "bad.json" in lines[0]
    assert part in lines[0]
    assert not output.parent.exists() or not list(output.parent.iterdir())


@pytest.mark.parametrize("name", ["../q.json", "/etc/passwd", "a\0b", ""])
def test_a_question_file_outside_the_folder_is_refused(tmp_path, lock, capsys, name):
    (tmp_path / "src").mkdir()
    (tmp_path / "q.json").write_bytes(QUESTIONS)
    assert questions(tmp_path, lock, str(tmp_path / "src"), name)[0] == 2
    assert "may not leave its folder" in capsys.readouterr().err


def prompts(tmp_path: Path, lock: Path, source: str = "", prompt: str = "official", match: bool = False):
    config = {"data": {"source": source}, "predict": {"prompt": prompt}, "deliver": {"llm_match": match}}
    output = tmp_path / "prompts-out"
    line = ["--lock", str(lock), "--config", json.dumps(config), "--output-dir", str(output)]
    return fetch_prompts.main(line), output


def test_prompts_are_a_switched_off_record_where_none_is_used(tmp_path, lock, server):
    code, output = prompts(tmp_path, lock, prompt="short_answer")
    assert code == 0
    assert json.loads((output / "manifest.json").read_text())["status"] == "disabled"
    assert server.requests == []


def test_prompts_are_fetched_for_the_official_prompt_and_for_the_judge(tmp_path, lock):
    for arguments in ({}, {"prompt": "short_answer", "match": True}):
        code, output = prompts(tmp_path, lock, **arguments)
        assert code == 0
        assert {p.name for p in output.iterdir()} == {"manifest.json", *fetch_prompts.PROMPTS}
        assert (output / "gpt4v.txt").read_bytes() == PROMPT


def test_the_users_own_prompts_are_copied_if_they_are_the_pinned_ones(tmp_path, lock, server, capsys):
    folder = tmp_path / "src/prompts"
    folder.mkdir(parents=True)
    for name in fetch_prompts.PROMPTS:
        (folder / name).write_bytes(PROMPT)
    assert prompts(tmp_path, lock, str(tmp_path / "src"))[0] == 0
    assert server.requests == []
    (folder / "mmbench.txt").write_bytes(b"edited")
    assert prompts(tmp_path, lock, str(tmp_path / "src"))[0] == 2
    assert "mmbench.txt: expected sha256" in capsys.readouterr().err
    assert (folder / "mmbench.txt").read_bytes() == b"edited"


def episodes(tmp_path: Path, lock: Path) -> tuple[int, Path]:
    output = tmp_path / "download"
    return fetch_episodes.main(["--lock", str(lock), "--output-dir", str(output)]), output


def test_the_archive_survives_dropped_connections(tmp_path, lock, server, monkeypatch):
    monkeypatch.setattr("scripts.lib.download.time.sleep", lambda _: None)
    server.drops = 4
    server.drop_after = 7000
    code, output = episodes(tmp_path, lock)
    assert code == 0
    assert (output / fetch_episodes.ARCHIVE).read_bytes() == ARCHIVE
    assert len(server.sent_ranges()) == 4
    record = json.loads((output / "manifest.json").read_text())["files"][fetch_episodes.ARCHIVE]
    assert record["md5"] == hashlib.md5(ARCHIVE).hexdigest()


def test_an_archive_that_the_user_had_is_not_deleted(tmp_path, lock, server, capsys):
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / fetch_episodes.ARCHIVE).write_bytes(b"hours of download")
    code, output = episodes(tmp_path, lock)
    message = capsys.readouterr().err
    assert code == 2
    assert hashlib.md5(ARCHIVE).hexdigest() in message
    assert hashlib.md5(b"hours of download").hexdigest() in message
    assert (output / fetch_episodes.ARCHIVE).read_bytes() == b"hours of download"
    assert not (output / "manifest.json").exists()


def test_shipped_pins_are_those_of_the_real_files(root, openeqa):
    lock = root / pins.DATA_LOCK
    for name in ("open-eqa-v0.json", *(f"prompts/{p}" for p in fetch_prompts.PROMPTS)):
        pin = pins.read_data_pin(lock, name)
        data = (openeqa / name).read_bytes()
        assert (pin.sha256, pin.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert json.loads(lock.read_text())["commit"] in pin.address


def test_the_real_files_are_taken_from_the_users_folder(root, openeqa, tmp_path):
    lock = root / pins.DATA_LOCK
    code, output = questions(tmp_path, lock, str(openeqa))
    assert code == 0
    assert output.read_bytes() == (openeqa / "open-eqa-v0.json").read_bytes()
    assert prompts(tmp_path, lock, str(openeqa))[0] == 0


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": {"open-eqa-v0.json": {"address": "http://x"}}}', "{"])
def test_a_broken_data_lock_is_one_line(tmp_path, capsys, content):
    (tmp_path / "src").mkdir()
    (tmp_path / "l.json").write_text(content)
    assert questions(tmp_path, tmp_path / "l.json", str(tmp_path / "src"))[0] == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
