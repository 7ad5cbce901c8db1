#!/usr/bin/env bash
# Trains every model of the zoo and puts it into abs_model/zoo/weights: some hours on 2 CPU cores.
# Runs land in runs/zoo. Finished runs are skipped, and an interrupted one resumes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

runs=runs/zoo
python=.venv/bin/python

# train RUN CONFIG [TRAINING FLAG...]: trains in runs/zoo/RUN, and exits if interrupted.
train() {
    local run=$runs/$1 config=$2
    shift 2
    $python train.py --config="configs/$config" --workdir="$run" "$@"
    # A training that is interrupted saves and ends well.
    [[ -f $run/run.json ]] || exit 130
}

# add_to_zoo NAME RUN [EXPORT FLAG...]: exports the run unless the zoo has a newer card.
add_to_zoo() {
    local name=$1 run=$runs/$2
    shift 2
    if [[ ! abs_model/zoo/weights/$name.json -nt $run/run.json ]]; then
        $python scripts/export_pretrained.py "$run" "$name" --replace "$@"
    fi
}

$python -m abs_model.data --name=mnist
train cnn cnn.py
add_to_zoo cnn cnn --binary_name=binary_cnn
train transfer transfer.py
add_to_zoo transfer transfer
train plain madry.py:plain
add_to_zoo plain plain
train abs_pretrained abs.py:long --config.train.max_shift=0.5 --config.train.max_rotation=5.0
train abs_fine_tuned abs_fine_tuned.py --config.pretrained="$runs/abs_pretrained"
add_to_zoo abs abs_fine_tuned --binary_name=binary_abs --num_attacked=100
train madry madry.py:cpu
add_to_zoo madry madry
train madry_l2 madry_l2.py:cpu
add_to_zoo madry_l2 madry_l2
