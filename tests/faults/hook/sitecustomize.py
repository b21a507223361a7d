"""Strikes inside the one process that runs a rule's script; in every other Python it does nothing.

The fault matrix puts this folder on PYTHONPATH. An audit hook sees each rename before it happens, so "midway" is a
place in the script and not a guess about the clock: after a file was written whole and before it gets its name.

FAULT_RULE   the rule whose script is struck
FAULT_MODE   count: write how many renames there were and how long it took
             kill_job: SIGKILL to this process
             kill_snakemake: SIGKILL to Snakemake; this process, an orphan now, waits for the next run's job
             meet: be that next job: let the orphan end first, then go on
             input: damage an input that Snakemake has just found right
FAULT_AT     number of the rename, from 1; 0 for FAULT_AFTER_S seconds after the start
FAULT_DIR    folder for what has to be told: fired.json, count.json, snakemake.pid, met, orphan.pid
FAULT_INPUT  file to damage, FAULT_HOW truncated or garbage
"""

import atexit
import json
import os
import random
import signal
import sys
import threading
import time

PATIENCE_S = 60.0


def _tell(name, content):
    path = os.path.join(os.environ["FAULT_DIR"], name)
    with open(path + ".new", "w") as file:
        json.dump(content, file)
    os.rename(path + ".new", path)


def _wait(condition, patience_s=PATIENCE_S):
    end = time.monotonic() + patience_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def _told(name):
    return os.path.exists(os.path.join(os.environ["FAULT_DIR"], name))


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _strike(where):
    mode = os.environ["FAULT_MODE"]
    folder = os.environ["FAULT_DIR"]
    if mode == "kill_job":
        _tell("fired.json", {"where": where})
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "kill_snakemake":
        _tell("orphan.pid", os.getpid())
        _tell("fired.json", {"where": where})
        with open(os.path.join(folder, "snakemake.pid")) as file:
            os.kill(int(file.read()), signal.SIGKILL)
        if os.environ["FAULT_AT"] != "0":
            _wait(lambda: _told("met"))
    elif mode == "meet":
        with open(os.path.join(folder, "orphan.pid")) as file:
            orphan = int(file.read())
        _tell("fired.json", {"where": where, "orphan_alive": _alive(orphan)})
        _tell("met", True)
        _wait(lambda: not _alive(orphan))


def _damage(path, how):
    size = os.path.getsize(path)
    if how == "truncated":
        with open(path, "rb") as file:
            content = file.read(size // 2)
    else:
        content = random.Random(7).randbytes(max(size, 64))
    # as a broken disk or another program would: in place, and with the age that the file had
    before = os.stat(path)
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    _tell("fired.json", {"where": f"{path} {how} at the job's start"})


def _install():
    here = os.getcwd() + os.sep
    started = time.monotonic()
    seen = [0]
    target = int(os.environ.get("FAULT_AT", "0"))
    lock = threading.Lock()

    def hook(event, arguments):
        if event != "os.rename":
            return
        source, name = (os.path.abspath(os.fsdecode(word)) for word in arguments[:2])
        if not name.startswith(here) or "__pycache__" in name or "/.snakemake/" in name:
            return
        with lock:
            seen[0] += 1
            number = seen[0]
        if number == target:
            _strike(f"rename {number}: {os.path.relpath(source)} to {os.path.basename(name)}")

    mode = os.environ["FAULT_MODE"]
    if mode == "input":
        _damage(os.environ["FAULT_INPUT"], os.environ["FAULT_HOW"])
        return
    if mode == "count":
        main = os.getpid()

        def write():
            if os.getpid() == main:
                _tell("count.json", {"renames": seen[0], "seconds": round(time.monotonic() - started, 2)})

        atexit.register(write)
    elif target == 0:
        after_s = float(os.environ["FAULT_AFTER_S"])
        timer = threading.Timer(after_s, _strike, [f"after {after_s:.0f} s, half its time"])
        timer.daemon = True
        timer.start()
    sys.addaudithook(hook)


if f"scripts.{os.environ.get('FAULT_RULE', '')}" in sys.orig_argv[1:4]:
    _install()
