#!/usr/bin/env bash
# Checks the whole program on a GPU, in at most eight minutes. tests/gpu.py does the work and says more.
#
#   bash tests/gpu.sh                          on the first GPU; the numbers are in gpu.json
#   bash tests/gpu.sh --device=cpu             the same parts in small
#
# The variable PYTHON names the interpreter; the default is python.
# Exit codes: 0 all parts passed, 1 some failed, 2 wrong options, 4 no GPU or missing package, 75 interrupted.
set -u
cd "$(dirname "$0")/.." || exit 4
python=${PYTHON:-python}
missing=$("$python" -c 'import matplotlib, numpy, pytest, regex, tiktoken, torch, tqdm' 2>&1) || {
  echo "tests/gpu.sh: error: $python: ${missing##*$'\n'}; install what requirements.txt names" >&2
  exit 4
}
exec "$python" tests/gpu.py "$@"
