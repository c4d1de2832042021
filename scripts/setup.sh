#!/usr/bin/env bash
# Makes .venv ready for `make demo` and `make test`; says nothing where it already is.
set -euo pipefail
cd "$(dirname "$0")/.."

# Megatron-Core 0.17 and later need Python 3.12. Each candidate is run, since a name on PATH proves
# nothing: a version manager has a shim for every Python that it ever installed, and those of
# versions that are not selected fail.
runs() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, '"$2"'))' >/dev/null 2>&1; }

find_python() {
    local minor candidate roots
    roots="$(pyenv root 2>/dev/null || true)"
    for minor in 12 13; do
        for candidate in ${PYTHON:-} "python3.$minor" "$roots"/versions/3."$minor".*/bin/python python3; do
            if runs "$candidate" "$minor"; then
                "$candidate" -c 'import sys; print(sys.executable)'
                return
            fi
        done
    done
}

# uv from PATH if it runs, else a private one in .tools; nothing is installed outside this folder.
find_uv() {
    local python=$1
    if uv --version >/dev/null 2>&1; then
        echo uv
        return
    fi
    if ! .tools/uv/bin/uv --version >/dev/null 2>&1; then
        if [ -z "$python" ]; then
            runs python3 8 || {
                echo "setup: found neither uv nor a Python that runs; install one of them" >&2
                exit 3
            }
            python=python3
        fi
        rm -rf .tools/uv
        "$python" -m venv .tools/uv
        .tools/uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.6'
    fi
    echo .tools/uv/bin/uv
}

python="$(find_python)"
uv="$(find_uv "$python")"
[ -n "$python" ] || python=3.12 # none here: uv brings one
# Byte code is compiled once, here: importing Megatron compiles 4,000 modules, which takes 15 s in
# every process that finds none, and some environments forbid Python to save it.
UV_PYTHON="$python" "$uv" sync --quiet --all-packages --all-extras --compile-bytecode
