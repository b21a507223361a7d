"""`dvc commit -f` of everything but some outputs, whose entries in dvc.lock stay as they are.

`dvc commit` refuses where one output is missing, and would record a folder that holds only its manifest as the new
truth. In a clone without the folders that are not published, neither is wanted.   By hand:
    python -m scripts.lib.dvc_commit_present results/frames
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def commit_present(absent: Sequence[str]) -> None:
    """Save and commit all outputs of the stages except `absent` (paths as in dvc.yaml, or folders above them)."""
    from dvc.repo import Repo, lock_repo

    with Repo() as repo, lock_repo(repo):
        for stage in repo.index.stages:
            known = {out: out.hash_info for out in stage.outs if _is_absent(str(out), absent)}
            all_outs = stage.outs
            stage.outs = [out for out in all_outs if out not in known]
            stage.save()
            stage.commit()
            stage.outs = all_outs
            stage.dvcfile.dump_stages([stage], update_pipeline=False)


def _is_absent(path: str, absent: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in absent)


def main(argv: Sequence[str] | None = None) -> int:
    """Commit; DVC's own error in one line."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    try:
        commit_present(sys.argv[1:] if argv is None else argv)
    except (DvcException, LockError, OSError) as error:
        print(f"dvc_commit_present: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
