"""Dataclasses as pytrees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
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
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True))
    again = jax.tree.map(lambda leaf: 2 * leaf, ours)
    np.testing.assert_array_equal(again.x, 2 * values[0])
    np.testing.assert_array_equal(again.y, 2 * values[2])
    assert again.name == "a"


def test_structures_do_not_differ_by_labels():
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Labelled:
        x: jax.Array
        size: int = dataclasses.field(metadata={"static": True})
        name: str = dataclasses.field(default="", metadata={"label": True})

    one, other = Labelled(jnp.ones(2), 1, "one"), Labelled(jnp.zeros(2), 1, "other")
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))
    assert jax.tree.structure(one) != jax.tree.structure(Labelled(jnp.ones(2), 2, "one"))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, one)
    assert (doubled.name, doubled.size, float(doubled.x[0])) == ("one", 1, 2.0)
    function = jax.jit(lambda tree: tree.x.sum() + tree.size)
    assert [float(function(tree)) for tree in (one, other)] == [3.0, 1.0]
    assert function._cache_size() == 1


def test_what_is_no_dataclass_or_would_not_come_back_is_refused():
    class Child(scaled(1)):  # its fields would be those of the parent
        pass

    with pytest.raises(TypeError, match="Child must be a dataclass"):
        register_dataclass(Child)

    @dataclasses.dataclass
    class Derived:
        x: jax.Array
        y: jax.Array = dataclasses.field(init=False)

    with pytest.raises(TypeError, match="field 'y' of Derived"):
        register_dataclass(Derived)


@pytest.mark.parametrize("register", [lambda cls: cls, jax.tree_util.register_dataclass])  # noqa: TID251
def test_a_classifier_must_be_registered(register):
    settings = {"name": "a", "image_shape": (1, 1, 2), "num_classes": 2, "batch_size": 1}

    def make(register):
        @register
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class FirstRow(abs_model.Classifier):
            def batch_logits(self, images):
                return images[:, 0, 0]

            def logits_to_confidences(self, logits):
                return logits

        return FirstRow(**settings)

    with pytest.raises(TypeError, match=r"FirstRow .* @abs_model\.register_dataclass"):
        make(register)
    images = np.array([[[[0.2, 0.6]]]], np.float32)
    np.testing.assert_array_equal(make(register_dataclass).logits(images), images[:, 0, 0])
