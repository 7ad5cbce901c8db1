#!/usr/bin/env bash
# From a fresh clone to a table of attacked classifiers: environment, data, a short training of ABS,
# and its evaluation beside the pretrained models. Everything lands in runs/quickstart; what is
# finished is not done again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

runs=runs/quickstart
python=.venv/bin/python

$python -m abs_model.data --name=mnist
$python train.py --config=configs/abs.py:quick --workdir=$runs/quick_abs "$@"
# A training that is interrupted saves and ends well; go no further then.
[[ -f $runs/quick_abs/run.json ]] || exit 130

results=$runs/eval/results.json
models="abs_model/zoo/weights $runs/quick_abs/run.json"
if grep -qs '"complete": true' $results && [[ -z $(find $models -newer $results) ]]; then
    cat $runs/eval/results.md
else
    pretrained=abs,binary_abs,madry,cnn,binary_cnn,nearest_neighbor
    $python evaluate.py --config=configs/pgd.py --workdir=$runs/eval \
        --models=$pretrained,$runs/quick_abs
fi
echo "Table and pictures: $runs/eval"
