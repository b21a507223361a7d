"""Pure parts of training: run folders, curves, checkpoints, launch lines."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from scripts import train_adapter
from scripts.lib import checkpoints, slurm_node, trainer
from scripts.lib.errors import EqaError
from scripts.lib.llamafactory_args import spread

CONFIG = {"train": {"learning_rate": 1e-4, "dataloader_workers": 0, "seed": 7}, "vision": {"image_max_pixels": 1024}}


def test_run_folder_changes_with_what_changes_the_adapter() -> None:
    def key(devices: int = 1, device: str = "cpu", lock: str = "l", **changes: object) -> str:
        config = CONFIG | {"train": CONFIG["train"] | changes}
        return train_adapter.run_key(config, {"base": "a", "lock": lock}, devices, device)

    assert key() == key(dataloader_workers=8)
    others = [key(learning_rate=2e-4), key(seed=8), key(lock="m"), key(devices=2), key(device="cuda")]
    assert len({key(), *others}) == 6


def test_curve_has_one_point_a_step_after_a_resume() -> None:
    history = [
        {"step": 2, "epoch": 0.5, "loss": 3.0, "learning_rate": 0.1},
        {"step": 4, "epoch": 1.0, "loss": 2.0, "learning_rate": 0.05},
        {"step": 4, "eval_loss": 2.5},
        {"step": 4, "epoch": 1.0, "loss": 2.1, "learning_rate": 0.05},
        {"step": 4, "train_runtime": 3.0},
    ]
    found = train_adapter.curves(history)
    assert [(p["step"], p["loss"]) for p in found["train"]] == [(2, 3.0), (4, 2.1)]
    assert found["val"] == [{"step": 4, "loss": 2.5}]


def test_paths_of_artifacts_are_relative() -> None:
    assert train_adapter.portable(Path("models/base")) == "models/base"
    assert train_adapter.portable(Path("/srv/somebody/models/base")) == "models/base"
    cleaned = train_adapter.clean_adapter_config(
        {"target_modules": ["b", "a"], "base_model_name_or_path": "/x", "r": 8}, "models/base"
    )
    assert cleaned == {"target_modules": ["a", "b"], "base_model_name_or_path": "models/base", "r": 8}


def test_one_node_is_started_alone_and_several_by_srun() -> None:
    alone = train_adapter.launch_command(4, 1, [], "job.json")
    assert "--standalone" in alone
    assert alone[-3:] == ["-m", "scripts.lib.trainer", "job.json"]
    several = train_adapter.launch_command(8, 2, ["n1", "n2"], "job.json")
    assert several[:3] == ["srun", "--nodes=2", "--ntasks=2"]
    assert several[-4:] == ["-m", "scripts.lib.slurm_node", "8", "job.json"]
    with pytest.raises(EqaError, match=r"train\.nodes=2, but this job has 1 node"):
        train_adapter.launch_command(8, 2, ["n1"], "job.json")


def test_a_node_of_several_meets_the_others_at_the_first_by_slurm_s_variables() -> None:
    environ = {"SLURM_JOB_ID": "24005", "SLURM_NNODES": "3", "SLURM_PROCID": "2"}
    command = slurm_node.node_command(environ, 8, "job.json", "10.0.0.7")
    for option in (
        "--nnodes=3",
        "--nproc-per-node=8",
        "--node-rank=2",
        "--master-addr=10.0.0.7",
        "--master-port=20005",
    ):
        assert option in command
    assert command[-3:] == ["-m", "scripts.lib.trainer", "job.json"]
    with pytest.raises(EqaError, match="srun starts this"):
        slurm_node.node_command({"SLURM_JOB_ID": "1"}, 8, "job.json", "10.0.0.7")
    assert slurm_node.job_hosts({}) == []


# ------------------------------------------------------------------------------------------------ checkpoints


def make(run_dir: Path, step: int, best: int | None = None, complete: bool = True) -> Path:
    folder = run_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    (folder / "optimizer.pt").write_bytes(b"o" * step)
    if complete:
        checkpoints.mark_complete(folder)
    return folder


def test_newest_complete_checkpoint_is_taken_and_broken_ones_go(tmp_path: Path) -> None:
    good = make(tmp_path, 5)
    make(tmp_path, 10, complete=False)
    cut = make(tmp_path, 20)
    (cut / "optimizer.pt").write_bytes(b"")
    gone = make(tmp_path, 25)
    (gone / "trainer_state.json").unlink()
    garbled = make(tmp_path, 30)
    (garbled / "complete.json").write_text("[1]")
    (tmp_path / "checkpoint-x").mkdir()
    assert checkpoints.newest_complete(tmp_path, needs_best=True) == good
    assert checkpoints.checkpoints(tmp_path) == [good]


def test_steps_are_numbers_not_words(tmp_path: Path) -> None:
    for step in (100, 25, 9):
        make(tmp_path, step)
    assert checkpoints.newest_complete(tmp_path, needs_best=False).name == "checkpoint-100"


def test_checkpoint_whose_best_is_gone_is_not_resumed_from(tmp_path: Path) -> None:
    make(tmp_path, 5, best=5)
    make(tmp_path, 15, best=10)
    assert checkpoints.newest_complete(tmp_path, needs_best=True).name == "checkpoint-5"
    assert checkpoints.newest_complete(tmp_path / "none", needs_best=True) is None


def test_rotation_leaves_an_older_checkpoint_that_can_be_gone_on_from(tmp_path: Path) -> None:
    """The newest is the best of all; damaged, the one before it is taken with a best of its own."""
    for step, best in ((25, 25), (50, 25), (75, 75)):
        newest = make(tmp_path, step, best=best)
        checkpoints.rotate(tmp_path, 2)
    (newest / "optimizer.pt").write_bytes(b"")
    assert checkpoints.newest_complete(tmp_path, needs_best=True).name == "checkpoint-50"


def test_rotation_keeps_newest_and_best(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        make(tmp_path, step, best=10)
    make(tmp_path, 25, complete=False)
    checkpoints.rotate(tmp_path, 1)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == [
        "checkpoint-10",
        "checkpoint-20",
        "checkpoint-25",
    ]


def test_finished_mark_wants_its_files_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    assert checkpoints.read_finished(tmp_path) is None
    checkpoints.write_finished(tmp_path, ["a"], {"steps": 3})
    assert checkpoints.read_finished(tmp_path)["steps"] == 3
    (tmp_path / "a").write_text("2")
    assert checkpoints.read_finished(tmp_path) is None


def test_lock_tells_who_holds_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inside, leave = threading.Event(), threading.Event()

    def holder() -> None:
        with checkpoints.held(tmp_path / "x.lock", "training"):
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=holder)
    thread.start()
    assert inside.wait(20)
    with (
        pytest.raises(EqaError, match=r"still held by process \d+"),
        checkpoints.held(tmp_path / "x.lock", "training", 0.2),
    ):
        raise AssertionError("held twice")
    leave.set()
    thread.join()
    with checkpoints.held(tmp_path / "x.lock", "training", 5):
        pass


# ------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("changes", "at_once", "words"),
    [
        ({"batch_size": 4}, 4, "train.batch_size=2 with train.gradient_accumulation=2"),
        ({"batch_size": 1}, 1, "train.gradient_checkpointing=true"),
        (
            {"batch_size": 1, "gradient_checkpointing": True, "answer_only_loss": False},
            1,
            "train.answer_only_loss=true",
        ),
        ({"batch_size": 1, "gradient_checkpointing": True, "quantization_bit": 0}, 1, "train.quantization_bit=4"),
        ({"batch_size": 1, "gradient_checkpointing": True}, 1, "vision.image_max_pixels"),
    ],
)
def test_memory_fault_says_what_would_fit(changes: dict, at_once: int, words: str) -> None:
    train = {"batch_size": 1, "gradient_accumulation": 1, "gradient_checkpointing": False, "answer_only_loss": True}
    train |= {"quantization_bit": 4} | changes
    args = {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": 1}
    train |= {"nodes": 1}
    line = trainer.out_of_memory_line(train, args, 14.2, 15.8)
    assert words in line
    assert "14.2 GiB" in line
    assert "15.8 GiB" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("batch", "accumulation", "at_once", "words"),
    [
        # two devices share a batch of four, and two batches of two, alike: half the batch would change nothing
        (
            4,
            1,
            2,
            "train.batch_size=1 with train.gradient_accumulation=4 puts 1 samples on a device at once instead of 2",
        ),
        (
            4,
            2,
            4,
            "train.batch_size=2 with train.gradient_accumulation=4 puts 2 samples on a device at once instead of 4",
        ),
        (
            3,
            2,
            3,
            "train.batch_size=2 with train.gradient_accumulation=3 puts 1 samples on a device at once instead of 3",
        ),
    ],
)
def test_memory_fault_on_two_devices_counts_what_one_of_them_holds(
    batch: int, accumulation: int, at_once: int, words: str
) -> None:
    assert spread(batch, accumulation, 2)[:2] == (2, at_once)
    train = {"batch_size": batch, "gradient_accumulation": accumulation, "nodes": 1}
    args = {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": spread(batch, accumulation, 2)[2]}
    assert words in trainer.out_of_memory_line(train, args, 14.2, 15.8)


def test_memory_is_that_of_the_fullest_device() -> None:
    pytest.importorskip("torch", reason="needs envs/train")
    pytest.importorskip("llamafactory", reason="needs envs/train")
    facts = trainer.machine_facts([{"gpu": 3, "rss": 9}, {"gpu": 5, "rss": 7}])
    assert (facts["devices"], facts["peak_gpu_mb"], facts["peak_gpu_mb_each"], facts["peak_rss_mb"]) == (
        2,
        5,
        [3, 5],
        9,
    )


def test_clock_reads_like_a_clock() -> None:
    assert [trainer.clock(s) for s in (0, 65, 3725)] == ["0:00", "1:05", "1:02:05"]


def test_learning_rate_that_yaml_reads_as_text_is_refused_with_the_right_spelling(root: Path) -> None:
    import yaml

    from scripts.lib.config import check_shape, load_yaml

    text = (root / "config/presets/demo.yaml").read_text(encoding="utf-8")
    schema = load_yaml(root / "config/schema.yaml")
    for wrong, words in (("1e-4", "write it as 0.0001"), ("2e-5", "write it as 2.0e-05"), ("fast", "number is wanted")):
        config = yaml.safe_load(text)
        config["train"]["learning_rate"] = yaml.safe_load(wrong)
        with pytest.raises(EqaError, match=rf"train\.learning_rate=.*{words}"):
            check_shape(config, schema)
