# What a person at a terminal sees: scripts/lib/terminal.py. Included before other hooks: what ends last is told last.
from scripts.lib import terminal

terminal.watch(workflow)
