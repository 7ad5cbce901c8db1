"""Claims that rest on warm-started answers, asked about again from scratch.

A warm-started classifier (ABS) goes on from latents found for an image nearby. Where these lead to
a poorer explanation by the label than there is, an image seems adversarial that is not, displaces
a true find, and misleads whoever goes on from it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from abs_model.attacks import best as bests
from abs_model.attacks.base import choose, project
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.oracle import Oracle, State

_EVERY = 40
# How far beyond what an attack found to look, where what it found does not hold: ever farther, then
# by bisection.
_OVERSHOOTS = (1.005, 1.01, 1.02, 1.05, 1.1, 1.2)
_NUM_BISECTIONS = 3


class Confirmations:
    """Asks from scratch, now and then, about the best that an attack claims to have found.

    Asks nothing where answers are always from scratch.
    """

    def __init__(
        self, oracle: Oracle, batch: Batch, first: Best, norm: str, epsilon: float | None = None
    ) -> None:
        """`first` is what is known from scratch, such as about the originals."""
        self._oracle = oracle
        self._batch = batch
        self._confirmed = dataclasses.replace(first, confirmed=jnp.ones_like(first.confirmed))
        self._norm = norm
        self._epsilon = epsilon
        self._count = 0

    def __call__(self, best: Best, state: State) -> tuple[Best, State]:
        """To be called after each warm-started question.

        Returns:
            Every 40th time, what `now` says of `best`, and the state of its images, so that the
            next question goes on from what was found from scratch; otherwise both as they are, the
            very same objects.
        """
        self._count += 1
        if self._count % _EVERY or not self._oracle.warm:
            return best, state
        return self._ask(best)

    def now(self, best: Best) -> Best:
        """`best` where it holds, elsewhere what was confirmed before."""
        if not self._oracle.warm:
            return best
        if bool(best.confirmed.all()):
            self._confirmed = best
            return best
        return self._ask(best)[0]

    def settled(self, best: Best) -> Best:
        """The same, but where `best` does not hold, what `settle` finds beyond it counts, too."""
        if not self._oracle.warm:
            return best
        found = settle(self._oracle, self._batch, best, self._norm, self._epsilon)
        self._confirmed = bests.closer(self._confirmed, found)
        return self._confirmed

    def refute(self, best: Best) -> tuple[Best, jax.Array | None]:
        """Asks at once about new claims, for attacks that end an image's search with the first.

        An image's answer does not depend on when others in the batch are done, then.

        Returns:
            `best`, and where a claim did not hold, what was confirmed before; for which images,
            bool (n,), this is so, or None if it is for none.
        """
        if not self._oracle.warm:
            return best, None
        claims = best.success & ~best.confirmed
        if not bool(claims.any()):
            return best, None
        asked, logits, _ = self._look(best)
        self._confirmed = choose(claims, asked, self._confirmed)
        refuted = claims & ~self._batch.fooled(logits)
        return choose(claims, self._confirmed, best), refuted if bool(refuted.any()) else None

    def over(self, best: Best) -> bool:
        """Whether all images are fooled, from scratch; to be asked between questions."""
        holds = best.confirmed if self._oracle.warm else True
        return bool((best.success & holds).all())

    def last(self, best: Best, images: jax.Array) -> Best:
        """What `now` says of `best`, and the images where a run of the attack ended.

        These are asked about from scratch, so that they count even where a closer image only seems
        adversarial.
        """
        logits, _ = self._oracle.logits(images)
        best = bests.update(self.now(best), self._batch, images, logits, self._norm, confirmed=True)
        self._confirmed = best
        return best

    def _ask(self, best: Best) -> tuple[Best, State]:
        self._confirmed, _, state = self._look(best)
        return self._confirmed, state

    def _look(self, best: Best) -> tuple[Best, jax.Array, State]:
        """What was confirmed, with what holds of `best`; the logits and the state of its images."""
        logits, state = self._oracle.logits(best.images)
        found = bests.update(
            self._confirmed, self._batch, best.images, logits, self._norm, confirmed=True
        )
        return found, logits, state


def settle(oracle: Oracle, batch: Batch, found: Best, norm: str, epsilon: float | None) -> Best:
    """What an attack has found in the end, as answers from scratch see it.

    Where an image does not hold, points a little farther out are tried, and the way from the last
    that does not hold to the first that does is bisected. Asks up to 10 times, once where all hold,
    and never where all are confirmed.

    Args:
        oracle: The classifier.
        batch: The originals.
        found: By the attack.
        norm: Of the distances.
        epsilon: Where the attack keeps within one, the largest distance.
    """
    if not oracle.warm or bool(found.confirmed.all()):
        return found
    settled = bests.first(batch, found.images, oracle.logits(found.images)[0], norm, confirmed=True)
    open_ = found.success & ~settled.success
    low, high = jnp.ones(len(open_)), jnp.full(len(open_), jnp.inf)
    for number in range(len(_OVERSHOOTS) + _NUM_BISECTIONS):
        beyond = _OVERSHOOTS[min(number, len(_OVERSHOOTS) - 1)]
        images, scales = _farther(batch, found, open_, low, high, beyond, norm, epsilon)
        if not bool(jnp.any(images != found.images)):
            break
        logits, _ = oracle.logits(images)
        low, high, settled = _note(batch, open_, scales, low, high, settled, images, logits, norm)
    return settled


@functools.partial(jax.jit, static_argnames=("norm", "epsilon"))
def _farther(
    batch: Batch,
    found: Best,
    open_: jax.Array,
    low: jax.Array,
    high: jax.Array,
    beyond: float,
    norm: str,
    epsilon: float | None,
) -> tuple[jax.Array, jax.Array]:
    """The next images, those found where there is nothing to settle, and their scales (n,)."""
    scales = jnp.where(jnp.isinf(high), beyond, (low + high) / 2).reshape(-1, 1, 1, 1)
    images = jnp.clip(batch.images + scales * (found.images - batch.images), 0.0, 1.0)
    if epsilon is not None and norm != "l0":
        images = project(images, batch.images, epsilon, norm)
    return choose(open_, images, found.images), scales[:, 0, 0, 0]


@functools.partial(jax.jit, static_argnames="norm")
def _note(
    batch: Batch,
    open_: jax.Array,
    scales: jax.Array,
    low: jax.Array,
    high: jax.Array,
    settled: Best,
    images: jax.Array,
    logits: jax.Array,
    norm: str,
) -> tuple[jax.Array, jax.Array, Best]:
    fooled = batch.fooled(logits)
    low, high = jnp.where(fooled, low, scales), jnp.where(fooled, scales, high)
    improved = bests.update(settled, batch, images, logits, norm, confirmed=True)
    # Else what was settled would depend on the other images of the batch.
    return low, high, choose(open_, improved, settled)
