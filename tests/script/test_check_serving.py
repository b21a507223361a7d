"""check_serving against the stand-in for Ollama, and the rule that runs it each time it is asked for."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from pathlib import Path

import pytest

from scripts import check_serving
from scripts.lib.files import read_json, write_json, write_jsonl
from tests.lib import serving_data
from tests.lib.project import ROOT, environment

QUESTIONS = ["What color is the sofa?", "How many lamps are there?", "Is the door open?"]
TAG = "qwen3-vl-openeqa:0123456789ab"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a test part, predictions as the stand-in answers, and the record of an import."""
    serving_data.write_test_part(tmp_path / "results", QUESTIONS)
    predict(tmp_path, *["the sofa is red"] * 3)
    write_json(
        tmp_path / "results/ollama/import.json", {"status": "imported", "model": TAG, "name": "qwen3-vl-openeqa"}
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(place: Path, *answers: str) -> None:
    rows = [{"question_id": f"q{number:03d}", "prediction": answer} for number, answer in enumerate(answers)]
    write_jsonl(place / "results/predictions/tuned.jsonl", rows)


def check(*words: str, imported: bool = True) -> int:
    recipe = serving_data.recipe()
    config = json.dumps({"serve": recipe["serve"], "predict": recipe["predict"]})
    paths = ["--test", "results/sft/test.json", "--predictions", "results/predictions/tuned.jsonl"]
    paths += ["--imported", "results/ollama/import.json"] if imported else []
    output = ["--output", "results/serve/check_ollama.json"]
    return check_serving.main(["--server", "ollama", *paths, *output, "--config", config, *words])


def asked(server) -> set[str]:
    return {body["model"] for _, path, body in server.requests if path == "/api/chat"}


def test_the_imported_model_is_asked_and_not_whoever_has_its_name(place, server):
    server.models[TAG] = {"model": TAG, "files": {}}
    server.models["qwen3-vl-openeqa:latest"] = {"model": "qwen3-vl-openeqa", "system": "the user's own"}
    assert check() == 0
    assert asked(server) == {TAG}
    record = read_json(place / "results/serve/check_ollama.json")
    assert (record["model"], record["digest"]) == (TAG, server.digest(TAG))


def test_an_imported_model_that_is_gone_comes_with_the_way_out(place, server, capsys):
    server.models["qwen3-vl-openeqa:latest"] = {"model": "qwen3-vl-openeqa", "system": "the user's own"}
    assert check() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"Ollama has no model {TAG}" in error
    assert "`snakemake --force results/ollama/import.json`" in error


def test_a_model_imported_by_hand_is_asked_by_its_name(place, server):
    server.models["qwen3-vl-openeqa:latest"] = {"model": "qwen3-vl-openeqa"}
    write_json(place / "results/ollama/import.json", {"status": "disabled", "key": "deliver.ollama"})
    assert check() == 0
    assert check(imported=False) == 0
    assert asked(server) == {"qwen3-vl-openeqa"}
    assert read_json(place / "results/serve/check_ollama.json")["digest"] == server.digest("qwen3-vl-openeqa:latest")


def test_a_record_without_a_model_is_one_line(place, server, capsys):
    write_json(place / "results/ollama/import.json", [])
    assert check() == 2
    assert "import.json: names no model; import again" in capsys.readouterr().err


def test_how_many_answers_say_something_and_differ_is_recorded(place, server):
    server.models[TAG] = {"model": TAG}
    assert check() == 0
    record = read_json(place / "results/serve/check_ollama.json")
    assert record["predicted"] == record["served"] == {"non_empty": 3, "different": 1}


@pytest.mark.parametrize(
    ("predictions", "answer", "said"),
    [
        (["", "", ""], "", "3 of 3 predicted answers are empty"),
        (["red", "blue", "green"], "red", "one and the same answer to all 3 questions"),
        (["red", "red", "red"], "blue", "agreement 0 < serve.agreement=0.9; see work/serve/failed_check_ollama.json"),
    ],
)
def test_the_record_of_a_failed_check_lies_where_snakemake_deletes_nothing(
    place, server, capsys, predictions, answer, said
):
    server.models[TAG], server.answer = {"model": TAG}, answer
    predict(place, *predictions)
    assert check() == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (place / "results/serve/check_ollama.json").exists()
    record = read_json(place / "work/serve/failed_check_ollama.json")
    assert record["passed"] is False
    assert [row["predicted"] for row in record["answers"]] == predictions


def test_a_check_that_fails_takes_the_record_of_an_earlier_one_away(place, server):
    server.models[TAG] = {"model": TAG}
    assert check() == 0
    server.answer = "a lamp"
    assert check() == 2
    assert not (place / "results/serve/check_ollama.json").exists()


def test_a_prediction_without_its_answer_is_one_line(place, server, capsys):
    write_jsonl(place / "results/predictions/tuned.jsonl", [{"question_id": "q000"}])
    assert check() == 2
    assert "tuned.jsonl: a line without question_id and prediction" in capsys.readouterr().err


def test_a_check_that_passes_leaves_no_record_of_an_earlier_failure(place, server):
    server.models[TAG] = {"model": TAG}
    write_json(place / "work/serve/failed_check_ollama.json", {"passed": False})
    assert check() == 0
    assert not (place / "work/serve/failed_check_ollama.json").exists()


@pytest.mark.parametrize("port", ["70000", "0"])
def test_a_port_that_is_none_is_one_line(place, capsys, port):
    assert check("--url", f"http://127.0.0.1:{port}") == 2
    assert f"{port} is no port; choose one from 1 to 65535" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the rule


def planned(*targets: str) -> str:
    done = subprocess.run(
        ["snakemake", "-n", "-p", *targets], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_check_of_ollama_reads_what_was_imported_and_the_others_do_not():
    plan = planned("--forceall", "results/serve/check_ollama.json", "results/serve/check_llamacpp.json")
    commands = re.findall(r"python -m scripts\.check_serving +(.*)>", plan)
    options = {
        re.search(r"--server (\w+)", line)[1]: "--imported results/ollama/import.json" in line for line in commands
    }
    assert options == {"ollama": True, "llamacpp": False}
    only = planned("--forceall", "results/serve/check_llamacpp.json")
    assert "scripts.import_ollama" not in only


@pytest.mark.demo
def test_a_check_asked_for_by_name_runs_each_time_and_leaves_the_rest_alone(demo_copy):
    """Another model may be served than at the last check. A stand-in for llama.cpp, which answers as predicted."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from scripts.lib.files import read_jsonl

    rows = read_json(demo_copy / "results/sft/test.json")
    said = {row["question_id"]: row["prediction"] for row in read_jsonl(demo_copy / "results/predictions/tuned.jsonl")}
    chosen = check_serving.choose(rows, check_serving.QUESTIONS)
    answers = [said[row["question_id"]] for row in chosen]
    count = 0

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _send(self, data: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._send(json.dumps({"data": [{"id": "qwen3-vl-openeqa"}]}).encode())

        def do_POST(self) -> None:
            nonlocal count
            self.rfile.read(int(self.headers["Content-Length"]))
            part = {"choices": [{"delta": {"content": answers[count % len(answers)]}}]}
            count += 1
            self._send(f"data: {json.dumps(part)}\n\ndata: [DONE]\n\n".encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    config = demo_copy / "config/config.yaml"
    config.write_text(config.read_text().replace("port: 23333", f"port: {server.server_port}"))

    def snakemake(*words: str) -> str:
        done = subprocess.run(
            ["snakemake", "--cores", "2", *words], cwd=demo_copy, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    try:
        snakemake()  # the port is part of the recipe's record
        lock = (demo_copy / "provenance.lock.json").read_bytes()
        for number in (1, 2):
            snakemake("results/serve/check_llamacpp.json")
            assert count == number * len(answers)
            checked = (demo_copy / "provenance.lock.json").read_bytes()
            assert "Nothing to be done" in snakemake("-n")
        # the record of the check is the same each time, so the lock that travels does not change
        assert checked != lock
        snakemake("results/serve/check_llamacpp.json")
        assert (demo_copy / "provenance.lock.json").read_bytes() == checked
    finally:
        server.shutdown()
        server.server_close()
