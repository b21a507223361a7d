# A killed Snakemake leaves a lock; the next one removes it where nobody is at work (scripts/lib/stale_locks.py).
import atexit
from pathlib import Path

from scripts.lib import stale_locks

if workflow.is_main_process:
    stale_locks.tell(Path.cwd())
    atexit.register(stale_locks.forget)
