#!/usr/bin/env bash
# The tour of `make demo`. Every command is printed before it runs.
set -euo pipefail
cd "$(dirname "$0")/.."

show() { # show EXPECTED_EXIT_CODE TITLE [VARIABLE=VALUE] COMMAND...
    local expected=$1 title=$2 code=0 setting=() typed=
    shift 2
    if [[ $1 == *=* ]]; then setting=("$1") typed="${1%%=*}=\"${1#*=}\" " && shift; fi
    printf '\n\033[1m%s\033[0m\n$ %s\n\n' "$title" "$typed$*"
    env "${setting[@]}" ".venv/bin/$1" "${@:2}" || code=$?
    if [ "$code" -ne "$expected" ]; then
        echo "demo: exit code $code where $expected was expected" >&2
        exit 1
    fi
}

show 0 "Which blocks are custom here, and who owns them?" \
    registry list --owners
show 0 "A real Nemotron: every layer is Megatron's own" \
    registry resolve recipes/nemotron-3-nano-30b-a3b.toml
show 0 "NAM56R whole: native but for Mamba-3, M2RNN and its n-gram memory, each with its seam and owner" \
    registry resolve recipes/nam56r.toml
show 2 "The same without the seam for Mamba-3: refused, and never Mamba-2 in its place" \
    MEGATRON_SEAMS_ALLOW="m2rnn ngram_hash" registry resolve recipes/nam56r.toml
show 0 "The layers of NAM56R at laptop size, learning real text" \
    registry smoke recipes/nam-mini.toml
