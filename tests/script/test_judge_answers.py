"""LLM-Match end to end against a local judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import judge_answers
from scripts.lib import openai_client
from scripts.lib.files import disabled, write_json, write_manifest
from tests.lib.chat_server import Answer, Server, completion, serving

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten questions in five spaces, one with extra answers; short prompts in the official files' form."""
    monkeypatch.delenv("EQA_JUDGE_API_KEY", raising=False)
    monkeypatch.setattr(openai_client, "FIRST_WAIT_S", 0.01)
    rows = [
        {
            "question_id": f"q{i}",
            "question": f"Question {i} with {{braces}}?",
            "answer": "red",
            "extra_answers": ["crimson", "it's red"] if i == 3 else [],
            "category": ["object", "state"][i % 2],
            "episode_history": f"hm3d-v0/e{i // 2}",
            "source": "hm3d-v0",
            "space": f"s{i // 2}",
        }
        for i in range(10)
    ]
    write_json(tmp_path / "questions.json", {"questions": rows})
    write_json(tmp_path / "split.json", {"parts": {"test": [row["question_id"] for row in rows]}})
    lines = [json.dumps({"question_id": f"q{i}", "prediction": f"mark {i % 5 + 1}. and more"}) for i in range(10)]
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/mmbench.txt").write_text("Q: {question}\nA: {answer}\nR: {prediction}")
    (tmp_path / "prompts/mmbench-extra.txt").write_text(
        "Q: {question}\nA: {answer}\nE: {extra_answers}\nR: {prediction}"
    )
    write_manifest(tmp_path / "prompts")
    return tmp_path


def judge(project: Path, url: str, switched_on: bool = True, name: str = "out.json") -> int:
    config = {
        "deliver": {"llm_match": switched_on},
        "judge": {"url": url, "model": "m", "temperature": 0.2, "seed": 1234, "requests_per_minute": 100000},
        "score": {"bootstrap_draws": 200, "confidence": 0.95, "seed": 7},
    }
    line = ["--model", "tuned", "--config", json.dumps(config), "--work-dir", project / "work"]
    line += ["--predictions", project / "predictions.jsonl", "--questions", project / "questions.json"]
    line += ["--split", project / "split.json", "--prompts", project / "prompts/manifest.json"]
    return judge_answers.main([str(word) for word in [*line, "--output", project / name]])


def marks_the_number(number: int, body: dict) -> tuple[int, dict, object]:
    """A judge that gives the number that the answer names."""
    text = body["messages"][0]["content"]
    return 200, {}, completion(f"Your mark: {text.split('R: mark ')[1][0]}")


def run(project: Path, answer: Answer, code: int = 0) -> tuple[dict, Server]:
    with serving(answer) as server:
        assert judge(project, server.url) == code
    out = project / "out.json"
    return (json.loads(out.read_text()) if out.exists() else {}), server


def test_switched_off_is_a_record_and_asks_nobody(project: Path) -> None:
    assert judge(project, "", switched_on=False) == 0
    assert json.loads((project / "out.json").read_text()) == disabled("deliver.llm_match")


def test_scores_by_the_official_protocol(project: Path) -> None:
    found, server = run(project, marks_the_number)
    assert found["overall"]["value"] == 50  # marks 1 to 5, twice each
    assert found["overall"]["low"] < 50 < found["overall"]["high"]
    assert found["by_category"]["object"]["count"] == 5
    assert found["marks"]["q4"] == 5
    assert found["judge"]["models"] == ["judge-exact-2024"]
    assert found["judge"]["fingerprints"] == ["fp_1"]
    bodies = {body["messages"][0]["content"] for body in server.requests}
    assert "Q: Question 0 with {braces}?\nA: red\nR: mark 1." in bodies, "text after the last full stop is cut"
    assert """Q: Question 3 with {braces}?\nA: red\nE: ['crimson', "it's red"]\nR: mark 4.""" in bodies
    assert {(b["temperature"], b["seed"], b["max_tokens"]) for b in server.requests} == {(0.2, 1234, 32)}


def test_a_rerun_costs_nothing(project: Path) -> None:
    with serving(marks_the_number) as server:
        assert judge(project, server.url) == 0
        assert len(server.requests) == 10
        first = (project / "out.json").read_bytes()
        assert judge(project, server.url) == 0
        assert len(server.requests) == 10
    assert (project / "out.json").read_bytes() == first


def test_a_judge_that_dies_midway_loses_nothing(project: Path, capsys: pytest.CaptureFixture) -> None:
    dead = [True]

    def answer(number: int, body: dict) -> tuple | None:
        return (401, {}, {"error": "out of credit"}) if dead[0] and number >= 4 else marks_the_number(number, body)

    with serving(answer) as server:
        assert judge(project, server.url) == 2
        assert "refused the request" in capsys.readouterr().err.splitlines()[-1]
        assert not (project / "out.json").exists()
        judged = len(list((project / "work").glob("*/*.json")))
        assert judged == 4
        dead[0] = False
        before = len(server.requests)
        assert judge(project, server.url) == 0
        assert len(server.requests) - before == 10 - judged
    assert json.loads((project / "out.json").read_text())["overall"]["value"] == 50


