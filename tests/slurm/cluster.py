"""A real Slurm of one node for tests: slurmctld, slurmd and munge of Debian's packages, without systemd or cgroups."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scancel")
CONFIG_HOME = Path("/etc/slurm")  # slurmstepd looks here whatever SLURM_CONF says

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/spool
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd.log
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
MinJobAge=900
# a cancelled job may go at once
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why a Slurm cannot be started here; "" if it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name) and not Path("/usr/sbin", name).exists()]
    if absent:
        return f"{', '.join(absent)} not found; install Debian's packages slurm-wlm and munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs as root here; run as root"
    return ""


class Cluster:
    """Start in `__enter__`, stop in `__exit__`; `environment` is what clients need."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.host = socket.gethostname().split(".")[0]
        self.links: list[Path] = []
        self.environment = {"SLURM_CONF": str(state / "slurm.conf")}

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        return subprocess.run(
            command, env=os.environ | self.environment | {"PATH": path}, capture_output=True, text=True
        )

    def __enter__(self) -> Cluster:
        for name in ("ctld", "spool"):
            (self.state / name).mkdir(parents=True)
        self.state.chmod(0o755)
        (self.state / "slurm.conf").write_text(SLURM_CONF.format(host=self.host, state=self.state))
        (self.state / "gpu0").touch()
        (self.state / "gpu1").touch()
        (self.state / "gres.conf").write_text(f"NodeName={self.host} Name=gpu File={self.state}/gpu[0-1]\n")
        (self.state / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n")
        CONFIG_HOME.mkdir(parents=True, exist_ok=True)
        for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
            link = CONFIG_HOME / name
            if link.is_symlink():
                link.unlink()  # left by a killed test
            if not link.exists():
                link.symlink_to(self.state / name)
                self.links.append(link)
        key = self.state / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        started = self._run(
            "munged", "--force", f"--key-file={key}", f"--socket={self.state}/munge.socket", f"--pid-file={self.state}/munged.pid",
            f"--log-file={self.state}/munged.log", f"--seed-file={self.state}/munged.seed",
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        for command in (["slurmctld", "-f"], ["slurmd", "-N", self.host, "-f"]):
            started = self._run(*command, str(self.state / "slurm.conf"))
            assert started.returncode == 0, f"{command}: {started.stderr}{started.stdout}"
        deadline = time.monotonic() + 60
        while "idle" not in self._run("sinfo", "-h", "-o", "%T").stdout:
            assert time.monotonic() < deadline, (
                f"no idle node: {self._run('sinfo').stdout} {self.log('slurmctld')} {self.log('slurmd')}"
            )
            time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        self._run("scancel", "--user=root")
        for name in ("slurmd", "slurmctld", "munged"):
            try:
                os.kill(int((self.state / f"{name}.pid").read_text()), signal.SIGTERM)
            except (OSError, ValueError):
                continue
        for link in self.links:
            link.unlink(missing_ok=True)

    def log(self, name: str) -> str:
        """Last lines of a daemon's log."""
        path = self.state / f"{name}.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def jobs(self) -> list[tuple[str, str, str, str]]:
        """(id, state, comment, requested memory) of every job that the controller remembers."""
        listed = self._run("squeue", "-h", "-a", "-t", "all", "-o", "%i|%T|%k|%m").stdout
        return [tuple(line.split("|")) for line in listed.splitlines()]

    def cancel(self, job: str) -> None:
        """`scancel` of one job."""
        self._run("scancel", job)
