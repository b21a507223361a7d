#!/bin/sh
# enter COMMAND...: lend the image's environments to the project in the working directory, then run the command.
# An environment that the project already has (made by `make setup`, or lent before) is left alone if it works here. One
# that was made on another machine does not, and uv would remove it: better none is touched.
set -eu
for lock in uv.lock envs/*/uv.lock; do
    folder=$(dirname "$lock")
    baked=/opt/embodied-qa/$folder/.venv
    [ -f "$lock" ] || continue
    if [ -e "$folder/.venv" ]; then
        if ! "$folder/.venv/bin/python" -S -c '' > /dev/null 2>&1; then
            echo "enter: $folder/.venv was made outside of this image, its bin/python does not run here; use a clone of its own" >&2
            exit 2
        fi
    elif [ -d "$baked" ]; then
        ln -sfn "$baked" "$folder/.venv"
    fi
done
exec "$@"
