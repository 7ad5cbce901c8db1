#!/usr/bin/env bash
# On a CPU, jax.lax.optimization_barrier does not keep XLA from moving work into what follows.
#
# Version:  jax 0.10.2, jaxlib 0.10.2, on CPU.
# Expected: an array that has gone through the barrier is computed once and kept, as the
#           documentation's "prevents the compiler from moving operations across the barrier" says.
# Seen:     the compiled program of eight overlapping slices of barrier(tanh(x)) is one fusion that
#           computes tanh for each slice again. XLA's pass cse_barrier_expander has removed the
#           barrier before fusion: with --xla_disable_hlo_passes=cse_barrier_expander the barrier is
#           left, and the program has two fusions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/barrier.py" <<'PYTHON'
import re

import jax
import jax.numpy as jnp


@jax.jit
def slices(x):
    y = jax.lax.optimization_barrier(jnp.tanh(x))
    return jnp.stack([y[:, i : i + 100] for i in range(8)])


program = slices.lower(jnp.ones((64, 200))).compile().as_text()
print(len(re.findall(r" fusion\(", program)), program.count(" opt-barrier("))
PYTHON
export JAX_PLATFORMS=cpu
found=$("$folder/venv/bin/python" "$folder/barrier.py")
without_pass=$(XLA_FLAGS=--xla_disable_hlo_passes=cse_barrier_expander \
    "$folder/venv/bin/python" "$folder/barrier.py")
echo "fusions and barriers left: $found; without the pass: $without_pass"
[[ $found == "1 0" && $without_pass == "2 1" ]]
