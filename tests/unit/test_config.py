"""The recipe: shape, sense, presets."""

from __future__ import annotations

import copy

import pytest

from scripts.lib import config as library
from scripts.lib.errors import EqaError
from tests.lib.project import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "config/presets").glob("*.yaml"))


def load(name: str = "demo") -> dict:
    return library.load_yaml(ROOT / f"config/presets/{name}.yaml")


def flat(value: object, prefix: str = "") -> dict:
    if not isinstance(value, dict) or prefix == "train.extra.":
        return {prefix.rstrip("."): value}
    return {key: item for name, part in value.items() for key, item in flat(part, f"{prefix}{name}.").items()}


def changed(key: str, value: object, preset: str = "demo") -> dict:
    recipe = copy.deepcopy(load(preset))
    section, _, name = key.partition(".")
    if name:
        recipe[section][name] = value
    else:
        recipe[section] = value
    return recipe


def message(recipe: object) -> str:
    with pytest.raises(EqaError) as caught:
        library.check_config(recipe, ROOT)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_four_presets_are_there():
    assert PRESETS == ["demo", "hm3d-clip", "openeqa-80gb", "openeqa-t4"]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_passes_its_own_check(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    library.check_config(load(name), ROOT)
    assert load(name)["preset"] == name


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_same_keys_in_the_same_order(name):
    assert list(flat(load(name))) == list(flat(load("demo")))


def test_shipped_config_is_the_demo_preset():
    assert (ROOT / "config/config.yaml").read_text() == (ROOT / "config/presets/demo.yaml").read_text()


def test_every_key_has_a_description_in_the_schema():
    schema = library.load_yaml(ROOT / "config/schema.yaml")
    for section, part in schema["properties"].items():
        for name, key in part.get("properties", {section: part}).items():
            assert len(key.get("description", "")) > 10, f"{section}.{name}"


def test_unknown_key_is_named_with_a_near_match():
    text = message(changed("train.lora_rnak", 8))
    assert "train.lora_rnak" in text
    assert "did you mean lora_rank?" in text


def test_unknown_section_is_named():
    assert "unknown key trian" in message(changed("trian", {}))


def test_missing_key_is_named():
    recipe = load()
    del recipe["frames"]["count"]
    assert "missing key frames.count" in message(recipe)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.learning_rate", "5e-5x", ["train.learning_rate", "wrong type", "number"]),
        ("frames.count", 0, ["frames.count=0", ">= 1"]),
        ("frames.count", 8.5, ["frames.count=8.5", "wrong type", "integer"]),
        ("frames.count", True, ["frames.count=true", "wrong type"]),
        ("frames.count", None, ["frames.count=null", "wrong type"]),
        ("train.quantization_method", "bitsandbytes", ["train.quantization_method", "bnb"]),
        ("data.require", "some", ["data.require", '"all", "available"']),
        ("serve.port", 70000, ["serve.port=70000", "<= 65535"]),
        ("train", [], ["train=[]", "wrong type", "object"]),
    ],
)
def test_wrong_value_names_key_value_and_limit(key, value, words):
    text = message(changed(key, value))
    for word in words:
        assert word in text


def test_empty_file_is_refused():
    assert "wrong type" in message(None)


def test_token_budget_over_cutoff_names_the_sum_and_both_ways_out():
    text = message(changed("train.cutoff_len", 256))
    assert "frames.count=8 x 26 + 160 text = 368 tokens > train.cutoff_len=256" in text
    assert "raise train.cutoff_len to 384" in text
    assert "lower vision.image_max_pixels to 10240" in text


def test_budget_message_names_a_cap_that_really_fits():
    recipe = changed("train.cutoff_len", 256)
    recipe["vision"]["image_max_pixels"] = 10240
    library.check_config(recipe, ROOT)


def test_cap_under_the_real_processors_minimum_is_refused():
    text = message(changed("vision.image_max_pixels", 32768, preset="openeqa-80gb"))
    assert "vision.image_max_pixels=32768" in text
    assert "65536" in text


def test_split_that_leaves_no_training_is_refused():
    recipe = changed("split.val", 0.5)
    recipe["split"]["test"] = 0.5
    assert "split.val=0.5 + split.test=0.5" in message(recipe)


