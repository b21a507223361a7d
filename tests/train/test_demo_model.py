"""The demo's base model: its folder, its tokenizer, its training. No long training: what that gives is a bench's matter."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import make_demo_model
from scripts.lib import demo_model, tiny_qwen
from scripts.lib.files import check_manifest, read_json, sha256_file
from scripts.lib.tokens import PROCESSOR_MIN_PIXELS, image_tokens

ROOT = Path(__file__).resolve().parents[2]
PROMPT = ROOT / "config/prompts/short_answer.txt"


def make(output: Path, seed: int = 7, steps: int = 0, frames: int = 3, max_pixels: int = 24576) -> int:
    config = {
        "model": {"demo_seed": seed, "demo_steps": steps},
        "frames": {"count": frames},
        "vision": {"image_max_pixels": max_pixels, "image_min_pixels": 1024},
    }
    argv = ["--prompt", str(PROMPT), "--config", json.dumps(config), "--output-dir", str(output)]
    return make_demo_model.main(argv)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "base"
    assert make(folder) == 0
    return folder


@pytest.fixture(scope="module")
def processor(base: Path):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(base)


def test_manifest_says_what_the_model_is(base: Path) -> None:
    from transformers import AutoModelForImageTextToText

    manifest = check_manifest(base / "manifest.json")
    model = AutoModelForImageTextToText.from_pretrained(base)
    assert type(model).__name__ == manifest["architecture"] == "Qwen3VLForConditionalGeneration"
    assert manifest["parameters"] == tiny_qwen.count_parameters(model)
    assert 500_000 < manifest["parameters"] < 3_000_000
    assert manifest["processor_min_pixels"] == PROCESSOR_MIN_PIXELS["demo"]
    assert manifest["source"] == "demo"
    assert model.lm_head.weight is model.get_input_embeddings().weight


SMALL_FILES = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
from pathlib import Path
from tests.train.test_demo_model import make
sys.exit(make(Path(sys.argv[1])))
"""


def test_weights_that_do_not_fit_are_one_line_and_no_folder(tmp_path: Path) -> None:
    """safetensors raises its own exception for a full disk; a bound on file sizes gives the same one."""
    command = [sys.executable, "-c", SMALL_FILES, str(tmp_path / "base")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-1500:]
    assert "File too large; free space" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(base: Path, tmp_path: Path) -> None:
    assert make(tmp_path / "again") == 0
    assert make(tmp_path / "other", seed=8) == 0
    names = [*read_json(base / "manifest.json")["files"], "manifest.json"]
    assert [sha256_file(tmp_path / "again" / n) for n in names] == [sha256_file(base / n) for n in names]
    assert sha256_file(tmp_path / "other/model.safetensors") != sha256_file(base / "model.safetensors")
    assert sha256_file(tmp_path / "other/tokenizer.json") == sha256_file(base / "tokenizer.json")


