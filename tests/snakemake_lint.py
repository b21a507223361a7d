"""`snakemake --lint` without the one advice that cannot be followed: environments are uv projects, not conda's.

By hand:
    python -m tests.snakemake_lint
"""

from __future__ import annotations

import re
import subprocess
import sys

UNAVOIDABLE = "Specify a conda environment or container"


def remaining_advice(output: str) -> list[str]:
    """Advice lines of `snakemake --lint` but for the unavoidable one."""
    advice = re.findall(r"^    \* (.+?):?$", output, flags=re.MULTILINE)
    return [line for line in advice if not line.startswith(UNAVOIDABLE)]


def main() -> int:
    """Run the linter; 1 with its output when something is left."""
    done = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], capture_output=True, text=True)
    left = remaining_advice(done.stdout + done.stderr)
    if left or ("Lints for" not in done.stdout + done.stderr and done.returncode):
        print(f"snakemake --lint: {len(left)} advice left: {left}; see `snakemake --lint`", file=sys.stderr)
        return 1
    print("snakemake --lint: nothing but the conda advice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
