#!/usr/bin/env bash
# Table 1 with one command: environment, data, all attacks on the shipped models, tables and pictures,
# and the page report.html, in runs/table1. Rerunning resumes; flags go to evaluate.py. VARIANT chooses
# the variant of configs/table1.py: cpu, 100 images, takes hours on 2 CPU cores; full is for a GPU.
#
#   scripts/reproduce_table1.sh
#   VARIANT=smoke scripts/reproduce_table1.sh --wandb=off
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

for flag in "$@"; do
    if [[ $flag == --workdir* || $flag == --shard* ]]; then
        echo "$flag can't be given here: the page is made of all of $PWD/runs/table1" >&2
        exit 2
    fi
done

variant=${VARIANT:-cpu}
runs=runs/table1
[[ $variant == cpu ]] || runs=runs/table1_$variant
python=.venv/bin/python

$python -m abs_model.data --name=mnist
$python evaluate.py --config="configs/table1.py:$variant" --workdir="$runs" \
    --models=cnn,binary_cnn,nearest_neighbor,madry,binary_abs,abs "$@"
$python scripts/report.py "$runs"
