#!/usr/bin/env bash
# Trains every model of the zoo and puts it into abs_model/zoo/weights: some hours on 2 CPU cores.
# Runs land in runs/zoo; what is finished there is not done again, what was cut off goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

runs=runs/zoo
python=.venv/bin/python

# train_and_export NAME CONFIG [EXPORT FLAG...]
train_and_export() {
    local name=$1 config=$2
    shift 2
    $python train.py --config="configs/$config" --workdir="$runs/$name"
    # A training that is interrupted saves and ends well; go no further then.
    [[ -f $runs/$name/run.json ]] || exit 130
    if [[ ! abs_model/zoo/weights/$name.json -nt $runs/$name/run.json ]]; then
        $python scripts/export_pretrained.py "$runs/$name" "$name" --replace "$@"
    fi
}

$python -m abs_model.data --name=mnist
train_and_export cnn cnn.py --binary_name=binary_cnn
train_and_export transfer transfer.py
train_and_export plain madry.py:plain
train_and_export abs abs.py:long --binary_name=binary_abs --num_attacked=100
train_and_export madry madry.py:cpu
train_and_export madry_l2 madry_l2.py:cpu
