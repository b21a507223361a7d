"""scripts.train_adapter for real: kill it, corrupt it, run it twice, feed it what must stop it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")

from scripts import merge_adapter, predict, train_adapter, verify_merge
from scripts.lib import checkpoints, trainer
from scripts.lib.files import read_json, sha256_file, write_json, write_manifest
from tests.train import prediction_data
from tests.train import training_data as data

MERGE = {"merge": {"dtype": "float32", "shard_gb": 2, "tolerance": 1e-4, "sample": 3}}
ADAPTER = "out/adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which one training has run to its end, and the same command was given again meanwhile."""
    folder = data.make_workspace(tmp_path_factory.mktemp("space"))
    line = data.arguments(data.config())
    first = data.start(folder, line, "first.log", OMP_NUM_THREADS="2")  # as Snakemake sets it from `threads`
    wait_for(lambda: data.run_dirs(folder / "work"), first)
    second = data.start(folder, data.arguments(data.config(), out="again"), "second.log")
    assert first.wait(timeout=300) == 0, (folder / "first.log").read_text()
    assert second.wait(timeout=300) == 0, (folder / "second.log").read_text()
    return folder


@pytest.fixture
def inside(space: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(space)
    return space


def wait_for(condition: object, process: object, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before what was waited for"
        assert time.monotonic() < end
        time.sleep(0.02)


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def refused(line: list[str], capsys: pytest.CaptureFixture, *words: str, script: object = train_adapter) -> str:
    """The script's one line; it must end with 2 and say `words`."""
    assert script.main(line) == 2
    said = last_line(capsys)
    for word in words:
        assert word in said, said
    return said


def test_same_command_given_twice_at_once_trains_once(space: Path) -> None:
    said = (space / "second.log").read_text()
    assert "waiting for it" in said
    assert "taken over" in said
    assert "step 1/" not in said
    assert data.contents(space / "again/adapter") == data.contents(space / "out/adapter")
    assert len(list((space / "work").glob("*/finished.json"))) == 1


def test_artifact_holds_no_machine_time_or_path(space: Path) -> None:
    for path in sorted((space / "out/adapter").iterdir()):
        content = path.read_bytes()
        for secret in (str(space).encode(), b"/work/", b"/tmp", b"/root", b"/home"):
            assert secret not in content, path
    adapter = read_json(space / "out/adapter/adapter_config.json")
    assert adapter["base_model_name_or_path"] == "models/base"
    assert adapter["target_modules"] == sorted(adapter["target_modules"])
    manifest = read_json(space / "out/adapter/manifest.json")
    assert manifest["base_sha256"] == sha256_file(space / "models/base/manifest.json")
    assert (manifest["steps"], manifest["samples"], manifest["questions"]) == (8, 8, 16)


def test_guards_counted_real_four_bit_layers(space: Path) -> None:
    facts = read_json(space / "out/adapter/guards.json")
    assert facts["linear4bit"] == facts["linear_layers"] == facts["nested"] > 7
    assert facts["types"] == ["nf4"]
    assert facts["adapters_vision_tower"] == facts["adapters_projector"] == 0
    layers = read_json(space / "models/base/config.json")["text_config"]["num_hidden_layers"]
    assert facts["adapters_language_model"] == 7 * layers
    assert facts["train_samples"] == 8
    assert facts["val_samples"] == 4


def test_curves_and_pictures_of_the_training_are_there(space: Path) -> None:
    lines = read_json(space / "out/train_log/curves.json")
    assert [point["step"] for point in lines["train"]] == list(range(1, 9))
    assert [point["step"] for point in lines["val"]] == [2, 4, 6, 8]
    assert lines["train"][-1]["loss"] < lines["train"][0]["loss"]
    speed = read_json(space / "out/train_log/speed.json")
    assert speed["samples_per_s"] > 0
    assert speed["threads"] == 1
    assert speed["versions"]["llamafactory"] == "0.9.5"
    assert (space / "out/train_log/loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((space / "out/train_log/tensorboard").glob("events.*"))


def test_killed_training_with_corrupt_newest_checkpoint_ends_bitwise_equal(space: Path) -> None:
    """kill -9 after the second checkpoint, then cut that one short: the first is resumed from."""
    line = data.arguments(data.config(), work="killed", out="resumed")
    process = data.start(space, line, "killed.log")
    wait_for(lambda: list((space / "killed").glob("*/checkpoint-4/complete.json")), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run_dir = data.run_dirs(space / "killed")[0]
    newest = checkpoints.checkpoints(run_dir)[-1]
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    half = run_dir / "checkpoint-99"
    half.mkdir()
    (half / "trainer_state.json").write_text("{}")

    again = data.start(space, line, "resumed.log")
    assert again.wait(timeout=300) == 0, (space / "resumed.log").read_text()
    said = (space / "resumed.log").read_text()
    assert f"{newest.relative_to(space)} is incomplete or corrupt; removed" in said
    assert "checkpoint-99 is incomplete" in said
    assert "going on from" in said
    assert "from step 0" not in said
    assert data.contents(space / "resumed/adapter") == data.contents(space / "out/adapter")
    assert read_json(space / "resumed/train_log/curves.json") == read_json(space / "out/train_log/curves.json")


def test_a_checkpoint_is_marked_when_everything_in_it_is_written(space: Path) -> None:
    """LLaMA-Factory's callback writes the tokenizer into it after ours was called; a kill then would break the mark."""
    for run_dir in data.run_dirs(space / "work"):
        folders = checkpoints.checkpoints(run_dir)
        assert folders
        for folder in folders:
            times = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
            marked = times.pop("complete.json")
            assert "tokenizer.json" in times
            assert max(times.values()) <= marked, max(times, key=times.get)


TOKENIZING = """
import os, sys, time
from scripts import train_adapter
import datasets
plain = datasets.Dataset.map
def slow(self, function, *rest, **options):
    if "tokenizer" not in str(options.get("desc")):
        return plain(self, function, *rest, **options)
    def wait(batch):
        with open(f"helper.{os.getpid()}", "w"):
            time.sleep(60)
    return plain(self, wait, *rest, **options)
datasets.Dataset.map = slow
sys.exit(train_adapter.main(sys.argv[1:]))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_helpers_that_tokenize_end_with_a_killed_trainer(space: Path) -> None:
    """They hold whatever it had open, the locks of its GPUs among it."""
    line = data.arguments(data.config(preprocessing_workers=2), work="helped", out="helped_out")
    env = os.environ | {"PYTHONPATH": str(data.ROOT), "OMP_NUM_THREADS": "1"}
    with (space / "helped.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", TOKENIZING, *line], cwd=space, env=env, stdout=log, stderr=log
        )
        try:
            wait_for(lambda: len(list(space.glob("helper.*"))) >= 2, process)
            children = {
                int(entry.name)
                for entry in Path("/proc").iterdir()
                if entry.name.isdigit() and started_by(int(entry.name), process.pid)
            }
        finally:
            process.kill()
            process.wait()
    assert len(children) >= 2
    end = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in children if alive(pid)]


def started_by(pid: int, ancestor: int) -> bool:
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
        if pid == ancestor:
            return True
    return False


def test_full_disk_while_a_checkpoint_is_written_costs_only_that_one(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A stand-in for a full disk: the write of one optimizer state fails as the system would let it fail."""
    import torch

    save = torch.save

    def full(value: object, path: object, *rest: object, **options: object) -> None:
        if str(path).endswith("checkpoint-4/optimizer.pt"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(value, path, *rest, **options)

    line = data.arguments(data.config(), work="full", out="full_out")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        refused(line, capsys, "the disk is full", "run again")
    assert not (inside / "full_out").exists()
    run_dir = data.run_dirs(inside / "full")[0]
    assert [path.name for path in checkpoints.checkpoints(run_dir) if checkpoints.is_complete(path)] == ["checkpoint-2"]
    assert train_adapter.main(line) == 0
    assert data.contents(inside / "full_out/adapter") == data.contents(inside / "out/adapter")


def test_disk_that_fills_up_during_training_costs_only_the_checkpoint_being_written(
    space: Path, tmp_path: Path
) -> None:
    """A real full disk: a small one of memory under the checkpoints, filled up after the first."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        line = data.arguments(data.config(), work=str(disk), out="filled")
        process = data.start(space, line, "filled.log")
        wait_for(lambda: list(disk.glob("*/checkpoint-2/complete.json")), process)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        assert process.wait(timeout=300) == 2
        said = (space / "filled.log").read_text().strip().splitlines()[-1]
        assert "the disk is full" in said
        assert "run again" in said
        assert not (space / "filled").exists()
        (run_dir,) = data.run_dirs(disk)
        whole = [path.name for path in checkpoints.checkpoints(run_dir) if checkpoints.is_complete(path)]
        assert whole, "what was complete is still there"
        assert not (run_dir / "finished.json").exists()
        (disk / "filler").unlink()
        again = data.start(space, line, "refilled.log")
        assert again.wait(timeout=300) == 0, (space / "refilled.log").read_text()
        assert f"going on from {run_dir / whole[-1]}" in (space / "refilled.log").read_text()
        assert data.contents(space / "filled/adapter") == data.contents(space / "out/adapter")
        assert read_json(space / "filled/train_log/curves.json") == read_json(space / "out/train_log/curves.json")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_curves_are_whole_after_a_checkpoint_between_two_lines_of_the_curve(inside: Path) -> None:
    """Lines are means of two steps; the third step, which has a checkpoint, ends a line of its own in both trainings."""
    recipe = data.config(logging_steps=2, save_steps=3, eval_steps=3, keep_checkpoints=4)
    assert train_adapter.main(data.arguments(recipe, work="work_between", out="between")) == 0
    run = data.run_dirs(inside / "work_between")[0]
    for step in (6, 8):
        shutil.rmtree(run / f"checkpoint-{step}")
    (run / checkpoints.FINISHED).unlink()
    assert train_adapter.main(data.arguments(recipe, work="work_between", out="between_again")) == 0
    lines, again = (read_json(inside / out / "train_log/curves.json") for out in ("between", "between_again"))
    assert [point["step"] for point in lines["train"]] == [2, 3, 4, 6, 8]
    assert again == lines
    assert data.contents(inside / "between_again/adapter") == data.contents(inside / "between/adapter")


def test_changed_recipe_or_data_never_resumes_a_stale_checkpoint(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """An interrupted training lies in the work folder: only the same command goes on from it."""

    class Started(Exception):
        pass

    seen, tokenized_before = [], []

    def began(job: dict) -> None:
        seen.append(job["args"].get("resume_from_checkpoint"))
        tokenized_before.append(job["args"]["tokenized_path"] == job["tokenized"])
        raise Started

    shutil.copytree(inside / "work", inside / "stale")
    finished = next((inside / "stale").glob("*/finished.json"))
    finished.unlink()
    monkeypatch.setattr(trainer, "train", began)

    def resumed(**changes: object) -> str | None:
        with pytest.raises(Started):
            train_adapter.main(data.arguments(data.config(**changes), work="stale", out="never"))
        return seen[-1]

    newest = checkpoints.newest_complete(finished.parent, needs_best=True)
    assert resumed() == f"stale/{finished.parent.name}/{newest.name}"
    for changes in (
        {"learning_rate": 1e-3},
        {"lora_rank": 4},
        {"seed": 8},
        {"epochs": 3.0},
        {"batch_size": 1},
        {"precision": "fp32"},
        {"extra": {"use_rslora": True}},
    ):
        assert resumed(**changes) is None, changes
        assert tokenized_before[-1] == ("extra" not in changes), (
            "what does not change the tokens is not tokenized again"
        )
    for name in ("results/sft/train.json", "results/frames/manifest.json"):
        file = inside / name
        kept = file.read_text()
        file.write_text(kept + " ")
        assert resumed() is None, name
        assert not tokenized_before[-1]
        file.write_text(kept)
    assert resumed() is not None
    assert not (inside / "never").exists()


def test_training_whose_checkpoints_are_all_damaged_starts_over_beside_its_old_adapter(inside: Path) -> None:
    """LLaMA-Factory ends before the first step where it finds an adapter and no checkpoint."""
    shutil.copytree(inside / "work", inside / "damaged")
    (run_dir,) = data.run_dirs(inside / "damaged")
    (run_dir / "finished.json").unlink()
    for folder in checkpoints.checkpoints(run_dir):
        (folder / "optimizer.pt").write_bytes(b"")
    assert (run_dir / "adapter_model.safetensors").is_file()
    assert train_adapter.main(data.arguments(data.config(), work="damaged", out="damaged_out")) == 0
    assert data.contents(inside / "damaged_out/adapter") == data.contents(inside / "out/adapter")


def test_too_little_gpu_memory_says_what_would_fit(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import torch

    def run_out(job: dict, run_dir: Path) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trainer, "_run", run_out)
    monkeypatch.setattr(trainer, "_gpu_memory", lambda: (14.1, 15.8))
    line = data.arguments(data.config(), work="small", out="small_out")
    refused(line, capsys, "this card has 15.8 GiB", "train.batch_size=1 with train.gradient_accumulation=2")
    assert not (inside / "small_out").exists()


def test_recipe_in_the_artifact_can_be_given_to_llamafactory_by_hand(inside: Path) -> None:
    import yaml
    from llamafactory.train.tuner import run_exp

    recipe = yaml.safe_load((inside / "out/adapter/train.yaml").read_text())
    run_exp(recipe | {"max_steps": 1, "eval_strategy": "no", "do_eval": False, "load_best_model_at_end": False})
    assert (inside / "work/train/by_hand/adapter_model.safetensors").is_file()


def test_finished_training_is_not_entered_again(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(job: dict) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(trainer, "train", never)
    before = data.contents(inside / "out/adapter")
    assert train_adapter.main(data.arguments(data.config())) == 0
    assert data.contents(inside / "out/adapter") == before
    # a worker more changes no adapter; another rate or another seed does
    assert train_adapter.main(data.arguments(data.config(dataloader_workers=2))) == 0
    with pytest.raises(AssertionError, match="trained again"):
        train_adapter.main(data.arguments(data.config(learning_rate=1e-3)))


def test_finished_training_whose_weights_were_damaged_is_not_taken_over(inside: Path) -> None:
    run_dir = next((inside / "work").glob("*/finished.json")).parent
    assert checkpoints.read_finished(run_dir)
    weights = run_dir / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + b"x")
    assert checkpoints.read_finished(run_dir) is None
    weights.write_bytes(kept)


def test_unknown_quantization_method_trips_the_guard(inside: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = data.config(quantization_method="bitsandbytes", learning_rate=2e-3)
    refused(
        data.arguments(recipe, work="w1", out="o1"),
        capsys,
        "0 layers are 4-bit",
        "train.quantization_method must be bnb",
    )
    assert not (inside / "o1").exists()


def test_loss_that_is_no_number_stops_with_its_step(inside: Path, capsys: pytest.CaptureFixture) -> None:
    """A rate that throws the weights out of bf16's range at once, from the fourth step on."""
    recipe = data.config(learning_rate=1e30, lr_scheduler="constant", warmup_ratio=0.0, answer_only_loss=False)
    said = refused(data.arguments(recipe, work="w2", out="o2"), capsys, "Lower train.learning_rate")
    assert " step " in said
    assert not (inside / "o2").exists()
    assert not any(checkpoints.is_complete(folder) for folder in (inside / "w2").glob("*/checkpoint-*"))


@pytest.mark.parametrize(
    "seen_by",
    [{"logging_steps": 1}, {"logging_steps": 8, "eval_steps": 8, "load_best": False}],
    ids=["the log", "the check of a checkpoint just written"],
)
def test_loss_that_stops_being_a_number_keeps_the_last_good_checkpoint(
    inside: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, seen_by: dict
) -> None:
    """One weight becomes infinite before the third step; each step has a checkpoint."""
    import torch

    make = trainer.make_callback

    def poisoned(job: dict, run_dir: Path) -> object:
        watch = make(job, run_dir)
        begin = watch.on_step_begin

        def on_step_begin(args: object, state: object, control: object, model: object = None, **rest: object) -> None:
            begin(args, state, control, **rest)
            if state.global_step == 2:
                with torch.no_grad():
                    next(p for p in model.parameters() if p.requires_grad).fill_(float("inf"))

        watch.on_step_begin = on_step_begin
        return watch

    monkeypatch.setattr(trainer, "make_callback", poisoned)
    work, out = f"w4_{seen_by['logging_steps']}", f"o4_{seen_by['logging_steps']}"
    recipe = data.config(**{"save_steps": 1, "eval_steps": 1} | seen_by)
    said = refused(data.arguments(recipe, work=work, out=out), capsys, "at step 3", "Lower train.learning_rate")
    (run_dir,) = data.run_dirs(inside / work)
    good = run_dir.relative_to(inside) / "checkpoint-2"
    assert f"the last good checkpoint is {good}." in said
    assert checkpoints.newest_complete(run_dir, needs_best=False).name == "checkpoint-2"
    assert not (inside / out).exists()


def test_cut_sample_trips_the_guard(inside: Path, capsys: pytest.CaptureFixture) -> None:
    """A cutoff that LLaMA-Factory obeys in silence: the last answer is gone, the pictures are not."""
    recipe = data.config(cutoff_len=100)
    refused(
        data.arguments(recipe, work="w3", out="o3"), capsys, "guard: train sample 1 (q00-0)", "train.cutoff_len=100"
    )


# ------------------------------------------------------------------------------------------------ bad input


def test_base_that_lacks_its_weights_is_refused(inside: Path, capsys: pytest.CaptureFixture) -> None:
    weights = inside / "models/base/model.safetensors"
    weights.rename(inside / "aside")
    refused(data.arguments(data.config()), capsys, "model.safetensors", "missing")
    weights.write_bytes((inside / "aside").read_bytes()[:-1])
    refused(data.arguments(data.config()), capsys, "model.safetensors", "differs")
    (inside / "aside").replace(weights)


@pytest.mark.parametrize(("part", "words"), [("train", "no training samples"), ("val", "no validation samples")])
def test_empty_part_is_refused(inside: Path, capsys: pytest.CaptureFixture, part: str, words: str) -> None:
    file = inside / f"results/sft/{part}.json"
    kept = file.read_text()
    file.write_text("[]")
    refused(data.arguments(data.config(), work="e", out="e_out"), capsys, f"{part}.json", words, "add episodes")
    file.write_text(kept)
    assert not (inside / "e_out").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("dataset_info.json", b"\x1d\xb4\x00", "not UTF-8"),
        ("dataset_info.json", b"[]", "build_sft"),
        ("dataset_info.json", b'{"openeqa_train": {}}', "openeqa_val"),
        ("train.json", b"[1]", "build_sft"),
        ("train.json", b'[{"question_ids": ["a"], "images": ["../../secret.png"]}]', "may not leave its folder"),
        ("val.json", b'[{"question_ids": ["a"], "images": ["/secret.png"]}]', "may not leave its folder"),
        ("train.json", b'[{"question_ids": ["a"], "images": [1]}]', "build_sft"),
    ],
)
def test_data_that_build_sft_did_not_write_is_refused(
    inside: Path, capsys: pytest.CaptureFixture, name: str, content: bytes, words: str
) -> None:
    file = inside / "results/sft" / name
    kept = file.read_bytes()
    file.write_bytes(content)
    said = refused(data.arguments(data.config(), work="e", out="e_out"), capsys, words)
    assert name in said or "secret.png" in said
    file.write_bytes(kept)
    assert not (inside / "e_out").exists()


def test_learning_rate_given_as_text_by_hand_is_refused(inside: Path, capsys: pytest.CaptureFixture) -> None:
    """LLaMA-Factory's parser takes it, and the optimizer then fails with a traceback."""
    recipe = data.config(learning_rate="2e-5")
    refused(data.arguments(recipe, work="e", out="e_out"), capsys, 'train.learning_rate="2e-5"', "number is wanted")
    assert not (inside / "e_out").exists()


def test_base_without_a_shard_or_of_another_kind_is_refused(inside: Path, capsys: pytest.CaptureFixture) -> None:
    """Hashes made right, so that only the folder's content can tell."""
    base = inside / "other_base"

    def copy(change: Callable[[dict], None]) -> list[str]:
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(inside / "models/base", base)
        config = read_json(base / "config.json")
        change(config)
        write_json(base / "config.json", config)
        write_manifest(base, {"name": "other", "source": "local"})
        line = data.arguments(data.config(), work="e", out="e_out")
        return [word.replace("models/base/", "other_base/") for word in line]

    def sharded(config: dict) -> None:
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
        write_json(base / "model.safetensors.index.json", index)

    refused(copy(sharded), capsys, "model-00002-of-00002.safetensors", "missing")
    other = "Qwen2VLForConditionalGeneration"
    refused(copy(lambda c: c.update(architectures=[other])), capsys, other, "use a Qwen3-VL model")
    refused(copy(lambda c: c.update(quantization_config={"bits": 4})), capsys, "quantized")
    assert not (inside / "e_out").exists()
    assert not list((inside / "e").glob("*")), "no folder of a run either"


@pytest.mark.parametrize(
    "extra",
    [{"save_only_model": True}, {"ignore_data_skip": True}, {"default_system": "You are a pirate."}],
    ids=["no optimizer", "data again", "words that prediction lacks"],
)
def test_extra_that_would_train_something_else_in_silence_is_refused(
    inside: Path, capsys: pytest.CaptureFixture, extra: dict
) -> None:
    refused(data.arguments(data.config(extra=extra), work="x", out="x_out"), capsys, next(iter(extra)))
    assert not (inside / "x_out").exists()


@pytest.mark.parametrize(
    ("changes", "word"), [({"max_steps": 0}, "max_steps"), ({"save_steps": 4, "eval_steps": 2}, "save_steps")]
)
def test_steps_that_cannot_end_well_are_refused_by_hand_too(
    inside: Path, capsys: pytest.CaptureFixture, changes: dict, word: str
) -> None:
    refused(data.arguments(data.config(**changes, load_best=True), work="x", out="x_out"), capsys, f"train.{word}")
    assert not (inside / "x_out").exists()


def test_frames_that_moved_are_tokenized_again(space: Path) -> None:
    """Tokenized rows hold paths of pictures."""
    inputs = dict.fromkeys(("train", "val", "info", "frames", "base", "lock"), "")
    here, there = (train_adapter._tokenized_folder(Path("w"), data.config(), inputs, Path(p)) for p in ("a", "b"))
    assert here != there


def test_typo_in_extra_is_refused_with_near_matches(inside: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = data.config(extra={"use_rslorra": True})
    refused(data.arguments(recipe), capsys, "train.extra.use_rslorra", "use_rslora")


def test_fsdp_of_a_base_of_another_type_is_refused_before_anything_starts(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def never(*rest: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(train_adapter, "visible_devices", lambda: ("cuda", 2))
    monkeypatch.setattr(train_adapter, "_launch", never)
    line = data.arguments(data.config(distributed="fsdp", precision="bf16"), work="f", out="f_out")
    refused(line, capsys, "models/base: its weights are float32", "train.precision=bf16", "train.distributed to ddp")
    assert not list((inside / "f").glob("*")), "no folder of a run either"


def test_half_precision_without_a_gpu_is_refused(inside: Path, capsys: pytest.CaptureFixture) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here, so fp16 works")
    refused(data.arguments(data.config(precision="fp16")), capsys, "train.precision=fp16", "bf16 or fp32")


# ------------------------------------------------------------------------------------------------ merge


@pytest.fixture(scope="module")
def merged(space: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(space)
        assert merge_adapter.main(merge_arguments()) == 0
    return space / "merged"


def merge_arguments(base: str = "models/base", adapter: str = "out/adapter", out: str = "merged") -> list[str]:
    recipe = {"merge": MERGE["merge"], "train": {"template": "qwen3_vl_nothink"}}
    line = ["--base", f"{base}/manifest.json", "--adapter", f"{adapter}/manifest.json", "--config", json.dumps(recipe)]
    return [*line, "--work-dir", "work_merge", "--output-dir", out]


def verify_arguments(merged: str = "merged") -> list[str]:
    recipe = MERGE | {"vision": data.VISION, "predict": {"max_new_tokens": 4}}
    line = [
        "--base",
        "models/base/manifest.json",
        "--adapter",
        "out/adapter/manifest.json",
        "--merged",
        f"{merged}/manifest.json",
    ]
    line += [
        "--test",
        "results/sft/test.json",
        "--frames",
        "results/frames/manifest.json",
        "--config",
        json.dumps(recipe),
    ]
    return [*line, "--output", f"{merged}/verify.json"]


def test_merged_model_answers_as_base_and_adapter(inside: Path, merged: Path) -> None:
    assert verify_merge.main(verify_arguments()) == 0
    found = read_json(merged / "verify.json")
    assert found["largest_logit_difference"] < 1e-4
    assert found["share_identical"] == 1
    assert found["sample"] == 3


def test_merged_folder_is_the_base_with_other_weights(inside: Path, merged: Path) -> None:
    config = read_json(merged / "config.json")
    assert config["text_config"]["rope_theta"] == 5000000
    assert config["text_config"]["rope_scaling"]["mrope_section"] == [12, 10, 10]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert (merged / "preprocessor_config.json").is_file()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        assert (merged / name).read_bytes() == (inside / "models/base" / name).read_bytes()
    for path in sorted(merged.iterdir()):
        assert str(inside).encode() not in path.read_bytes(), path
    manifest = read_json(merged / "manifest.json")
    assert manifest["adapter_sha256"] == sha256_file(inside / "out/adapter/manifest.json")
    assert "verify.json" not in manifest["files"]
    assert sha256_file(merged / "model.safetensors") != sha256_file(inside / "models/base/model.safetensors")


def test_merge_with_one_changed_weight_fails_the_proof(
    inside: Path, merged: Path, capsys: pytest.CaptureFixture
) -> None:
    """Hashes made right again, so only the logits can tell."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = inside / "tampered"
    folder.mkdir()
    for path in merged.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["model.language_model.layers.1.mlp.down_proj.weight"][3, 5] += 2.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    extra = {key: value for key, value in read_json(folder / "manifest.json").items() if key != "files"}
    write_manifest(folder, extra, exclude=("verify.json",))
    write_json(folder / "verify.json", {"stale": True})
    refused(verify_arguments("tampered"), capsys, "logits differ by", "merge.tolerance", script=verify_merge)
    assert not (folder / "verify.json").exists()


def test_merge_refuses_an_adapter_of_another_base(inside: Path, capsys: pytest.CaptureFixture) -> None:
    folder = inside / "stranger"
    folder.mkdir()
    for path in (inside / "out/adapter").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_manifest(folder, {"base_sha256": "0" * 64})
    refused(merge_arguments(adapter="stranger", out="m2"), capsys, "another base model", script=merge_adapter)
    assert not (inside / "m2").exists()


def test_prediction_refuses_an_adapter_of_another_base(inside: Path, capsys: pytest.CaptureFixture) -> None:
    folder = inside / "foreign"
    shutil.copytree(inside / "out/adapter", folder)
    write_manifest(folder, {"base_sha256": "0" * 64})
    line = ["--model", "tuned", "--test", "results/sft/test.json", "--frames", "results/frames/manifest.json"]
    line += ["--base", "models/base/manifest.json", "--adapter", "foreign/manifest.json"]
    line += ["--config", json.dumps(prediction_data.config()), "--work-dir", "p_work"]
    line += ["--output", "p_out/tuned.jsonl", "--meta", "p_out/tuned.meta.json"]
    refused(line, capsys, "foreign/manifest.json", "another base model", script=predict)
    assert not (inside / "p_out").exists()


@pytest.mark.parametrize("limit", [100_000], ids=["a file may not grow"])
def test_merge_that_may_not_write_is_one_line_and_leaves_nothing(space: Path, limit: int) -> None:
    """A limit of a file's size, as a quota would: safetensors tells its number in the text alone."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from llamafactory.train import tuner; from scripts import merge_adapter;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.exit(merge_adapter.main())"
    )
    env = os.environ | {"PYTHONPATH": str(data.ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *merge_arguments(out="m_limited")]
    done = subprocess.run(command, cwd=space, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the disk or a quota is full" in done.stderr.strip().splitlines()[-1]
    assert not (space / "m_limited").exists()


def test_merge_says_what_disk_it_needs(
    inside: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_adapter.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6})())
    refused(merge_arguments(out="m3"), capsys, "GB", "free", script=merge_adapter)
    assert not (inside / "m3").exists()
