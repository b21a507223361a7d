"""A real Slurm for tests: slurmctld, munge and two slurmd of Debian's packages, without systemd, cgroups or accounting.

Both nodes are this machine, each with its own slurmd, port and two GPUs that are empty files; the partition `gpu` is the
second node alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scancel", "scontrol")
CONFIG_HOME = Path("/etc/slurm")  # slurmstepd looks here whatever SLURM_CONF says
NODES = ("node1", "node2")
DAEMONS = (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munged")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
# a requeued job waits for its old credential to end
AuthInfo=socket={state}/munge.socket,cred_expire=10
SlurmctldPort={ports[0]}
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/spool-%n
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd-%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
# more CPUs and memory than the machine may have: jobs of the demo are light
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,defer_batch=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# without cgroups this is what ends a job over its memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
# squeue forgets a finished job after this long; without accounting it is the only witness
MinJobAge=3600
# a cancelled job may go at once
KillWait=5
GresTypes=gpu
NodeName=DEFAULT CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=16000
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} Gres=gpu:2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=node2 MaxTime=INFINITE State=UP
"""


class Job(NamedTuple):
    """A line of squeue."""

    id: str
    state: str
    comment: str
    memory: str
    node: str
    limit: str
    partition: str
    cpus: str  # of all nodes
    gres: str  # of each node


def missing() -> str:
    """Why a Slurm cannot be started here; "" if it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not found; install Debian's packages slurm-wlm and munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs as root here; run as root"
    if (CONFIG_HOME / "slurm.conf").is_file() and not (CONFIG_HOME / "slurm.conf").is_symlink():
        return f"{CONFIG_HOME}/slurm.conf is there: this machine has a Slurm of its own"
    return ""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def stop_daemons(state: Path) -> None:
    """End the daemons of one state folder, and wait until they are gone."""
    running: list[int] = []
    for name in DAEMONS:
        with contextlib.suppress(OSError, ValueError):
            pid = int((state / f"{name}.pid").read_text())
            if name.partition("-")[0].encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
                running.append(pid)
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in running) and time.monotonic() < deadline:
        time.sleep(0.1)


class Cluster:
    """Start in `__enter__`, stop in `__exit__`; `environment` is what clients need."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.host = socket.gethostname().split(".")[0]
        self.links: list[Path] = []
        self.environment = {"SLURM_CONF": str(state / "slurm.conf")}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's."""
        return subprocess.run(
            command, env=os.environ | self.environment | {"PATH": PATH}, capture_output=True, text=True, check=False
        )

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for name in ("ctld", *(f"spool-{node}" for node in NODES)):
            (self.state / name).mkdir(parents=True)
        self.state.chmod(0o755)
        conf = SLURM_CONF.format(host=self.host, state=self.state, ports=free_ports(3))
        (self.state / "slurm.conf").write_text(conf)
        (self.state / "gpu0").touch()
        (self.state / "gpu1").touch()
        (self.state / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File={self.state}/gpu[0-1]\n")
        (self.state / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n")
        CONFIG_HOME.mkdir(parents=True, exist_ok=True)
        for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
            link = CONFIG_HOME / name
            if link.is_symlink():  # left by a killed test, with its daemons
                stop_daemons(link.readlink().parent)
                link.unlink()
            link.symlink_to(self.state / name)
            self.links.append(link)
        key = self.state / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        started = self.run(
            "munged", "--force", f"--key-file={key}", f"--socket={self.state}/munge.socket", f"--pid-file={self.state}/munged.pid",
            f"--log-file={self.state}/munged.log", f"--seed-file={self.state}/munged.seed",
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        for command in (["slurmctld"], *(["slurmd", "-N", node] for node in NODES)):
            started = self.run(*command, "-f", str(self.state / "slurm.conf"))
            assert started.returncode == 0, f"{command}: {started.stderr}{started.stdout}"
        deadline = time.monotonic() + 60
        while self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").stdout.split() != ["idle"] * len(NODES):
            assert time.monotonic() < deadline, f"no idle nodes: {self.run('sinfo').stdout} {self.logs()}"
            time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user=root")
        deadline = time.monotonic() + 15
        while self.run("squeue", "-h").stdout.strip() and time.monotonic() < deadline:
            time.sleep(0.3)
        stop_daemons(self.state)
        for link in self.links:
            if link.is_symlink() and link.readlink().parent == self.state:  # a later test may have put its own
                link.unlink()

    def logs(self) -> str:
        """Last lines of the daemons' logs."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.state.glob("*.log")))

    def jobs(self) -> list[Job]:
        """Every job that the controller remembers."""
        listed = self.run("squeue", "-h", "-a", "-t", "all", "-S", "i", "-o", "%i|%T|%k|%m|%N|%l|%P|%C|%b").stdout
        return [Job(*line.split("|")) for line in listed.splitlines()]

    def processes(self, job: str, word: str) -> list[int]:
        """Processes of a job whose command line holds `word`."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                inside = f"SLURM_JOB_ID={job}".encode() in (folder / "environ").read_bytes().split(b"\0")
                if inside and word.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found