def test_no_data_at_all_is_refused():
    assert "data.demo_episodes=0" in message(changed("data.demo_episodes", 0))


def test_judge_without_an_address_is_refused():
    assert "judge.url" in message(changed("deliver.llm_match", True))


@pytest.mark.parametrize("steps", [30, 5], ids=["no multiple", "validations between checkpoints"])
def test_save_steps_off_the_eval_steps_are_refused(steps):
    """transformers takes the best step from all validations, saved or not."""
    recipe = changed("train.eval_steps", steps)
    assert f"train.save_steps=25 is not train.eval_steps={steps}" in message(recipe)


@pytest.mark.parametrize(
    "key", ["score.bootstrap_draws", "frames.shards", "predict.shards", "train.nodes", "score.seed", "split.salts"]
)
def test_a_whole_number_written_as_a_fraction_becomes_one(key):
    section, name = key.split(".")
    recipe = changed(key, 1e4 if name == "bootstrap_draws" else 2.0)
    library.check_config(recipe, ROOT)
    assert type(recipe[section][name]) is int


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["train.learning_rate", "split.val", "merge.tolerance", "train.max_grad_norm"])
def test_a_number_that_is_none_is_refused(key, value):
    with pytest.raises(EqaError, match=rf"{key}=.* is no finite number"):
        library.check_config(changed(key, value), ROOT)


def test_a_seed_that_libraries_do_not_take_is_refused():
    assert "train.seed=1099511627776" in message(changed("train.seed", 2**40))


def test_a_training_of_no_steps_is_refused():
    assert "train.max_steps=0 would train one step" in message(changed("train.max_steps", 0))


def test_unsloth_is_refused_before_any_job_with_the_reason():
    text = message(changed("train.backend", "unsloth"))
    assert "train.backend=unsloth" in text
    assert "No layers to finetune" in text
    assert text.endswith("set train.backend to llamafactory")


def test_unset_variable_in_the_source_is_named(monkeypatch):
    monkeypatch.delenv("OPENEQA_DATA", raising=False)
    with pytest.raises(EqaError, match="OPENEQA_DATA is not set"):
        library.resolve_source("$OPENEQA_DATA")


def test_missing_source_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENEQA_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(EqaError, match="nowhere does not exist"):
        library.resolve_source("$OPENEQA_DATA")


def test_no_source_is_no_folder():
    assert library.resolve_source("") is None


def test_canonical_json_does_not_depend_on_order():
    assert (
        library.canonical_json({"b": 1, "a": [1, 2]})
        == library.canonical_json({"a": [1, 2], "b": 1})
        == '{"a":[1,2],"b":1}'
    )


def test_select_takes_sections_and_single_keys():
    recipe = {"a": {"x": 1, "y": 2}, "b": {"z": 3}, "c": 4}
    assert library.select(recipe, ["a.y", "b", "c"]) == {"a": {"y": 2}, "b": {"z": 3}, "c": 4}


def test_broken_yaml_names_the_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(EqaError, match=r"config\.yaml: line \d"):
        library.load_yaml(path)


@pytest.mark.parametrize(
    ("written", "read"),
    [("2e-05", 2e-5), ("1E3", 1000.0), ("-.5e1", -5.0), ("3.0e-3", 3e-3), ('"2e-05"', "2e-05"), ("2e-05x", "2e-05x")],
)
def test_rate_as_dvc_writes_it_is_a_number_and_in_quotes_is_text(tmp_path, written, read):
    """`dvc exp run -S` writes 2e-05 whatever was typed; Snakemake's reader takes that for text."""
    import yaml

    path = tmp_path / "config.yaml"
    path.write_text(f"train:\n  learning_rate: {written}\n  template: 2e-05\n")
    found = library.load_yaml(path)
    assert found["train"]["learning_rate"] == read
    assert type(found["train"]["learning_rate"]) is type(read)
    config = yaml.safe_load(path.read_text())
    library.mend_numbers(config, found)
    assert config == found
    config["train"]["learning_rate"] = "4e-05"  # an override of the command line is not in the file
    library.mend_numbers(config, found)
    assert config["train"]["learning_rate"] == "4e-05"
