#!/usr/bin/env bash
# jax.jit now and then runs the program of another dataclass.
#
# Version:  jax 0.10.2, jaxlib 0.10.2, on CPU.
# Expected: the tree structures of two classes registered with jax.tree_util.register_dataclass
#           differ, as they do for register_pytree_node, so that a jitted function which calls a
#           method of its argument compiles once for each class.
# Seen:     the structures compare equal, although their hashes differ, if the classes have as many
#           data fields and equal static values; names of fields do not matter. A jitted function
#           called with one class then silently runs what was compiled for another, sometimes: for
#           about 40 of 300 classes. Probably its cache compares structures only where a few bits of
#           their hashes agree. lax.cond accepts branches that return different classes, and returns
#           the class of the true branch even where the predicate is false.
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
    jax.tree_util.register_pytree_node(
        cls, lambda tree: ((tree.x,), tree.name), lambda name, children: cls(*children, name)
    )
    return cls


def make(number, register):
    @register
    @dataclasses.dataclass
    class Scaled:
        x: jax.Array
        name: str = dataclasses.field(default="a", metadata={"static": True})

        def value(self):
            return number * self.x

    return Scaled


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class OtherNames:
    y: jax.Array
    title: str = dataclasses.field(default="a", metadata={"static": True})


one = jnp.float32(1)
first = make(1, jax.tree_util.register_dataclass)
structures = jax.tree.structure(first(one)), jax.tree.structure(OtherNames(one))
equal = structures[0] == structures[1]
hashes_equal = hash(structures[0]) == hash(structures[1])
other_value = jax.tree.structure(first(one)) == jax.tree.structure(OtherNames(one, "b"))
taken = jax.lax.cond(False, lambda: first(one), lambda: OtherNames(one))
print("structures equal:", equal, "- hashes equal:", hashes_equal)
print("structures equal though static values differ:", other_value)
print("class that cond returned where the predicate is false:", type(taken).__name__)

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
assert not hashes_equal and not other_value, "the condition is another one"
assert equal and isinstance(taken, first) and wrong["register_dataclass"] > 0, (
    "registered dataclasses are told apart: the finding is out of date"
)
PYTHON
