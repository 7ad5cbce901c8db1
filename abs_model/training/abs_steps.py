"""Steps of an epoch that draw a batch of each class's images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

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
    seed: int,
    num_epochs: int,
    steps_per_epoch: int,
    batch_size: int,
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
        seed: Of the run.
        num_epochs: Of the run.
        steps_per_epoch: Steps after which the images come in a new order.
        batch_size: Images of each class in a step.
        metrics: Names of what `step` returns.

    Returns:
        The state after the steps, and the means of the metrics over them.
    """
    key = jax.random.key(seed)
    order_key = jax.random.fold_in(key, first_step // steps_per_epoch)
    order = epoch_order(data, order_key, steps_per_epoch * batch_size)
    noise_key = jax.random.fold_in(key, num_epochs)

    def advance(i: jax.Array, carry: tuple[State, PyTree]) -> tuple[State, PyTree]:
        state, sums = carry
        position = (i % steps_per_epoch) * batch_size
        chosen = lax.dynamic_slice_in_dim(order, position, batch_size, axis=1)
        state, found = step(state, chosen, jax.random.fold_in(noise_key, i), i)
        return state, jax.tree.map(jnp.add, sums, found)

    zeros = dict.fromkeys(metrics, jnp.zeros(()))
    state, sums = lax.fori_loop(first_step, first_step + num_steps, advance, (state, zeros))
    return state, jax.tree.map(lambda x: x / num_steps, sums)
