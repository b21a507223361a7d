# Makes Snakemake's records travel with git and DVC: scripts/lib/provenance.py says how, docs/versions.md what for.
# A checkout of another experiment, or a fresh clone after `dvc pull`, then has nothing to do.
import atexit
import os
import sys
from pathlib import Path

if workflow.basedir not in sys.path:
    sys.path.insert(0, workflow.basedir)

from scripts.lib import provenance, versions
from scripts.lib.errors import EqaError

# Folders whose files need not be on this machine (config: data.frames_remote, model.dvc_out).
PROVENANCE_POLICY = provenance.Policy(
    absent_ok={
        **(
            {"results/frames": ("*",)}
            if config.get("data", {}).get("frames_remote")
            else {}
        ),
        **(
            {"models/base": ("*",)}
            if config.get("model", {}).get("dvc_out", "models/base") != "models/base"
            else {}
        ),
    }
)
PROVENANCE_STATE = {"ended": False}


def finish_run(success):
    """Write the lock; after a success let DVC take the results. A failure of either is a failure of the run."""
    PROVENANCE_STATE["ended"] = True
    try:
        cut = (
            workflow.dag_settings.until
            or workflow.dag_settings.omit_from
            or workflow.dag_settings.batch
        )
        complete = (
            success
            and not cut
            and set(workflow.dag.targetrules or ()) == {workflow.get_rule("all")}
        )
        alive = (
            [str(file) for job in workflow.dag.jobs for file in job.output]
            if complete
            else None
        )
        provenance.export(PROVENANCE_POLICY, alive, success)
        if success:
            commits, why_not = versions.dvc_commits()
            missing = [
                str(file)
                for file in workflow.get_rule("all").input
                if not os.path.exists(str(file))
            ]
            if commits and not missing:
                versions.mark_uncommitted()
            # what another program or a broken disk did while jobs ran must not be stored as their result
            changed = [] if missing else provenance.restore(PROVENANCE_POLICY)
            if changed := [path for path in changed if versions.is_stored(path)]:
                raise EqaError(
                    f"{changed[0]} and {len(changed) - 1} more are not what their jobs wrote: nothing is "
                    "committed to DVC; `snakemake` makes them again, or `dvc checkout` brings them back"
                )
            if commits and missing:
                # a single target of a fresh clone: DVC's one stage has all outputs or none
                commits, why_not = False, (
                    f"{missing[0]} and {len(missing) - 1} more results are still to be made: "
                    "DVC takes all results after the first whole run"
                )
            if commits:
                versions.commit_results(PROVENANCE_POLICY)
            elif why_not:
                print(f"provenance: {why_not}", file=sys.stderr)
    except (EqaError, OSError) as error:
        raise WorkflowError(f"provenance: {error}") from None


def finish_interrupted_run():
    """With nothing left to run Snakemake calls no hook: finish here what a killed run left."""
    dag = getattr(workflow, "_dag", None)
    if (
        PROVENANCE_STATE["ended"]
        or dag is None
        or workflow.dryrun
        or len(dag)
        or list(dag.needrun_jobs())
    ):
        return
    if not (versions.PENDING.exists() or provenance.unexported()):
        return
    print(
        "provenance: an earlier run was stopped before its results were recorded; recording them now",
        file=sys.stderr,
    )
    try:
        finish_run(True)
    except WorkflowError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # an exit handler cannot change the exit code otherwise


if workflow.is_main_process:
    versions.link_environments(Path.cwd())
    try:
        provenance.restore(PROVENANCE_POLICY)
    except OSError as error:
        print(
            f"provenance: {error}; Snakemake goes on with its own records",
            file=sys.stderr,
        )
    atexit.register(finish_interrupted_run)


onsuccess:
    finish_run(True)


onerror:
    finish_run(False)
