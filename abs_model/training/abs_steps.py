"""Steps of an epoch that draw a batch of each class's images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax import lax
from jax.sharding import Mesh

from abs_model._runtime.mesh import CLASS, DATA, constrain
from abs_model.data.batches import ImagesByClass, epoch_order
from abs_model.training.loop import State

PyTree = Any


def run_steps(
    step: Callable[[State, jax.Array, jax.Array, jax.Array], tuple[State, dict[str, jax.Array]]],
    state: State,
    data: ImagesByClass,
    first_step: jax.Array,
    num_steps: jax.Array,
    *,
    config: ml_collections.ConfigDict,
    steps_per_epoch: int,
    mesh: Mesh,
    metrics: Sequence[str],
) -> tuple[State, dict[str, jax.Array]]:
    """Makes steps of one epoch; to be called in a jitted function.

    What a step does depends on the seed and its number only.

    Args:
        step: From a state, the images of each class to use, int32 (classes, batch), a key, and the
            number of the step, to the next state and metrics.
        state: Before the steps.
        data: Training images.
        first_step: Number of the first step, counted over the whole run.
        num_steps: How many to make.
        config: Uses `seed`, `train.epochs` and `train.batch_size_per_class`.
        steps_per_epoch: Steps after which the images come in a new order.
        mesh: Shares out the images of a step.
        metrics: Names of what `step` returns.

    Returns:
        The state after the steps, and the means of the metrics over them.
    """
    batch_size = config.train.batch_size_per_class
    key = jax.random.key(config.seed)
    order_key = jax.random.fold_in(key, first_step // steps_per_epoch)
    order = epoch_order(data, order_key, steps_per_epoch * batch_size)
    noise_key = jax.random.fold_in(key, config.train.epochs)

    def advance(i: jax.Array, carry: tuple[State, PyTree]) -> tuple[State, PyTree]:
        state, sums = carry
        position = (i % steps_per_epoch) * batch_size
        chosen = lax.dynamic_slice_in_dim(order, position, batch_size, axis=1)
        chosen = constrain(chosen, mesh, CLASS, DATA)
        state, found = step(state, chosen, jax.random.fold_in(noise_key, i), i)
        return state, jax.tree.map(jnp.add, sums, found)

    zeros = dict.fromkeys(metrics, jnp.zeros(()))
    state, sums = lax.fori_loop(first_step, first_step + num_steps, advance, (state, zeros))
    return state, jax.tree.map(lambda x: x / num_steps, sums)
