#!/usr/bin/env bash
# From a fresh clone to a trained and attacked ABS classifier: environment, data, two short trainings,
# evaluation. Everything lands in runs/quickstart; what is finished is not done again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

runs=runs/quickstart
python=.venv/bin/python

$python -m abs_model.data --name=mnist
$python train.py --config=configs/abs.py:quick --workdir=$runs/abs "$@"
$python train.py --config=configs/madry.py:quick --workdir=$runs/madry "$@"

results=$runs/eval/results.json
if grep -qs '"complete": true' $results &&
    [[ $results -nt $runs/abs/run.json && $results -nt $runs/madry/run.json ]]; then
    cat $runs/eval/results.md
else
    $python evaluate.py --workdir=$runs/eval \
        --models=abs=$runs/abs,binary_abs=$runs/abs:binary,madry=$runs/madry
fi
echo "Table and pictures: $runs/eval"
