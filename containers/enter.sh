#!/bin/sh
# enter COMMAND...: lend the image's environments to the project in the working directory, then run the command.
# An environment that the project already has (made by `make setup`, or lent before) is left alone.
set -eu
for lock in uv.lock envs/*/uv.lock; do
    folder=$(dirname "$lock")
    baked=/opt/embodied-qa/$folder/.venv
    if [ -f "$lock" ] && [ -d "$baked" ] && [ ! -e "$folder/.venv" ]; then
        ln -sfn "$baked" "$folder/.venv"
    fi
done
exec "$@"
