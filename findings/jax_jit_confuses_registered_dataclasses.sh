#!/usr/bin/env bash
# jax.jit now and then runs the program of another dataclass.
#
# Version:  jax 0.10.2, jaxlib 0.10.2, on CPU.
# Expected: the tree structures of two classes registered with jax.tree_util.register_dataclass
#           differ, as they do for register_pytree_node, so that a jitted function which calls a
#           method of its argument compiles once for each class.
# Seen:     the structures compare equal, and only their hashes differ, if fields and static values
#           agree. jit looks its programs up in a hash table, which compares structures wherever the
#           few bits of the hash that it stores agree: a function called with one class then runs
#           what was compiled for another, silently. Of 300 classes, about one in ten is affected;
#           which ones changes from run to run. lax.cond takes branches that return different
#           classes, and returns the first one's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'PYTHON'
import dataclasses

import jax
import jax.numpy as jnp


def as_node(cls):
    unflatten = lambda _, children: cls(*children)
    jax.tree_util.register_pytree_node(cls, lambda tree: ((tree.x,), None), unflatten)
    return cls


def make(number, register):
    @register
    @dataclasses.dataclass
    class Scaled:
        x: jax.Array

        def value(self):
            return number * self.x

    return Scaled


one, first, other = jnp.float32(1), *(make(i, jax.tree_util.register_dataclass) for i in (1, 2))
structures = jax.tree.structure(first(one)), jax.tree.structure(other(one))
taken = jax.lax.cond(False, lambda: first(one), lambda: other(one))
print("structures equal:", structures[0] == structures[1])
print("hashes equal:", hash(structures[0]) == hash(structures[1]))
print("cond returned the class of the branch not taken:", isinstance(taken, first))

wrong = {}
for name, register in (
    ("register_dataclass", jax.tree_util.register_dataclass),
    ("register_pytree_node", as_node),
):
    function = jax.jit(lambda tree: tree.value())
    values = [float(function(make(number, register)(one))) for number in range(300)]
    wrong[name] = sum(value != number for number, value in enumerate(values))
print("of 300 classes, these got the value of another:", wrong)
assert wrong["register_pytree_node"] == 0, "register_pytree_node is affected, too"
assert structures[0] == structures[1] and wrong["register_dataclass"] > 0, (
    "registered dataclasses are told apart: the finding is out of date"
)
PYTHON
