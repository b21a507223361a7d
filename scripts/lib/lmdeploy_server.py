"""LMDeploy's API server with its key taken from the environment, so that no process list shows it. Runs in envs/serve.

Takes the arguments of `lmdeploy serve api_server`; `scripts.serve` starts it.
"""

from __future__ import annotations

import sys

from scripts.lib.addresses import read_key
from scripts.lib.chat_client import KEY_VARIABLE


def main() -> None:
    """Hand over to LMDeploy's own command line."""
    from lmdeploy.cli.entrypoint import run

    key = read_key(KEY_VARIABLE)
    # one word: a key that begins with a dash would be an option of its own, and repeated as one that is not known
    sys.argv = ["lmdeploy", "serve", "api_server", *sys.argv[1:], *([f"--api-keys={key}"] if key else [])]
    run()


if __name__ == "__main__":  # LMDeploy starts further processes that import this module again
    main()
