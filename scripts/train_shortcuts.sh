#!/usr/bin/env bash
# Trains a CNN, a Madry network and ABS on images with shortcuts of three amplitudes, in
# runs/shortcut. Finished runs are skipped, interrupted ones resume.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

for amplitude in 0.02 0.1 0.3; do
    for model in cnn madry abs; do
        run=runs/shortcut/${model}_$amplitude
        .venv/bin/python train.py --config=configs/shortcut.py:$model --workdir="$run" \
            --config.dataset.shortcut_amplitude=$amplitude "$@"
        # A training that is interrupted saves and ends well; go no further then.
        [[ -f $run/run.json ]] || exit 130
    done
done
