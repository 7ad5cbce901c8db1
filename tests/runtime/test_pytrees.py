"""Dataclasses as pytrees."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import abs_model
from abs_model import register_dataclass


def scaled(number):
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Scaled:
        x: jax.Array
        name: str = dataclasses.field(default="scaled", metadata={"static": True})
        y: jax.Array | None = None

        def value(self):
            return number * self.x

    return Scaled


def test_structures_of_classes_differ_though_their_fields_agree():
    one, other = scaled(1)(jnp.ones(2)), scaled(2)(jnp.ones(2))
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert jax.tree.structure(one) == jax.tree.structure(type(one)(jnp.zeros(2)))
    assert jax.tree.structure(one) != jax.tree.structure(type(one)(jnp.zeros(2), "renamed"))


def test_a_jitted_function_never_runs_the_program_of_another_class():
    # With JAX's own registration, about ten of these get the value of another class.
    function = jax.jit(lambda tree: tree.value())
    trees = [scaled(number)(jnp.float32(1)) for number in range(100)]
    assert [float(function(tree)) for tree in trees] == list(range(100))


def test_keys_and_leaves_are_those_of_jax():
    @dataclasses.dataclass(frozen=True)
    class Plain:
        x: jax.Array
        name: str = dataclasses.field(default="scaled", metadata={"static": True})
        y: jax.Array | None = None

    jax.tree_util.register_dataclass(Plain)  # noqa: TID251
    values = jnp.ones(2), "a", jnp.zeros(3)
    ours, theirs = scaled(1)(*values), Plain(*values)
    found, expected = (jax.tree_util.tree_leaves_with_path(tree) for tree in (ours, theirs))
    assert [path for path, _ in found] == [path for path, _ in expected]
    assert all(a is b for (_, a), (_, b) in zip(found, expected, strict=True))
    assert jax.tree.map(lambda leaf: leaf, ours).name == "a"


def test_a_classifier_must_be_registered():
    class Unregistered(abs_model.Classifier):
        def batch_logits(self, images):
            return images[:, 0, 0]

        def logits_to_confidences(self, logits):
            return logits

    settings = {"name": "a", "image_shape": (1, 1, 2), "num_classes": 2, "batch_size": 1}
    with pytest.raises(TypeError, match=r"Unregistered .* @abs_model\.register_dataclass"):
        Unregistered(**settings)
    assert register_dataclass(dataclasses.dataclass(frozen=True)(Unregistered))(**settings)
