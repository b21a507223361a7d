"""What is asked for and cannot be made here stops Snakemake before its first job, in one line."""

from __future__ import annotations

import pytest

from tests.lib.project import call, make_clone

NOWHERE = {"OLLAMA_HOST": "127.0.0.1:9", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return make_clone(tmp_path_factory.mktemp("early") / "clone")


@pytest.fixture
def ask_for(clone):
    """Switch a target on for one test."""
    config = clone / "config/config.yaml"
    before = config.read_text()

    def switch(key: str) -> None:
        text = config.read_text()
        assert f"  {key}: false\n" in text
        config.write_text(text.replace(f"  {key}: false\n", f"  {key}: true\n"))

    yield switch
    config.write_text(before)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("ollama", "config: deliver.ollama=true, but no Ollama server answers at http://127.0.0.1:9"),
        ("lmdeploy", "config: deliver.lmdeploy=true, but there is no CUDA device here"),
    ],
)
def test_a_run_stops_before_any_job_in_one_line(clone, ask_for, key, said):
    ask_for(key)
    done = call(clone, "snakemake", "--cores", "2", check=False, timeout=60, **NOWHERE)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert [line for line in lines if "config:" in line] == [line for line in lines if line.startswith(said)]
    assert lines[-1].startswith(said)
    assert "Traceback" not in done.stderr
    assert not (clone / "data/raw").exists()
    assert not (clone / "results/index").exists()
    assert not list((clone / ".snakemake").glob("locks/*"))


@pytest.mark.parametrize("words", [["-n"], ["-n", "envs"], ["--cores", "1", "results/config.json"]])
def test_what_needs_no_server_runs_without_one(clone, ask_for, words):
    ask_for("ollama")
    ask_for("lmdeploy")
    done = call(clone, "snakemake", *words, check=False, **NOWHERE)
    said = done.stdout + done.stderr
    assert "no Ollama server" not in said
    assert "no CUDA device" not in said
    if "-n" not in words:
        assert (clone / "results/config.json").is_file()
