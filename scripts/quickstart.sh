#!/usr/bin/env bash
# From a fresh clone to a trained and attacked ABS classifier: environment, data, two short trainings,
# evaluation. Everything lands in runs/quickstart; what is finished is not done again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

runs=runs/quickstart
python=.venv/bin/python

$python -m abs_model.data --name=mnist
for model in abs madry; do
    $python train.py --config=configs/$model.py:quick --workdir=$runs/$model "$@"
    # A training that is interrupted saves and ends well; go no further then.
    [[ -f $runs/$model/run.json ]] || exit 130
done

results=$runs/eval/results.json
if grep -qs '"complete": true' $results &&
    [[ $results -nt $runs/abs/run.json && $results -nt $runs/madry/run.json ]]; then
    cat $runs/eval/results.md
else
    $python evaluate.py --workdir=$runs/eval --models=abs=$runs/abs,madry=$runs/madry
fi
echo "Table and pictures: $runs/eval"
