# What a person at a terminal sees: scripts/lib/terminal.py. Included before other hooks: what ends last is told last.
import sys

if workflow.basedir not in sys.path:
    sys.path.insert(0, workflow.basedir)

from scripts.lib import terminal

terminal.watch(workflow)
