"""scripts.predict without a model: the engine `openai` against a local server, and every fault of its inputs."""

from __future__ import annotations

import base64
import io
import json
import logging
from pathlib import Path

import pytest

from scripts import predict
from scripts.lib import openai_client
from scripts.lib.files import write_json, write_manifest
from tests.lib.chat_server import completion, serving


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six questions about two episodes with two frames each; a base folder that is never loaded."""
    from PIL import Image

    monkeypatch.setattr(openai_client, "FIRST_WAIT_S", 0.01)
    rows = []
    for number in range(6):
        episode = f"hm3d-v0/e{number // 3}"
        images = [f"{episode}/{i:03d}.jpg" for i in range(2)]
        for shade, image in enumerate(images):
            path = tmp_path / "frames" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 32), (100 * (number // 3), 90 * shade, 9)).save(path)
        messages = [
            {"role": "user", "content": f"<image><image>Answer. Question: number {number}?"},
            {"role": "assistant", "content": "red"},
        ]
        rows.append({"messages": messages, "images": images, "question_id": f"q{number}", "episode_history": episode})
    write_json(tmp_path / "sft/test.json", rows[::-1])
    write_manifest(tmp_path / "frames")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    write_manifest(tmp_path / "base")
    return tmp_path


def run(
    project: Path, url: str = "", model: str = "base", engine: str = "openai", *extra: object, **keys: object
) -> int:
    settings = {"engine": engine, "prompt": "short_answer", "decoding": "greedy", "max_new_tokens": 8, "batch_size": 2}
    settings |= {"dtype": "float32", "url": url, "seed": 7, **keys}
    config = {
        "predict": settings,
        "vision": {"image_max_pixels": 24576, "image_min_pixels": 1024},
        "train": {"template": "qwen3_vl_nothink", "cutoff_len": 768},
    }
    line = ["--model", model, "--test", project / "sft/test.json", "--frames", project / "frames/manifest.json"]
    line += ["--base", project / "base/manifest.json", "--frames-dir", project / "frames"]
    line += ["--config", json.dumps(config), "--work-dir", project / "work"]
    line += ["--output", project / f"{model}.jsonl", "--meta", project / f"{model}.meta.json"]
    return predict.main([str(word) for word in [*line, *extra]])


def says_the_number(number: int, body: dict) -> tuple:
    content = body["messages"][0]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return 200, {}, completion(f" it is {text.split('number ')[1][0]}\n")


def answers(project: Path, model: str = "base") -> dict[str, str]:
    return {row["question_id"]: row["prediction"] for row in map(json.loads, (project / f"{model}.jsonl").open())}


def test_a_server_s_answers_are_joined_by_id_whatever_the_order_of_rows(project: Path) -> None:
    with serving(says_the_number) as server:
        assert run(project, server.url) == 0
    assert answers(project) == {f"q{i}": f"it is {i}" for i in range(6)}
    assert [json.loads(line)["question_id"] for line in (project / "base.jsonl").open()] == [f"q{i}" for i in range(6)]
    meta = json.loads((project / "base.meta.json").read_text())
    assert (meta["engine"], meta["dtype"], meta["count"], meta["images"]) == ("openai", "server", 6, True)
    body = server.requests[0]
    assert body["model"] == "only"
    assert (body["temperature"], body["max_tokens"]) == (0.0, 8)
    parts = body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert "<image>" not in parts[-1]["text"]
    from PIL import Image

    data = base64.b64decode(parts[0]["image_url"]["url"].split(",", 1)[1])
    assert Image.open(io.BytesIO(data)).size == (64, 32)


def test_the_blind_model_gets_the_same_prompt_without_pictures(project: Path) -> None:
    with serving(says_the_number) as server:
        assert run(project, server.url, "blind") == 0
    assert all(isinstance(body["messages"][0]["content"], str) for body in server.requests)
    assert server.requests[0]["messages"][0]["content"].startswith("Answer. Question:")
    assert answers(project, "blind")["q3"] == "it is 3"


def test_tutorial_decoding_reaches_the_server(project: Path) -> None:
    with serving(says_the_number) as server:
        assert run(project, server.url, decoding="tutorial") == 0
    assert {(body["temperature"], body["top_p"]) for body in server.requests} == {(0.2, 1.0)}
    assert json.loads((project / "base.meta.json").read_text())["sampling"]["temperature"] == 0.2


def test_a_server_that_dies_midway_loses_no_batch(project: Path, capsys: pytest.CaptureFixture) -> None:
    dead = [True]

    def answer(number: int, body: dict) -> tuple:
        return (400, {}, {"error": "gone"}) if dead[0] and number >= 4 else says_the_number(number, body)

    with serving(answer) as server:
        assert run(project, server.url) == 2
        assert "predict.url=" in capsys.readouterr().err
        assert not (project / "base.jsonl").exists()
        dead[0], before = False, len(server.requests)
        assert run(project, server.url) == 0
        assert len(server.requests) - before == 2, "two whole batches are kept"
    assert answers(project) == {f"q{i}": f"it is {i}" for i in range(6)}


def test_a_server_with_several_models_wants_a_name(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(says_the_number, models=("a", "b")) as server:
        assert run(project, server.url) == 2
        assert "serves 2 models (a, b); name one in EQA_PREDICT_MODEL" in capsys.readouterr().err
        monkeypatch.setenv("EQA_PREDICT_MODEL", "b")
        assert run(project, server.url) == 0
    assert {body["model"] for body in server.requests} == {"b"}


def change(project: Path, edit: object) -> None:
    rows = json.loads((project / "sft/test.json").read_text())
    edit(rows)
    write_json(project / "sft/test.json", rows)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows.clear(), "no list of test questions"),
        (lambda rows: rows.append(rows[0]), "question_id q5: answers more than once"),
        (lambda rows: rows[0].pop("question_id"), "row 0 lacks question_id"),
        (lambda rows: rows[0].update(messages=[]), "row 0 lacks"),
        (lambda rows: rows[0].update(images=rows[0]["images"][:1]), "2 <image> for 1 pictures"),
        (lambda rows: rows[0].update(images=["../x.jpg", "y.jpg"]), "may not leave its folder"),
    ],
)
def test_bad_test_files_are_one_line(project: Path, capsys: pytest.CaptureFixture, edit: object, message: str) -> None:
    change(project, edit)
    assert run(project, "http://127.0.0.1:9/v1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (project / "base.jsonl").exists()


def test_a_missing_frame_is_named(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "frames/hm3d-v0/e0/001.jpg").unlink()
    with serving(says_the_number) as server:
        assert run(project, server.url) == 2
    assert "e0/001.jpg: this picture does not exist" in capsys.readouterr().err


def test_the_tuned_model_wants_what_its_engine_takes(project: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(project, "http://127.0.0.1:9/v1", "tuned") == 2
    assert "predict.engine=openai takes no adapter; pass --merged" in capsys.readouterr().err
    assert run(project, "", "tuned", "transformers") == 2
    assert "needs --adapter" in capsys.readouterr().err
    assert run(project, "http://127.0.0.1:9/v1", "base4bit") == 2
    assert "base4bit needs predict.engine=transformers" in capsys.readouterr().err


def test_weights_that_changed_under_the_manifest_are_refused(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "base/config.json").unlink()
    assert run(project, "", engine="transformers") == 2
    assert "config.json: listed in" in capsys.readouterr().err


def test_batches_are_a_function_of_the_questions_alone(project: Path) -> None:
    questions = predict.read_test(project / "sft/test.json", project / "frames", blind=False)
    assert [q.question_id for q in questions] == [f"q{i}" for i in range(6)]
    assert [len(batch) for batch in predict.plan(questions, 4)] == [4, 2]
    assert predict.plan(questions, 100) == [questions]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", 0),
        ('{"question_id": "a", "prediction": "x"}\n', 1),
        ('{"question_id": "a", "prediction": "x"}\n{"question_id": "b", "pre', 1),
        ('{"question_id": "a", "prediction": "x"}\nnull\n{"question_id": "b", "prediction": "y"}\n', 1),
        ("\x00\x00\x00", 0),
    ],
)
def test_a_torn_journal_is_cut_to_its_whole_lines(tmp_path: Path, text: str, kept: int) -> None:
    from scripts.lib.journal import append_journal, read_journal

    path = tmp_path / "j.jsonl"
    path.write_text(text)
    assert len(read_journal(path)) == kept
    append_journal(path, [{"question_id": "z", "prediction": "é\ud83d"}])
    rows = read_journal(path)
    assert len(rows) == kept + 1
    assert rows[-1]["question_id"] == "z"


def test_half_characters_of_a_model_are_replaced() -> None:
    assert predict.clean(" ok\ud83d \n") == "ok?"


def test_answers_of_another_served_model_are_not_continued(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(number: int, body: dict) -> tuple:
        # the first model goes after one batch
        if body["model"] == "first" and number >= 2:
            return 400, {}, {"error": "gone"}
        return 200, {}, completion(body["model"])

    with serving(answer) as server:
        monkeypatch.setenv("EQA_PREDICT_MODEL", "first")
        assert run(project, server.url) == 2
        monkeypatch.setenv("EQA_PREDICT_MODEL", "second")
        assert run(project, server.url) == 0
    assert set(answers(project).values()) == {"second"}


def test_whole_answers_of_an_interrupted_run_need_no_server(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "base.jsonl").mkdir()  # the last step fails
    with serving(says_the_number) as server:
        assert run(project, server.url) == 2
        url = server.url
    (project / "base.jsonl").rmdir()
    capsys.readouterr()
    assert run(project, url) == 0
    assert "6 of 6 answers are there" in capsys.readouterr().err
    assert answers(project)["q3"] == "it is 3"


def test_an_answer_that_the_server_gives_up_is_no_answer(project: Path, capsys: pytest.CaptureFixture) -> None:
    part = completion("the so")
    part["choices"][0]["finish_reason"] = "abort"
    with serving(lambda number, body: (200, {}, part)) as server:
        assert run(project, server.url) == 2
    assert "gave the answer up midway: abort" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (project / "base.jsonl").exists()


def test_no_line_of_the_http_library_is_in_the_log(project: Path, capsys: pytest.CaptureFixture) -> None:
    logging.getLogger("httpx").setLevel(logging.NOTSET)
    with serving(says_the_number) as server:
        assert run(project, server.url) == 0
    assert "HTTP Request" not in capsys.readouterr().err
