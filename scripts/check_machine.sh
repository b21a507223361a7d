#!/usr/bin/env bash
# What `make` needs from the machine: one line for the first thing that is missing, with its Debian package.
set -u
python=${1:-python3}
fail() { echo "setup: $1" >&2; exit 2; }

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "this is $(uname -s) $(uname -m); Linux x86-64 is wanted (decord has no other wheels)"
command -v git > /dev/null || fail "git is missing; install Debian's package git"
command -v "$python" > /dev/null || fail "$python is missing; install Debian's package python3 (3.11 to 3.13), or name one: make PYTHON=/path/to/python3.12"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
    3.11 | 3.12 | 3.13) ;;
    *) fail "$python is version $version; 3.11, 3.12 or 3.13 is wanted: make PYTHON=/path/to/python3.12" ;;
esac
"$python" -c 'import venv, ensurepip' 2> /dev/null || "$python" -m pip --version > /dev/null 2>&1 ||
    fail "$python has neither venv nor pip; install Debian's package python3-venv (or python3-pip)"
free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
if [ ! -e .tools/ready ] && [ "$free_mb" -lt 12000 ]; then
    fail "$free_mb MB free in $(pwd); the environments need 12000 MB: free some or clone elsewhere"
fi
# no reason to stop: only one verb loads it
"$python" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2> /dev/null ||
    echo "setup: libgomp.so.1 is missing; \`make serve SERVER=llamacpp\` needs Debian's package libgomp1, nothing else does" >&2
exit 0
