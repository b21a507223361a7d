"""One node's part of a training on several nodes of a Slurm job. srun starts it once a node:

    srun --nodes=2 --ntasks=2 --ntasks-per-node=1 python -m scripts.lib.slurm_node 8 work/train/HASH/job.json

Who the others are is in the job's own variables: number of nodes, this node's rank, and the first node, whose address
Slurm knows. It turns into torchrun.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from scripts.lib.errors import EqaError

FIRST_PORT = 20000  # ports of rendezvous lie from here on, by job id, below those that Linux gives out (32768)
PORTS = 12000


def torchrun(nodes: int, devices: int) -> list[str]:
    """The launcher's command up to where the nodes meet.

    Args:
        nodes: machines.
        devices: processes a machine.
    """
    run = [sys.executable, "-m", "torch.distributed.run"]
    return [*run, f"--nnodes={nodes}", f"--nproc-per-node={devices}", "--max-restarts=0"]


def job_hosts(environ: Mapping[str, str]) -> list[str]:
    """Names of this Slurm job's nodes, in order; [] outside of one, or where Slurm's programs are missing."""
    job = environ.get("SLURM_JOB_ID", "")
    nodes = environ.get("SLURM_JOB_NODELIST") or (
        _told("squeue", "--noheader", "--jobs", job, "--format=%N") if job else ""
    )
    return _told("scontrol", "show", "hostnames", nodes).split() if nodes else []


def address(node: str) -> str:
    """The address under which Slurm reaches a node: its name need not be a host's."""
    found = re.search(r"\bNodeAddr=(\S+)", _told("scontrol", "--oneliner", "show", "node", node))
    return found[1] if found else node


def _told(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def node_command(environ: Mapping[str, str], devices: int, job: str, first: str) -> list[str]:
    """torchrun for this node.

    Args:
        environ: Slurm's variables of a task: SLURM_JOB_ID, SLURM_NNODES, SLURM_PROCID.
        devices: processes a node.
        job: path of job.json.
        first: address of the first node.
    Raises:
        EqaError: not started by srun.
    """
    try:
        number, nodes, rank = (int(environ[name]) for name in ("SLURM_JOB_ID", "SLURM_NNODES", "SLURM_PROCID"))
    except (KeyError, ValueError):
        raise EqaError("SLURM_JOB_ID, SLURM_NNODES, SLURM_PROCID: not set; srun starts this, once a node") from None
    meet = [f"--node-rank={rank}", f"--master-addr={first}", f"--master-port={FIRST_PORT + number % PORTS}"]
    return [*torchrun(nodes, devices), *meet, "-m", "scripts.lib.trainer", job]


def main(argv: Sequence[str] | None = None) -> int:
    """Become torchrun."""
    devices, job = sys.argv[1:] if argv is None else argv
    try:
        hosts = job_hosts(os.environ)
        command = node_command(os.environ, int(devices), job, address(hosts[0]) if hosts else "")
    except EqaError as error:
        print(f"slurm_node: {error}", file=sys.stderr)
        return 2
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
