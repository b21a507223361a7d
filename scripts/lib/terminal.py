"""What a person at a terminal sees of a run: a view of all its steps while it goes on, one summary at its end.

Nothing here reads or writes an artifact. Where standard error is no terminal, and for a dry run, Snakemake's own output
stays as it is.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from pathlib import Path

from scripts.summary import summary_lines

OWN_HANDLER = "DefaultStreamHandler"  # snakemake.logging.LoggerManager
LAST_LINES = 3


def wants_view(workflow) -> bool:
    """Whether the run goes to a person's terminal and Snakemake's own words were not asked for.

    Args:
        workflow: Snakemake's workflow. Its plain output stays for a dry run (it tells the reasons), for --quiet, --verbose
            and --printshellcmds, and on a cluster (jobs travel in groups there, which the view does not know).
    """
    settings = workflow.output_settings
    asked = settings.quiet or settings.verbose or settings.printshellcmds or settings.debug_dag or settings.stdout
    return (
        workflow.is_main_process
        and workflow.local_exec
        and not workflow.dryrun
        and not asked
        and sys.stderr.isatty()
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def show_view(workflow) -> None:
    """Put snakemake-logger-plugin-rich in the place of Snakemake's own handler; leave that alone if it is not there."""
    logger = workflow.logger_manager.logger
    own = [handler for handler in logger.handlers if handler.name == OWN_HANDLER]
    if not own:
        return  # --logger chose another
    from snakemake_logger_plugin_rich import LogHandler

    view = LogHandler(workflow.logger_manager.settings, None)
    view.setLevel(logging.INFO)
    for handler in own:
        logger.removeHandler(handler)
    logger.addHandler(view)


class Ending(logging.Handler):
    """Watches Snakemake's records for how the run ends, and tells it once the view is gone.

    Attributes:
        failed: a failed job's name -> its log files; a job that was tried again stands once.
        whole: whether every step was done, or there was nothing to do.
        error: whether Snakemake told of an error.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.failed: dict[str, list[str]] = {}
        self.whole = False
        self.error = False

    def emit(self, record: logging.LogRecord) -> None:
        """Note what a record says of the run's end."""
        event = str(getattr(record, "event", ""))
        self.error |= record.levelno >= logging.ERROR
        if event == "job_error":
            logs = [str(path) for path in getattr(record, "log", None) or []]
            name = " ".join([getattr(record, "rule_name", None) or "a job", *(f"(log {path})" for path in logs)])
            self.failed[name] = logs
        elif event == "progress":
            self.whole = record.done == record.total
        elif record.getMessage().startswith("Nothing to be done"):
            self.whole = True

    def lines(self, root: Path, everything: bool) -> list[str]:
        """What to tell at the end: what failed, wherever it goes; the results, at a terminal, after a whole run.

        Args:
            root: the project's folder.
            everything: whether all targets were asked for.
        """
        if self.failed:
            return failure_lines(self.failed, root)
        if self.error or not self.whole or not everything or not sys.stderr.isatty():
            return []
        return summary_lines(root)


def watch(workflow) -> None:
    """Set up the view, if wanted, and the end. Call once, while the Snakefile is read, before the hooks of others."""
    if not workflow.is_main_process:
        return
    if wants_view(workflow):
        show_view(workflow)
    ending = Ending()
    workflow.logger_manager.logger.addHandler(ending)

    def tell() -> None:
        dag = getattr(workflow, "_dag", None)
        if dag is None or workflow.dryrun:
            return
        everything = {rule.name for rule in dag.targetrules or ()} == {"all"}
        lines = ending.lines(Path(workflow.basedir), everything)
        if lines:
            print("\n".join(lines), file=sys.stderr, flush=True)

    atexit.register(tell)


def failure_lines(failed: dict[str, list[str]], root: Path) -> list[str]:
    """One block a failed job: its name, and the end of its log.

    Args:
        failed: name -> log files, relative to `root`.
        root: the project's folder.
    """
    lines = []
    for name, logs in failed.items():
        lines.append(f"failed: {name}")
        for path in logs:
            try:
                text = (root / path).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            said = [line.rstrip() for line in text.splitlines() if line.strip()]
            lines += [f"    {line}" for line in said[-LAST_LINES:]]
    return lines
