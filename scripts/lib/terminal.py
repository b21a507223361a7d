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
# this one download draws its own bar on the terminal, and is asked for by name only
DRAWS_ITSELF = {"fetch_episodes", "data/raw/download/manifest.json"}


def may_want_view(workflow) -> bool:
    """Whether the run is at a person's terminal and Snakemake's own words were not asked for.

    Args:
        workflow: Snakemake's workflow. --quiet, --verbose and --printshellcmds ask for its own words, a dry run tells the
            reasons in them.
    """
    settings = workflow.output_settings
    asked = settings.quiet or settings.verbose or settings.printshellcmds or settings.debug_dag
    return (
        not (asked or settings.stdout or settings.dryrun) and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    )


class Choice(logging.Handler):
    """Snakemake's own handler, or snakemake-logger-plugin-rich once it is known that jobs run on this machine.

    A Snakefile is read before Snakemake says where jobs will run. On a cluster jobs travel in groups, which the view does
    not know.
    """

    def __init__(self, workflow, own: logging.Handler) -> None:
        super().__init__(own.level)
        self.workflow, self.own = workflow, own
        self.chosen: logging.Handler | None = None
        self.held: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on; the run's opening words wait for the choice."""
        if self.chosen is None:
            if self.workflow.executor_plugin is None:
                if getattr(record, "event", "") == "workflow_started":
                    self.held.append(record)
                else:
                    self.own.handle(record)
                return
            self.choose()
        self.chosen.handle(record)

    def choose(self) -> None:
        """Decide, and say what waited."""
        self.chosen = self.own
        alone = DRAWS_ITSELF & {str(name) for name in self.workflow.dag_settings.targets}
        if self.workflow.local_exec and not self.workflow.dryrun and not alone:
            from snakemake_logger_plugin_rich import LogHandler

            self.chosen = LogHandler(self.workflow.logger_manager.settings, None)
        for record in self.held:
            self.chosen.handle(record)
        self.held.clear()

    def close(self) -> None:
        """End the view: nothing is drawn after it."""
        for record in self.held:
            self.own.handle(record)
        self.held.clear()
        if self.chosen is not None:
            self.chosen.close()
        super().close()


def show_view(workflow) -> None:
    """Put a Choice in the place of Snakemake's own handler; nothing where --logger chose another."""
    logger = workflow.logger_manager.logger
    for own in [handler for handler in logger.handlers if handler.name == OWN_HANDLER]:
        logger.removeHandler(own)
        logger.addHandler(Choice(workflow, own))


class Ending(logging.Handler):
    """Watches Snakemake's records for how the run ends, and tells it once the view is gone.

    Attributes:
        failed: a failed job's name -> its log files; a job that was tried again stands once, and not at all where that
            succeeded.
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
            if self.whole:  # what failed before was tried again and succeeded
                self.failed.clear()
                self.error = False
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
    if may_want_view(workflow):
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
