#!/usr/bin/env bash
# jax.numpy.asarray of a NumPy array compiles a program for each new shape.
#
# Version:  jax 0.10.2, jaxlib 0.10.2, on CPU.
# Expected: a NumPy array becomes a JAX array by a transfer, as with jax.device_put, at the same
#           cost for every shape.
# Seen:     jnp.asarray and jnp.array trace, lower and compile a program called "stage" for each
#           shape that is new, about 10 ms each, a hundred times what the transfer takes.
#           jax.device_put compiles nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

compiled = []


def note(event, seconds, **details):
    if event.endswith("backend_compile_duration"):
        compiled.append(details.get("fun_name"))


jax.monitoring.register_event_duration_secs_listener(note)
counts = {}
for offset, convert in enumerate((jax.device_put, jnp.asarray, jnp.array)):
    compiled.clear()
    for length in range(1, 6):
        convert(np.zeros((10 + offset, length), np.float32))
    counts[convert.__name__] = len(compiled)
print("programs compiled for five shapes:", counts)
assert counts == {"device_put": 0, "asarray": 5, "array": 5}
PYTHON
