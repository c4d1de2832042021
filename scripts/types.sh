#!/usr/bin/env bash
# mypy, strictly, over core and every plugin that is there.
set -euo pipefail
cd "$(dirname "$0")/.."
MYPYPATH="$(printf '%s:' core/src plugins/*/src)" .venv/bin/mypy --no-error-summary core/src plugins/*/src
