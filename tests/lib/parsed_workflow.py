"""The workflow as Snakemake parses it, told as JSON on stdout.   By hand:

python -m tests.lib.parsed_workflow '{"report": {"frames": "none"}}'

In a process of its own: Snakemake's settings and loggers are global.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.lib.project import ROOT, environment


def outputs(config: dict | None = None) -> list[dict]:
    """Every output of every rule.

    Args:
        config: keys that differ from config/config.yaml.
    Returns:
        [{"rule", "path", "log", "benchmark", "report": {"caption", "category", "labels"} or None}]: the caption is a path
        relative to the project.
    """
    command = [sys.executable, "-m", "tests.lib.parsed_workflow", json.dumps(config or {})]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def parse(config: dict) -> list[dict]:
    """The same, in this process."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

    found = []
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        opened = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(config=config),
            snakefile=ROOT / "Snakefile",
        )
        workflow = opened._workflow
        for rule in workflow.rules:
            for output in rule.output:
                mark = output.flags.get("report")
                found.append(
                    {
                        "rule": rule.name,
                        "path": str(output),
                        "log": [str(name) for name in rule.log],
                        "benchmark": str(rule.benchmark) if rule.benchmark else "",
                        "report": mark
                        and {
                            "caption": Path(mark.caption.get_path_or_uri(secret_free=True))
                            .relative_to(ROOT)
                            .as_posix(),
                            "category": mark.category,
                            "labels": mark.labels,
                        },
                    }
                )
    return found


if __name__ == "__main__":
    print(json.dumps(parse(json.loads(sys.argv[1]))))
