"""What the rules ask of a cluster that its executor plugin does not: GPUs in equal parts, and whether Slurm keeps accounts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from scripts.lib.errors import EqaError

SCONTROL_S = 10.0  # patience with a controller that does not answer
NO_ACCOUNTS = ("accounting_storage/none", "(null)", "")  # Slurm up to 22 and from 23 on; unset


def gpus_a_node(said: Mapping[str, object], nodes: int) -> int:
    """GPUs of each node of a training.

    Args:
        said: `set-resources` of train_adapter, by name. `gpu` is the sum over all nodes, 1 a node if left out; where it is
            0, a `gres` of Slurm's ("gpu:a100:8"), which counts for each node, may name GPUs.
        nodes: config `train.nodes`.
    Raises:
        EqaError: no whole number, or one that is not the same for each node.
    """
    gpus = said.get("gpu", nodes)
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 0:
        raise EqaError(f"set-resources: train_adapter:gpu={gpus}: a whole number of GPUs is wanted, 0 for none")
    if gpus % nodes:
        raise EqaError(
            f"set-resources: train_adapter:gpu={gpus} is the sum over train.nodes={nodes} and cannot be shared equally; "
            f"set it to {gpus // nodes * nodes or nodes} or {(gpus // nodes + 1) * nodes}, or change train.nodes"
        )
    named = re.fullmatch(r"gpu(?::[a-zA-Z]\w*)?(?::(\d+))?", str(said.get("gres", "")))
    if not gpus and named:
        return int(named[1] or 1)
    return gpus // nodes


def placement(said: Mapping[str, object], nodes: int, gpus: int) -> dict[str, object]:
    """Resources by which Slurm puts a training on `nodes` nodes with `gpus` GPUs each.

    The plugin's `--gpus` is a sum: Slurm could give seven GPUs of one part-used node and one of another, and the
    processes would not be the same on each.

    Args:
        said: as for `gpus_a_node`; `gpu_model` is repeated where it is set.
        nodes: config `train.nodes`.
        gpus: of each node.
    """
    if nodes == 1:
        return {"nodes": 1} if gpus > 1 else {}
    # a task on each node. "mpi" makes the plugin start the job itself without srun, which the job then uses;
    # tasks_per_gpu=0 keeps it from asking for so many tasks a GPU
    found: dict[str, object] = {"nodes": nodes, "tasks": nodes, "tasks_per_gpu": 0, "mpi": "srun"}
    if gpus:
        found["gres"] = ":".join(["gpu", *([str(said["gpu_model"])] if said.get("gpu_model") else []), str(gpus)])
    return found


def check_accounting(status_command: str | None) -> None:
    """Refuse a run whose jobs would never be seen to end.

    Args:
        status_command: the Slurm plugin's setting; None and "sacct" ask the accounts.
    Raises:
        EqaError: Slurm keeps no accounts; names the setting that does without.
    """
    if status_command == "squeue":
        return
    try:
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=SCONTROL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    found = re.search(r"^AccountingStorageType[ \t]*=[ \t]*(.*?)[ \t]*$", done.stdout, flags=re.MULTILINE)
    if done.returncode == 0 and found and found[1] in NO_ACCOUNTS:
        raise EqaError(
            f"slurm-status-command={status_command or 'sacct'}, but Slurm keeps no accounts here (AccountingStorageType="
            f"{found[1] or 'unset'}) and no job would be seen to end; say `slurm-status-command: squeue` in profiles/slurm"
        )
