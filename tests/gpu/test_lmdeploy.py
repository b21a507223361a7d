"""LMDeploy on a CUDA device: offline bench, API server, and its answers against transformers.

The interpreter that runs this must have lmdeploy (envs/serve, or a host that has it by PYTHONPATH). EQA_GPU_MODEL
names a merged Qwen3-VL folder with a manifest, such as one of the 2B shape; without it scripts.make_demo_model makes a
tiny random one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import bench_lmdeploy
from scripts.lib.chat_client import ChatClient, Decoding, sample_message
from scripts.lib.files import read_json, write_json, write_manifest
from scripts.lib.ollama_folder import mend_for_ollama
from scripts.lib.targets import has_cuda
from scripts.lib.tokens import image_tokens, read_processor_limits
from tests.lib import serving_data
from tests.lib.near_ties import TIE, partings
from tests.lib.project import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_cuda(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("lmdeploy") is None, reason="lmdeploy is not installed here"),
]
QUESTIONS = ["What color is the sofa?", "How many lamps are there?", "Is the door open?", "Where is the plant?"]
PORT = 23999


def run_module(module: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **env}
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Manifest of a merged folder."""
    if named := os.environ.get("EQA_GPU_MODEL"):
        return Path(named) / "manifest.json"
    folder = tmp_path_factory.mktemp("model") / "merged"
    config = {"model": {"demo_seed": 7, "demo_steps": 0}, "frames": {"count": 8}}
    config["vision"] = {"image_max_pixels": 24576, "image_min_pixels": 1024}
    words = ["--prompt", "config/prompts/short_answer.txt", "--config", json.dumps(config), "--output-dir", str(folder)]
    done = run_module("scripts.make_demo_model", *words)
    assert done.returncode == 0, done.stderr
    mend_for_ollama(folder)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    serving_data.write_test_part(results, QUESTIONS)
    return results


def test_offline_bench_fills_its_table(model, results, monkeypatch):
    monkeypatch.setattr(bench_lmdeploy, "ROUNDS", {1: 2, 4: 1})
    recipe = serving_data.recipe()
    config = {"deliver": {"lmdeploy": True}, "serve": recipe["serve"], "predict": {"dtype": recipe["predict"]["dtype"]}}
    paths = ["--merged", str(model), "--test", str(results / "sft/test.json")]
    paths += ["--budget", str(results / "sft/token_budget.json"), "--output", str(results / "serve/lmdeploy.json")]
    assert bench_lmdeploy.main([*paths, "--config", json.dumps(config)]) == 0
    record = read_json(results / "serve/lmdeploy.json")
    assert [(row["pictures"], row["batch"]) for row in record["runs"]] == [(1, 1), (1, 4), (8, 1), (8, 4)]
    for row in record["runs"]:
        assert 0 < row["time_to_first_token_s"]["p50"] <= row["latency_s"]["p50"] <= row["latency_s"]["p95"]
        assert row["requests_per_s"] > 0
    one, eight = record["runs"][0], record["runs"][2]
    limits = read_processor_limits(model.parent)
    picture = image_tokens(192, 128, limits.max_pixels, limits.min_pixels, limits.min_pixels, limits.max_pixels)
    assert eight["prompt_tokens_mean"] - one["prompt_tokens_mean"] == 7 * picture
    assert record["memory_mb"]["highest"] >= record["memory_mb"]["loaded"] > record["memory_mb"]["before"]


@pytest.fixture(scope="module")
def served(model, results, tmp_path_factory):
    """Answers of the API server to the test part, and what `ask` prints."""
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    recipe = serving_data.recipe()
    config.write_text(json.dumps(recipe))  # JSON is YAML
    words = ["--server", "lmdeploy", "--config", str(config), "--port", str(PORT), "--background", "true"]
    paths = ["--merged", str(model), "--budget", str(results / "sft/token_budget.json")]
    started = run_module("scripts.serve", *words, *paths)
    assert started.returncode == 0, started.stderr
    url = json.loads(started.stdout)["url"]
    try:
        rows = read_json(results / "sft/test.json")
        with ChatClient("lmdeploy", url, recipe["serve"]["model_name"]) as client:
            client.check()
            messages = [sample_message(row, results / "frames") for row in rows]
            answers = [client.ask([message], Decoding(16)) for message in messages]
        pictures = [str(results / "frames" / name) for name in rows[0]["images"]]
        place = ["--server", "lmdeploy", "--url", url, "--config", str(config)]
        asked = run_module("scripts.ask", *place, "--raw", "--question", QUESTIONS[0], *pictures)
        crowd = run_module("scripts.ask", *place, "--raw", "--question", QUESTIONS[0], *(pictures * 9))
    finally:
        stopped = run_module("scripts.serve", "--server", "lmdeploy", "--stop")
    assert json.loads(stopped.stdout)["clean"]
    return {"answers": answers, "asked": asked, "crowd": crowd, "rows": rows}


def test_ask_prints_what_the_server_answers(served):
    assert served["asked"].returncode == 0, served["asked"].stderr
    assert served["asked"].stdout.rstrip("\n") == served["answers"][0].rstrip("\n")


def test_too_many_pictures_are_one_line(served):
    assert served["crowd"].returncode == 2
    assert "72 pictures do not fit its context" in served["crowd"].stderr


def test_answers_are_those_of_transformers_up_to_near_ties(model, results, served):
    requests = [
        {"text": text, "images": [str(results / "frames" / n) for n in row["images"]], "max_new_tokens": 16}
        for row, text in zip(served["rows"], QUESTIONS, strict=True)
    ]
    write_json(results / "requests.json", requests)
    paths = ["--requests", str(results / "requests.json"), "--output", str(results / "answers.json")]
    done = run_module("tests.lib.serving_reference", "--model", str(model.parent), "--device", "cuda", *paths)
    assert done.returncode == 0, done.stderr
    parted = partings(served["answers"], read_json(results / "answers.json"))
    print(
        f"API server: {len(QUESTIONS) - len(parted)} of {len(QUESTIONS)} answers equal float32's; others part at {parted}"
    )
    assert all(lead < TIE for _, lead in parted), parted
