"""write_model_card and write_config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scripts import write_config, write_model_card
from scripts.lib.files import write_json
from tests.lib import serving_data
from tests.lib.project import ROOT

TEMPLATE = ROOT / "scripts/templates/model_card.md.j2"


def score(value: float) -> dict:
    return {"value": value, "low": value - 5, "high": value + 5}


@pytest.fixture
def results(tmp_path) -> Path:
    results = tmp_path / "results"
    write_json(results / "config.json", serving_data.recipe())
    for model, value in (("base", 20.0), ("tuned", 60.0), ("blind", 15.0), ("majority", 25.0)):
        overall = {"exact_match": score(value), "f1": score(value + 1)}
        category = {"object recognition": {"count": 9, "exact_match": score(value)}}
        write_json(results / f"metrics/{model}.json", {"count": 72, "overall": overall, "by_category": category})
    difference = {"difference": 40.0, "low": 30.0, "high": 50.0, "verdict": "better"}
    write_json(
        results / "metrics/comparison.json", {"pairs": {"tuned_minus_base": {"overall": {"exact_match": difference}}}}
    )
    part = {"questions": 72, "episodes": 9, "spaces": 8, "by_source": {"hm3d-v0": 72}}
    write_json(results / "split/split.json", {"by": "space", "counts": {"train": part, "val": part, "test": part}})
    write_json(results / "sft/token_budget.json", {"cutoff_len": 768, "longest": 701})
    file = {"size": 1, "sha256": "ab" * 32}
    write_json(
        results / "adapter/manifest.json", {"files": {"adapter_model.safetensors": file}, "steps": 90, "best_step": 75}
    )
    write_json(results / "merged/manifest.json", {"files": {"model.safetensors": file}})
    verify = {"largest_logit_difference": 2.5e-6, "tolerance": 1e-4, "sample": 8, "share_identical": 1.0}
    write_json(results / "merged/verify.json", verify)
    for model in ("base", "tuned"):
        write_json(results / f"metrics/llm_match_{model}.json", {"status": "disabled", "key": "deliver.llm_match"})
    write_json(results / "gguf/manifest.json", {"status": "disabled", "key": "deliver.gguf"})
    base(tmp_path, source="demo", name="demo-qwen3-vl", revision="seed 7")
    return results


def base(folder: Path, **keys) -> None:
    keys = {"architecture": "Qwen3VLForConditionalGeneration", "parameters": 3384448, "files": {}, **keys}
    write_json(folder / "base/manifest.json", keys)


def card(results: Path) -> str:
    arguments = ["--results-dir", str(results), "--base", str(results.parent / "base/manifest.json")]
    output = results / "model_card.md"
    assert write_model_card.main([*arguments, "--template", str(TEMPLATE), "--output", str(output)]) == 0
    return output.read_text()


def front_matter(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_card_of_the_demo_says_that_it_is_one(results):
    text = card(results)
    assert "This is the pipeline's demo" in text
    data = front_matter(text)
    assert "base_model" not in data
    assert data["pipeline_tag"] == "image-text-to-text"
    metrics = data["model-index"][0]["results"][0]["metrics"]
    assert {"type": "exact_match", "name": "exact match", "value": 60.0} in metrics


def test_scores_stand_with_their_intervals(results):
    text = card(results)
    assert "| exact match | 20.0 (15.0 to 25.0) | 60.0 (55.0 to 65.0) |" in text
    assert "| 40.0 (30.0 to 50.0) | better |" in text
    assert "| object recognition | 9 | 20.0 (15.0 to 25.0) | 60.0 (55.0 to 65.0) |" in text


@pytest.mark.parametrize(
    ("prompt", "place"),
    [("short_answer", "the prompt `config/prompts/short_answer.txt`"), ("official", "`data/raw/openeqa/prompts/`")],
)
def test_prompt_is_named_where_it_lies(results, prompt, place):
    config = serving_data.recipe()
    config["predict"]["prompt"] = prompt
    write_json(results / "config.json", config)
    text = card(results)
    assert place in text
    assert ("config/prompts/official.txt" in text) is False


def test_every_table_stands_apart_from_the_text_before_it(results):
    lines = card(results).splitlines()
    for number, line in enumerate(lines[1:], 1):
        if line.startswith("|---"):
            assert lines[number - 1].startswith("|")
            assert lines[number - 2] == "", lines[number - 2]


def test_real_data_brings_the_licences(results):
    config = serving_data.recipe()
    config["data"] |= {"source": "$OPENEQA_DATA", "demo_episodes": 0}
    config["preset"] = "openeqa-t4"
    write_json(results / "config.json", config)
    base(results.parent, source="huggingface", name="Qwen/Qwen3-VL-2B-Instruct", revision="abc123")
    text = card(results)
    assert "forbid passing the frames on" in text
    assert "Rendered demo episodes" not in text
    assert front_matter(text)["base_model"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert front_matter(text)["license"] == "apache-2.0"


def with_parts(results: Path, roots: dict[str, str]) -> None:
    """A question in each part, from the demo's rooms ("demo") or the user's data ("source")."""
    config = serving_data.recipe()
    config["data"] |= {"source": "$OPENEQA_DATA"}
    write_json(results / "config.json", config)
    rows = [{"question_id": f"q-{part}", "root": root} for part, root in roots.items()]
    write_json(results / "index/questions.json", {"questions": rows})
    one = {"questions": 1, "episodes": 1, "spaces": 1}
    split = {"by": "space", "counts": dict.fromkeys(roots, one), "parts": {part: [f"q-{part}"] for part in roots}}
    write_json(results / "split/split.json", split)


def test_a_tiny_base_tested_on_real_frames_is_not_called_rendered(results):
    """The preset hm3d-clip: the demo's base and rooms, one real clip as the test part."""
    with_parts(results, {"train": "demo", "val": "demo", "test": "source"})
    text = card(results)
    assert "and the rooms are rendered" not in text
    assert "Test part: real." in text
    assert "| train | rendered | 1 |" in text
    assert "| test | real | 1 |" in text
    assert "Rendered demo episodes: made by this project" in text
    assert "forbid passing the frames on" in text
    dataset = front_matter(text)["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"type": "open-eqa", "name": "Open-EQA"}


def test_a_real_base_tested_on_rendered_rooms_is_called_so(results):
    with_parts(results, {"train": "demo", "val": "demo", "test": "demo"})
    base(results.parent, source="huggingface", name="Qwen/Qwen3-VL-2B-Instruct", revision="abc123")
    text = card(results)
    assert "**Rendered data.**" in text
    assert "forbid passing the frames on" not in text
    assert front_matter(text)["model-index"][0]["results"][0]["dataset"]["type"] == "rendered-demo"


@pytest.mark.parametrize("made", [True, False])
def test_each_way_into_ollama_names_the_versions_that_take_it(results, made):
    if made:
        write_json(results / "gguf/manifest.json", {"files": {"model-f16.gguf": {"size": 1, "sha256": "cd" * 32}}})
    text = card(results)
    assert "Ollama from 0.17.1 to before 0.34.1 takes the merged folder:" in text
    assert "From 0.34.1 on it takes Qwen3-VL as two GGUF files only" in text
    assert ("ollama create qwen3-vl-openeqa -f results/ollama/Modelfile.gguf" in text) == made


def test_memory_of_the_training_is_shown_by_the_name_that_training_gives_it(results):
    write_json(results / "train_log/speed.json", {"device": "cpu", "peak_rss_mb": 1667})
    assert "cpu, 1667 MB of memory" in card(results)


def test_places_on_a_disk_stay_out(results):
    config = serving_data.recipe()
    config["data"]["source"] = "/data/secret-place"
    config["model"]["path"] = "/models/secret-place"
    write_json(results / "config.json", config)
    assert "secret-place" not in card(results)


def test_equal_inputs_give_equal_bytes(results):
    assert card(results) == card(results)


def test_switched_on_parts_are_shown(results):
    write_json(results / "metrics/llm_match_tuned.json", {"overall": {"count": 9, **score(48.0)}})
    write_json(results / "gguf/manifest.json", {"files": {"model-f16.gguf": {"size": 1, "sha256": "cd" * 32}}})
    write_json(results / "train_log/speed.json", {"device": "NVIDIA H100", "samples_per_s": 50.6})
    text = card(results)
    assert "tuned 48.0 (43.0 to 53.0)" in text
    assert f"| gguf/model-f16.gguf | `{'cd' * 32}` |" in text
    assert "NVIDIA H100, 50.6 samples/s" in text


def test_a_leaking_split_is_told(results):
    part = {"questions": 72, "episodes": 9, "spaces": 8}
    write_json(results / "split/split.json", {"by": "question", "counts": {"test": part}})
    assert "**The parts share spaces** (split.by=question)" in card(results)


def test_text_of_others_cannot_break_a_table_or_open_html(results):
    base(results.parent, source="demo", name="x | y\n<script>alert(1)</script>", revision="`r`")
    text = card(results)
    assert "<script>" not in text
    assert "| name | x \\| y &lt;script>alert(1)&lt;/script> |" in text


@pytest.mark.parametrize("name", ["config.json", "metrics/comparison.json", "split/split.json", "merged/verify.json"])
def test_a_missing_part_is_named_and_no_card_is_left(results, capsys, name):
    (results / name).unlink()
    arguments = ["--results-dir", str(results), "--base", str(results.parent / "base/manifest.json")]
    output = results / "model_card.md"
    assert write_model_card.main([*arguments, "--template", str(TEMPLATE), "--output", str(output)]) == 2
    assert name in capsys.readouterr().err
    assert not output.exists()


def test_a_broken_template_is_named(results, capsys, tmp_path):
    broken = tmp_path / "card.j2"
    broken.write_text("{% if %}")
    arguments = ["--results-dir", str(results), "--base", str(results.parent / "base/manifest.json")]
    assert write_model_card.main([*arguments, "--template", str(broken), "--output", str(tmp_path / "c.md")]) == 2
    assert "card.j2: line 1:" in capsys.readouterr().err


def test_recipe_is_written_whole_and_sorted(tmp_path):
    output = tmp_path / "config.json"
    recipe = serving_data.recipe()
    assert write_config.main(["--config", json.dumps(recipe), "--output", str(output)]) == 0
    assert json.loads(output.read_text()) == recipe
    assert list(json.loads(output.read_text())) == sorted(recipe)
