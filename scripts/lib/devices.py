"""A GPU for each job of one machine: run a command with devices that no other job of this user holds.   By hand:

    python -m scripts.lib.devices --gpus 1 -- python -m scripts.predict ...

Snakemake counts GPUs (`resources: gpu`) and does not choose them: two jobs on two devices would both take device 0. A
device is taken by a lock on a file named after it; the lock is on the open file, so it ends with the process, killed or
not. What CUDA_VISIBLE_DEVICES names is all there is to choose from; a Slurm job that needs all that Slurm chose for it
keeps the choice.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.errors import EqaError

HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that show nothing
PAUSE_S = 0.3  # between two looks at the locks; jobs of a GPU run for minutes
HELD = "EQA_DEVICE_FDS"  # environment of a job: numbers of the open files that hold its locks


@dataclass(frozen=True)
class Device:
    """One GPU, or one MIG slice.

    Attributes:
        name: what CUDA_VISIBLE_DEVICES takes for it.
        key: name of its lock: equal for all names of the device.
        gpu: number of the GPU, as nvidia-smi counts; slices of one GPU share it.
    """

    name: str
    key: str
    gpu: int = 0


def parse_listing(text: str) -> list[Device]:
    """Devices of `nvidia-smi -L`, in its order; the slices of a GPU instead of the GPU where it is sliced."""
    found: list[Device] = []
    number = 0
    for line in text.splitlines():
        kind = re.match(r"\s*(GPU|MIG)\b(?: (\d+):)?.*UUID: ([\w./-]+)\)", line)
        if not kind:
            continue
        if kind[1] == "GPU":
            number = int(kind[2] or 0)
        elif found and found[-1].name.startswith("GPU-"):
            found.pop()
        found.append(Device(kind[3], kind[3], number))
    return found


def listing() -> list[Device]:
    """Devices of this machine; [] where there is none. By number where only device files tell of them."""
    smi = shutil.which("nvidia-smi")
    if smi:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=30, check=False)
            if done.returncode == 0:
                return parse_listing(done.stdout)
    files = [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]
    return [Device(str(number), str(number), number) for number in range(len(files))]


def visible(environ: Mapping[str, str], machine: Sequence[Device]) -> list[Device]:
    """The devices to choose from.

    Args:
        environ: CUDA_VISIBLE_DEVICES is read: numbers or UUIDs, as CUDA takes them, up to the first that is none. A
            number means a GPU; of one that is sliced CUDA then shows the first slice.
        machine: all devices, in order of their numbers.
    """
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(machine)
    if wanted.strip() in HIDDEN:
        return []
    found: list[Device] = []
    for name in (part.strip() for part in wanted.split(",")):
        if name.isdigit():
            match = [device for device in machine if device.gpu == int(name)]
            if not match:
                break
            device = Device(name, match[0].key, match[0].gpu)
        else:
            # a UUID may be shortened to what tells it from the others
            match = [device for device in machine if device.name.startswith(name)]
            if not name or len(match) != 1:
                break
            device = Device(name, match[0].key, match[0].gpu)
        if device.key not in [other.key for other in found]:
            found.append(device)
    return found


def lock_folder() -> Path:
    """Folder of this user's device locks on this machine, the same for every checkout.

    Raises:
        EqaError: the folder belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir(), f"embodied-qa-devices-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise EqaError(f"{folder}: not a folder of this user; remove it, or set TMPDIR to a folder of your own")
    return folder


def take(devices: Sequence[Device], count: int, folder: Path) -> list[tuple[Device, int]] | None:
    """Lock `count` free devices, all or none.

    Returns:
        Devices and open files, which hold the locks; None where too few are free.
    """
    taken: list[tuple[Device, int]] = []
    for device in devices:
        file = os.open(folder / f"{device.key.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            continue
        taken.append((device, file))
        if len(taken) == count:
            return taken
    for _, file in taken:
        os.close(file)
    return None


def assign(count: int, environ: Mapping[str, str], machine: Sequence[Device], folder: Path) -> dict[str, str]:
    """Environment of a job with `count` devices of its own; waits until so many are free.

    The locks are held by this process, by what it turns into, and by children that get `locks_held()`. A machine without
    a GPU, and a job that wants none, are left as they are; so is a Slurm job that wants no less than what Slurm chose.
    In an allocation for several jobs (`salloc --gpus=2`, Snakemake inside) each takes its own of Slurm's devices.

    Raises:
        EqaError: the job wants more devices than there are.
    """
    environment = dict(environ)
    # the command is no part of the environment that this module runs in
    environment.pop("VIRTUAL_ENV", None)
    devices = visible(environ, machine)
    chosen = "SLURM_JOB_ID" in environ and "CUDA_VISIBLE_DEVICES" in environ
    if count < 1 or not devices or (chosen and count >= len(devices)):
        return environment
    if count > len(devices):
        raise EqaError(
            f"resources: gpu={count}, but {len(devices)} GPU(s) are visible here; ask for no more "
            f"(--set-resources RULE:gpu={len(devices)}) or show more in CUDA_VISIBLE_DEVICES"
        )
    told = False
    while (taken := take(devices, count, folder)) is None:
        if not told:
            print(
                f"devices: waiting for {count} of {len(devices)} GPU(s), others are at work",
                file=sys.stderr,
                flush=True,
            )
            told = True
        time.sleep(PAUSE_S)
    for _, file in taken:
        os.set_inheritable(file, True)
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(device.name for device, _ in taken)
    environment[HELD] = ",".join(str(file) for _, file in taken)
    if any(device.name.isdigit() for device, _ in taken):
        # the locks count as nvidia-smi does; CUDA's own order begins with the fastest
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    print(f"devices: {environment['CUDA_VISIBLE_DEVICES']}", file=sys.stderr, flush=True)
    return environment


def locks_held(environ: Mapping[str, str] | None = None) -> tuple[int, ...]:
    """Open files of this job's device locks, for `pass_fds` of a child that works on the devices.

    Python closes all files in a child otherwise: the child of a killed process would go on without the lock. torchrun
    does so with its ranks, which end with it.

    Args:
        environ: where `assign` wrote their numbers; this process's environment if left out.
    Returns:
        Those that are open here and are locks; () outside of such a job, as on another node of it.
    """
    found = []
    for word in (os.environ if environ is None else environ).get(HELD, "").split(","):
        with contextlib.suppress(OSError, ValueError, EqaError):
            # the number may mean another file where this process was not started by the job itself
            if Path(os.readlink(f"/proc/self/fd/{int(word)}")).parent == lock_folder().resolve():
                found.append(int(word))
    return tuple(found)


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="devices", description=__doc__.splitlines()[0].partition("   ")[0])
    parser.add_argument("--gpus", type=int, required=True, help="devices that the command needs; 0: leave all as it is")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: the command")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Become the command, with its devices."""
    args = build_parser().parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        print("devices: no command; put it after --", file=sys.stderr)
        return 2
    try:
        machine = listing() if args.gpus > 0 else []
        environment = assign(args.gpus, os.environ, machine, lock_folder())
    except EqaError as error:
        print(f"devices: {error}", file=sys.stderr)
        return 2
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    sys.exit(main())
