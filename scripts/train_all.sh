#!/usr/bin/env bash
# Trains every model of the zoo and puts it into abs_model/zoo/weights: some hours on 2 CPU cores.
# Runs land in runs/zoo; what is finished there is not done again, an interrupted run resumes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

runs=runs/zoo
python=.venv/bin/python

# train NAME CONFIG [TRAINING FLAG...]
train() {
    local run=$runs/$1 config=$2
    shift 2
    $python train.py --config="configs/$config" --workdir="$run" "$@"
    # A training that is interrupted saves and ends well; go no further then.
    [[ -f $run/run.json ]] || exit 130
}

# add_to_zoo NAME [EXPORT FLAG...]
add_to_zoo() {
    local name=$1
    shift
    if [[ ! abs_model/zoo/weights/$name.json -nt $runs/$name/run.json ]]; then
        $python scripts/export_pretrained.py "$runs/$name" "$name" --replace "$@"
    fi
}

$python -m abs_model.data --name=mnist
train cnn cnn.py
add_to_zoo cnn --binary_name=binary_cnn
train transfer transfer.py
add_to_zoo transfer
train plain madry.py:plain
add_to_zoo plain
train abs_pretrained abs.py:long --config.train.max_shift=0.5 --config.train.max_rotation=5.0
train abs abs_fine_tuned.py --config.pretrained="$runs/abs_pretrained"
add_to_zoo abs --binary_name=binary_abs --num_attacked=100
train madry madry.py:cpu
add_to_zoo madry
train madry_l2 madry_l2.py:cpu
add_to_zoo madry_l2
