#!/bin/sh
# make-venv.sh PYTHON FOLDER: make a virtual environment, or say what is missing.
# Debian splits venv off into a package of its own; as root we install it, else we name it.
set -eu
folder=$2
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=
for candidate in "$1" python3.13 python3.12 python3.11; do
    if new_enough "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "sessiontree needs Python 3.11 or newer: install it, or name one with 'make PYTHON=/path/to/python3'." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
fi
if ! "$python" -m venv "$folder"; then
    rm -rf "$folder"
    echo "Python's venv module is missing: on Debian or Ubuntu run 'apt-get install python3-venv'." >&2
    exit 1
fi
