"""scripts.lib.vision_cache: a training that encodes each picture once learns what one that does so in every step learns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs envs/train")

from scripts import train_adapter  # noqa: E402
from scripts.lib import vision_cache  # noqa: E402
from scripts.lib.errors import EqaError  # noqa: E402
from scripts.lib.files import read_json  # noqa: E402
from tests.train import training_data as data  # noqa: E402

SIZES = [(64, 32), (96, 64), (32, 32), (64, 64), (96, 32)]  # tokens: 2, 6, 1, 4, 3


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.make_workspace(tmp_path_factory.mktemp("space"))


@pytest.fixture
def inside(space: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(space)
    return space


@pytest.fixture
def model(space: Path) -> object:
    from transformers import Qwen3VLForConditionalGeneration

    found = Qwen3VLForConditionalGeneration.from_pretrained(space / "models/base").eval()
    return found.requires_grad_(False)


@pytest.fixture
def collator(space: Path) -> SimpleNamespace:
    """What the cache touches of LLaMA-Factory's collator: a template of the whole process, and the processor."""
    from llamafactory.data.template import TEMPLATES
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(space / "models/base")
    processor.image_max_pixels, processor.image_min_pixels = 24576, 1024
    return SimpleNamespace(template=TEMPLATES["qwen3_vl_nothink"], processor=processor)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    from PIL import Image

    names = []
    for number, size in enumerate(SIZES):
        picture = Image.effect_noise(size, 60 + number).convert("RGB")
        picture.save(tmp_path / f"{number}.png")
        names.append(str(tmp_path / f"{number}.png"))
    return names


def use(model: object, collator: object, pictures: list[str], limit: float = 1.0) -> vision_cache.VisionCache | None:
    return vision_cache.use_vision_cache(model, collator, pictures, limit_gb=limit, workers=0, precision="fp32")


def batch(collator: object, pictures: list[str]) -> dict:
    plugin = collator.template.mm_plugin
    return plugin.get_mm_inputs(pictures, [], [], [len(pictures)], [0], [0], [[]], collator.processor)