def test_training_is_repeatable_and_changes_every_weight(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name in ("one", "two"):
        assert make(tmp_path / name, steps=4) == 0
    assert sha256_file(tmp_path / "one/model.safetensors") == sha256_file(tmp_path / "two/model.safetensors")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "one/model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if (before[name] == after[name]).all()] == []


@pytest.mark.parametrize(
    "text", ["What color is the sofa?", "  two  blanks\n\nÄrger, 日本語 🪑, e\u0301", "<tool_call> x9"]
)
def test_text_survives_the_tokenizer(processor, text: str) -> None:
    import unicodedata

    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert processor.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_questions_and_answers_are_made_of_whole_words(processor) -> None:
    for word in ("red", " red", " sofa", " bookshelf", " kitchen", "yes", "no"):
        assert len(processor.tokenizer(word, add_special_tokens=False).input_ids) == 1, word


def test_special_tokens_stand_in_qwens_order_and_are_one_id_each(base: Path, processor) -> None:
    tokenizer = processor.tokenizer
    names = (*tiny_qwen.SPECIAL_TOKENS, *tiny_qwen.PLAIN_ADDED_TOKENS)
    ids = tokenizer.convert_tokens_to_ids(list(names))
    assert ids == list(range(ids[0], ids[0] + len(names)))
    assert tokenizer("".join(names), add_special_tokens=False).input_ids == ids
    assert set(tiny_qwen.SPECIAL_TOKENS) == set(tokenizer.all_special_tokens)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    config = read_json(base / "config.json")
    assert config["image_token_id"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert config["text_config"]["vocab_size"] >= len(tokenizer)


def test_pre_tokenizer_is_qwen2s_own(base: Path) -> None:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    split, bytelevel = read_json(base / "tokenizer.json")["pre_tokenizer"]["pretokenizers"]
    assert (split["pattern"]["Regex"], split["behavior"]) == (PRETOKENIZE_REGEX, "Isolated")
    assert (bytelevel["type"], bytelevel["use_regex"], bytelevel["add_prefix_space"]) == ("ByteLevel", False, False)


@pytest.mark.parametrize("size", [(192, 128), (160, 128), (20, 15), (1280, 720), (3000, 16)])
def test_processor_gives_the_tokens_that_the_budget_counts(processor, size: tuple[int, int]) -> None:
    from llamafactory.data.mm_plugin import get_mm_plugin
    from PIL import Image

    plugin = get_mm_plugin("qwen3_vl", image_token="<|image_pad|>", video_token="<|video_pad|>")
    limits = {"image_max_pixels": 24576, "image_min_pixels": 1024}
    pictures = plugin._regularize_images([Image.new("RGB", size)], **limits)["images"]
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    ids = processor(images=pictures, text=[text], return_tensors="pt").input_ids
    assert ids.shape[1] == image_tokens(*size, 24576, 1024, PROCESSOR_MIN_PIXELS["demo"])


def test_chat_template_is_llamafactorys_token_for_token(base: Path, processor) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is the lamp on or off?"},
        {"role": "assistant", "content": "on"},
        {"role": "user", "content": "And the TV?"},
        {"role": "assistant", "content": "off"},
    ]
    tokenizer = processor.tokenizer
    size = len(tokenizer)
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="qwen3_vl_nothink"))
    pairs = template.encode_multiturn(tokenizer, messages[1:], system="Be brief.")
    theirs = [token for pair in pairs for part in pair for token in part]
    ours = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ours == theirs
    assert len(tokenizer) == size  # nothing was missing


def test_pictures_stand_in_the_chat_template_as_llamafactory_puts_them(processor) -> None:
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Where?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\n{picture}{picture}Where?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def room() -> demo_model.Room:
    return demo_model.look_at_room(demo_model.FIRST_SEED, 3, 24576)


@pytest.fixture(scope="module")
def model(base: Path):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(base)
    demo_model.initialise(model, 3)  # attention that attends to something
    return model.eval()


