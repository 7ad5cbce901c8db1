#!/usr/bin/env bash
# Linters, type checker and the whole test suite. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install tests/requirements.txt

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# One process per core, of a whole file each, because files share what they train and compile.
.venv/bin/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile "$@"
