#!/usr/bin/env bash
# mypy, strictly: core, every plugin that is there, and the public surface as a caller sees it.
set -euo pipefail
cd "$(dirname "$0")/.."
MYPYPATH="$(printf '%s:' core/src plugins/*/src)" .venv/bin/mypy --no-error-summary core/src plugins/*/src tests/typing