def test_features_of_any_pictures_in_any_order_are_the_towers_own(model, collator, pictures, monkeypatch) -> None:
    monkeypatch.setattr(vision_cache, "GROUP", 2)  # three groups of different sizes
    order = [pictures[i] for i in (3, 0, 4, 3, 1)]
    plain = batch(collator, order)
    wanted = model.model.get_image_features(**plain, return_dict=True)
    cache = use(model, collator, pictures)
    light = batch(collator, order)
    found = model.model.get_image_features(**light, return_dict=True)
    assert light["pixel_values"].dtype == torch.int64
    assert torch.equal(light["image_grid_thw"], plain["image_grid_thw"])
    assert cache.facts["pictures"] == 5
    assert cache.store.shape[0] == 2 + 6 + 1 + 4 + 3
    assert torch.cat(found.pooler_output).shape == torch.cat(wanted.pooler_output).shape
    assert float((torch.cat(found.pooler_output) - torch.cat(wanted.pooler_output)).abs().max()) < 1e-5
    assert len(found.deepstack_features) == len(wanted.deepstack_features) > 0
    for ours, theirs in zip(found.deepstack_features, wanted.deepstack_features, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5


def test_pictures_of_one_size_attend_at_once_and_each_to_itself(model, collator, tmp_path) -> None:
    from PIL import Image

    names = [str(tmp_path / f"same{number}.png") for number in range(3)]
    for number, name in enumerate(names):
        Image.effect_noise((96, 64), 40 + 30 * number).convert("RGB").save(name)
    wanted = model.model.get_image_features(**batch(collator, names), return_dict=True)
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *a, **k: calls.append(a[0].shape) or attention(*a, **k),
        )
        cache = use(model, collator, names)
    assert {shape[0] for shape in calls} == {3}
    assert len(calls) == len(model.model.visual.blocks)
    found = model.model.get_image_features(**batch(collator, names), return_dict=True)
    assert cache.store.dtype == model.get_input_embeddings().weight.dtype
    assert float((torch.cat(found.pooler_output) - torch.cat(wanted.pooler_output)).abs().max()) < 1e-5
    for ours, theirs in zip(found.deepstack_features, wanted.deepstack_features, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5
    apart = (cache.store[:6] - cache.store[6:12]).abs().max()
    assert float(apart) > 1e-3, "pictures differ, so do their features"


def test_a_picture_that_was_not_kept_is_encoded_as_ever(model, collator, pictures) -> None:
    wanted = model.model.get_image_features(**batch(collator, pictures[3:]), return_dict=True)
    use(model, collator, pictures[:4])
    found = model.model.get_image_features(**batch(collator, pictures[3:]), return_dict=True)
    assert torch.equal(torch.cat(found.pooler_output), torch.cat(wanted.pooler_output))


def test_other_collators_of_the_process_are_left_alone(model, collator, pictures) -> None:
    from llamafactory.data.template import TEMPLATES

    use(model, collator, pictures)
    assert "get_mm_inputs" not in vars(TEMPLATES["qwen3_vl_nothink"].mm_plugin)
    assert collator.template is not TEMPLATES["qwen3_vl_nothink"]


def test_features_over_the_limit_change_nothing(model, collator, pictures) -> None:
    before = collator.template
    assert use(model, collator, pictures, limit=1e-9) is None
    assert collator.template is before
    assert "get_image_features" not in vars(model.model)


def test_training_random_numbers_do_not_depend_on_it(model, collator, pictures) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    use(model, collator, pictures)
    assert torch.equal(torch.rand(3), wanted)


def test_a_vision_part_that_is_trained_is_refused(model, collator, pictures) -> None:
    model.model.visual.merger.linear_fc2.weight.requires_grad_(True)
    with pytest.raises(
        EqaError, match=r"merger\.linear_fc2\.weight of the vision part is trained; set train\.vision_c"
    ):
        use(model, collator, pictures)


def test_a_vision_part_that_changed_meanwhile_trips_the_guard(model, collator, pictures) -> None:
    cache = use(model, collator, pictures)
    vision_cache.check_unchanged(cache, model, collator, "fp32")
    with torch.no_grad():
        model.model.visual.blocks[0].mlp.linear_fc1.weight.mul_(1.5)
        model.model.visual.merger.linear_fc2.weight.mul_(1.5)
    with pytest.raises(EqaError, match="the vision part has changed during training"):
        vision_cache.check_unchanged(cache, model, collator, "fp32")


@pytest.mark.parametrize("mode", ["gradient_checkpointing", "plain"])
def test_adapter_equals_that_of_a_training_without_kept_features(inside: Path, mode: str) -> None:
    """4-bit base, bf16, two epochs: losses and adapter weights to 1e-5; they were bitwise equal when this was written."""
    import safetensors.torch

    found = {}
    for name, limit in (("kept", 1.0), ("each_step", 0)):
        recipe = data.config(vision_cache_gb=limit, gradient_checkpointing=mode != "plain")
        line = data.arguments(recipe, work=f"work_{mode}_{name}", out=f"{mode}_{name}")
        assert train_adapter.main(line) == 0
        folder = inside / f"{mode}_{name}"
        facts = read_json(folder / "train_log/speed.json")["vision_cache"]
        assert (facts["pictures"] if limit else facts) == (20 if limit else None)
        losses = [point["loss"] for point in read_json(folder / "train_log/curves.json")["train"]]
        found[name] = losses, safetensors.torch.load_file(folder / "adapter/adapter_model.safetensors")
    (losses, weights), (others, other_weights) = found["kept"], found["each_step"]
    assert losses == pytest.approx(others, abs=1e-5)
    assert losses[-1] < losses[0]
    assert weights.keys() == other_weights.keys()
    assert max(float((weights[name] - other_weights[name]).abs().max()) for name in weights) < 1e-5