def test_batched_vision_equals_the_towers_own(model, processor, room: demo_model.Room) -> None:
    import torch
    from PIL import Image

    inputs = processor.image_processor([Image.fromarray(p) for p in room.pictures], return_tensors="pt")
    with torch.no_grad():
        tower = model.model.visual(inputs.pixel_values, inputs.image_grid_thw)
        tokens, deep = demo_model.see(model.model.visual, room.pictures)
    torch.testing.assert_close(tokens, tower.pooler_output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(deep[0], tower.deepstack_features[0], atol=1e-4, rtol=1e-4)


def test_branches_see_the_pictures_and_nothing_of_each_other(model, processor, room: demo_model.Room) -> None:
    """The loss over branches is that of each question asked alone, by the whole model's own forward pass."""
    import torch
    from PIL import Image
    from torch.nn import functional

    height, width = room.pictures.shape[1:3]
    lessons = demo_model.Lessons(model, processor.tokenizer, 3, (height // 32, width // 32))
    with torch.no_grad():
        seen = demo_model.see(model.model.visual, room.pictures)
        together = lessons.loss(model, lessons.batch([room], 4, random.Random(5)), seen)
        batch = lessons.batch([room], 4, random.Random(5))
        images = processor.image_processor([Image.fromarray(p) for p in room.pictures], return_tensors="pt")
        rng = random.Random(5)
        summed, count = 0.0, 0
        weights = [demo_model.weight(question) for question, _ in room.questions]
        for question, answer in rng.sample(room.questions, 4, counts=weights):
            asked, said = lessons.branch(question, answer, rng)
            ids = torch.tensor([lessons.head.tolist() + asked + said])
            kinds = (ids == lessons.image).int()
            logits = model(input_ids=ids, mm_token_type_ids=kinds, **images).logits[0, -len(said) - 1 : -1]
            summed += functional.cross_entropy(logits, torch.tensor(said), reduction="sum").item()
            count += len(said)
    assert count == int((batch["labels"] != -100).sum())
    assert together.item() == pytest.approx(summed / count, abs=1e-3)


def test_rooms_are_labelled_with_what_they_show(room: demo_model.Room) -> None:
    from scripts.lib.demo_scenes import make_scene

    scene = make_scene(demo_model.FIRST_SEED)
    words = [word for word, seen in zip(demo_model.label_words(), room.words.any((0, 1)), strict=True) if seen]
    assert {"walls", scene.wall_colour, "floor"} <= set(words)
    assert room.pictures.shape[0] == room.words.shape[0] == 3
    assert room.words.shape[1] == room.pictures.shape[1] * room.pictures.shape[2] // 1024


def test_first_training_sees_no_room_of_the_demo() -> None:
    from scripts.make_demo_episodes import plan_episodes

    seeds = {episode.scene_seed for seed in (0, 7, 99) for episode in plan_episodes(44, seed)}
    assert max(seeds) < demo_model.FIRST_SEED


def test_answers_are_sentences_unless_the_question_names_them() -> None:
    assert demo_model.sentence("What color are the chairs?", "red") == "The chairs are red."
    assert demo_model.sentence("Where is the ball?", "on the sofa") == "It is on the sofa."
    assert demo_model.sentence("Is the lamp on or off?", "off") == "off"
    assert demo_model.sentence("Can I play the piano here?", "no") == "no"


@pytest.mark.parametrize(
    ("steps", "frames"),
    [(1, 8), (2, 1), (600, 8), (37, 4)],
)
def test_lesson_plan_has_a_lesson_for_each_step(steps: int, frames: int) -> None:
    plan = demo_model.lesson_plan(steps, frames)
    assert len(plan) == steps
    assert all(1 <= shown <= frames for _, shown, _ in plan)
    assert steps == 1 or plan[-1][1] == frames  # the last lessons are as the demo asks


def test_newton_schulz_makes_singular_values_alike() -> None:
    import torch

    for shape in ((64, 64), (128, 32), (32, 128)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        values = torch.linalg.svdvals(demo_model.orthogonal(matrix))
        # the first steps lift small values least: all but the smallest few lie in the quintic's band
        assert ((values > 0.5) & (values < 1.3)).float().mean() > 0.9


def test_other_frame_sizes_and_counts_train_too(tmp_path: Path) -> None:
    assert make(tmp_path / "base", steps=2, frames=1, max_pixels=4096) == 0


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "demo_steps", -1),
        ("model", "demo_seed", "7"),
        ("frames", "count", 0),
        ("vision", "image_max_pixels", 8),
    ],
)
def test_bad_config_is_refused_by_key(tmp_path: Path, capsys, section: str, key: str, value: object) -> None:
    config = {
        "model": {"demo_seed": 7, "demo_steps": 0},
        "frames": {"count": 8},
        "vision": {"image_max_pixels": 24576},
    }
    config[section][key] = value
    argv = ["--prompt", str(PROMPT), "--config", json.dumps(config), "--output-dir", str(tmp_path / "base")]
    assert make_demo_model.main(argv) == 2
    assert f"{section}.{key}={value!r}" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("content", "word"), [(None, "does not exist"), (b"\xff", "UTF-8"), (b"no mark", "{question}")]
)
def test_bad_prompt_is_refused_by_name(tmp_path: Path, capsys, content: bytes | None, word: str) -> None:
    prompt = tmp_path / "prompt.txt"
    if content is not None:
        prompt.write_bytes(content)
    config = {"model": {"demo_seed": 7, "demo_steps": 0}, "frames": {"count": 8}, "vision": {"image_max_pixels": 24576}}
    argv = ["--prompt", str(prompt), "--config", json.dumps(config), "--output-dir", str(tmp_path / "base")]
    assert make_demo_model.main(argv) == 2
    error = capsys.readouterr().err
    assert "prompt.txt" in error
    assert word in error
    assert error.count("\n") == 1


def test_an_interrupted_run_leaves_the_old_model(base: Path, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "base"
    shutil.copytree(base, target)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_qwen, "save_base", stop)
    with pytest.raises(KeyboardInterrupt):
        make(target)
    check_manifest(target / "manifest.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


def test_real_shape_has_the_real_models_parameters() -> None:
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    tokenizer = tiny_qwen.make_tokenizer(["What color is the sofa?"] * 3, 400, tiny_qwen.REAL_FIRST_ADDED_ID)
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151655  # as in the real configuration
    assert tokenizer.convert_tokens_to_ids("</think>") == 151668
    assert tokenizer("What color", add_special_tokens=False).input_ids[0] < 400
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(tiny_qwen.real_2b_config(tokenizer))
    assert tiny_qwen.count_parameters(model) == tiny_qwen.REAL_2B_PARAMETERS