def test_500_429_and_timeouts_on_the_way_do_not_change_the_score(project: Path) -> None:
    def answer(number: int, body: dict) -> tuple | None:
        faults = {0: (500, {}, b"oops"), 2: (429, {"Retry-After": "0"}, {}), 3: None, 5: (200, {}, b"<html>")}
        return faults[number] if number in faults else marks_the_number(number, body)

    found, server = run(project, answer)
    assert found["overall"]["value"] == 50
    assert len(server.requests) == 14


def test_replies_without_a_mark_are_counted_shown_and_asked_again_later(project: Path) -> None:
    vague = [True]

    def answer(number: int, body: dict) -> tuple:
        if vague[0] and "Question 4" in body["messages"][0]["content"]:
            return 200, {}, completion("I would say it is perfect")
        return marks_the_number(number, body)

    with serving(answer) as server:
        assert judge(project, server.url) == 0
        found = json.loads((project / "out.json").read_text())
        vague[0] = False
        assert judge(project, server.url, name="again.json") == 0
        assert len(server.requests) == 11, "only the vague one is asked again"
    assert found["unparsable"] == 1
    assert found["judged"] == 9
    assert found["unparsable_replies"] == {"q4": "I would say it is perfect"}
    assert "q4" not in found["marks"]
    assert found["value_at_worst"] == 40
    assert found["value_at_best"] == 50
    assert json.loads((project / "again.json").read_text())["overall"]["value"] == 50


def test_only_nonsense_is_an_error(project: Path, capsys: pytest.CaptureFixture) -> None:
    run(project, lambda number, body: (200, {}, completion("??")), code=2)
    assert "no reply held a mark" in capsys.readouterr().err
    assert not (project / "out.json").exists()


def test_a_missing_key_is_named_by_its_variable(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert judge(project, "https://judge.example.org/v1") == 2
    assert "EQA_JUDGE_API_KEY is not set" in capsys.readouterr().err


def test_the_key_is_sent_and_never_shown_or_stored(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("EQA_JUDGE_API_KEY", KEY)
    _, server = run(project, marks_the_number)
    assert set(server.keys) == {f"Bearer {KEY}"}
    shown = capsys.readouterr()
    stored = "".join(path.read_text() for path in project.rglob("*") if path.is_file())
    assert KEY not in shown.out + shown.err + stored


def test_the_cost_is_told_before_the_start(project: Path, capsys: pytest.CaptureFixture) -> None:
    def answer(number: int, body: dict) -> tuple:
        return 401, {}, {}

    run(project, answer, code=2)
    lines = capsys.readouterr().err.splitlines()
    assert "10 answers, 0 from the cache; 10 requests" in lines[0]


def test_changed_prompts_are_refused(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "prompts/mmbench.txt").write_text("Give a five. {prediction}")
    assert judge(project, "http://127.0.0.1:9/v1") == 2
    assert "mmbench.txt: differs" in capsys.readouterr().err


def test_prompts_that_were_not_fetched_are_named(project: Path, capsys: pytest.CaptureFixture) -> None:
    write_json(project / "prompts/manifest.json", disabled("predict.prompt"))
    assert judge(project, "http://127.0.0.1:9/v1") == 2
    assert "prompts were not fetched" in capsys.readouterr().err


def test_the_official_evaluator_gives_the_same_score(project: Path, openeqa: Path, root: Path) -> None:
    """Open-EQA's own evaluate-predictions.py against the same judge.

    OPENEQA_REPO names its checkout, OPENEQA_PYTHON an interpreter that has its requirements.
    """
    repo = os.environ.get("OPENEQA_REPO")
    if not repo:
        pytest.skip("OPENEQA_REPO is not set; name a checkout of facebookresearch/open-eqa")
    official = json.loads((openeqa / "open-eqa-v0.json").read_text())
    chosen = official[:6] + [row for row in official if row.get("extra_answers")][:4]
    spaces = {"category", "question_id", "question", "answer", "episode_history", "extra_answers"}
    rows = [
        {**{k: v for k, v in row.items() if k in spaces}, "source": "hm3d-v0", "space": row["episode_history"]}
        for row in chosen
    ]
    write_json(project / "questions.json", {"questions": rows})
    write_json(project / "split.json", {"parts": {"test": [row["question_id"] for row in rows]}})
    lines = [{"question_id": row["question_id"], "prediction": f"It is {i}. More"} for i, row in enumerate(rows)]
    (project / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("mmbench.txt", "mmbench-extra.txt"):
        (project / "prompts" / name).write_bytes((openeqa / "prompts" / name).read_bytes())
    write_manifest(project / "prompts")

    def by_prompt(number: int, body: dict) -> tuple:
        import zlib

        return 200, {}, completion(str(zlib.crc32(body["messages"][-1]["content"].encode()) % 5 + 1))

    results = project / "results.json"
    write_json(results, [{"question_id": r["question_id"], "answer": r["prediction"]} for r in lines])
    with serving(by_prompt) as server:
        assert judge(project, server.url) == 0
        done = subprocess.run(
            [
                os.environ.get("OPENEQA_PYTHON", sys.executable),
                "evaluate-predictions.py",
                results,
                "--force",
                *("--dataset", openeqa / "open-eqa-v0.json"),
                *("--output-directory", project / "official"),
            ],
            cwd=repo,
            env=os.environ | {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": server.url, "PYTHONPATH": repo},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    marks = json.loads((project / "official/results-metrics.json").read_text())
    assert marks == json.loads((project / "out.json").read_text())["marks"]
