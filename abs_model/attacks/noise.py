"""Random noise, the simplest attacks that see only decisions.

As in Foolbox 1 (Rauber et al., "Foolbox: A Python toolbox to benchmark the robustness of machine
learning models", 2017, https://arxiv.org/abs/1707.04131): its AdditiveGaussianNoiseAttack and
SaltAndPepperNoiseAttack, with which Schott et al. (2019) attack ABS. They raise the strength of the
noise in small steps until it fools. Here the noise keeps its direction while its strength grows, so
that the step in which it first fools can be bisected, and several draws are tried.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult, choose, per_image
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.line_search import search_line
from abs_model.attacks.oracle import Oracle
from abs_model.attacks.running import Progress, run, split_keys
from abs_model.classifiers import Classifier

_NUM_BISECTIONS = 10


def gaussian_noise(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_directions: int = 10,
    num_epsilons: int = 100,
    progress: Progress | None = None,
) -> AttackResult:
    """Adds Gaussian noise, clipped to [0, 1], until it fools the classifier; in L2.

    The standard deviation grows from 0 to 1, which covers Foolbox's range (to 1 / sqrt(3)), in
    `num_epsilons` equal steps; 10 bisections follow in the step that first fools. Asks the
    classifier at most `1 + num_directions * (num_epsilons + 10)` times: with the defaults, 1,101
    times, as many as the 1,000 steps of Foolbox 1's single direction.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,): of the noise.
        num_directions: Draws of noise to try.
        num_epsilons: Steps of the standard deviation for each of them.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_directions = check_count("num_directions", num_directions)
    num_epsilons = check_count("num_epsilons", num_epsilons)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        best = bests.first(batch, batch.images, oracle.logits(batch.images)[0], "l2")
        for number in range(num_directions):
            noise = _draw_gaussian(split_keys(batch, number), batch.images)
            _, best = search_line(
                oracle, batch, functools.partial(_add, batch.images, noise), best, "l2",
                num_levels=num_epsilons, num_bisections=_NUM_BISECTIONS,
            )  # fmt: skip
        return best

    return run(attack, model, images, labels, key, norm="l2", norms=("l2",), progress=progress)


def salt_and_pepper(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_restarts: int = 10,
    num_epsilons: int = 100,
    progress: Progress | None = None,
) -> AttackResult:
    """Sets pixels to black or white, as few as fool the classifier; in L0.

    Pixels come in random order, each with a color drawn once, the same in all channels; those that
    have it already are left out. The first restart raises their share from 0 to 1 in `num_epsilons`
    equal steps, and bisects the step that first fools down to the pixel. The others, of
    `num_epsilons` queries each, look for fewer: they ask about one pixel less than found so far,
    of the same draw if that has just fooled, else of a new one. (Where nothing has fooled yet, they
    raise the share again, with a new draw in each step as in Foolbox 1, whose defaults these are.)
    Queries the classifier at most
    `1 + num_restarts * num_epsilons + ceil(log2(height * width / num_epsilons))` times: with the
    defaults, 1,004 times on MNIST.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,): of the noise.
        num_restarts: Times that `num_epsilons` queries are made.
        num_epsilons: Steps of the share of pixels.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the adversarial one of the fewest changed pixels; where there is none, that of the
        highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_restarts = check_count("num_restarts", num_restarts)
    num_epsilons = check_count("num_epsilons", num_epsilons)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        best = bests.first(batch, batch.images, oracle.logits(batch.images)[0], "l0")
        _, best = search_salt_and_pepper(
            oracle, batch, split_keys(batch, 0), best, "l0", num_epsilons
        )
        noise, candidates = _redraw(batch, best, 0, num_epsilons)
        for number in range((num_restarts - 1) * num_epsilons):
            # From scratch: the images are far from each other and from the originals.
            logits, _ = oracle.logits(candidates)
            noise, candidates, best = _lessen(
                batch, noise, candidates, logits, best, number + 1, num_epsilons
            )
        return best

    return run(attack, model, images, labels, key, norm="l0", norms=("l0",), progress=progress)


def search_salt_and_pepper(
    oracle: Oracle,
    batch: Batch,
    keys: jax.Array,
    best: Best,
    norm: str,
    num_epsilons: int,
) -> tuple[jax.Array, Best]:
    """Looks for the least salt-and-pepper noise, of one draw, that fools.

    Queries the classifier at most `salt_and_pepper_queries(batch.images.shape, num_epsilons)`
    times.

    Args:
        oracle: The classifier.
        batch: The originals.
        keys: A key for each of them, (n,): of the noise.
        best: What has been found; it is improved on.
        norm: Of the distances in `best`.
        num_epsilons: Steps of the share of pixels.

    Returns:
        The noisy images that first fooled, (n, ...), or those of full noise where none did; `best`.
    """
    noise = _draw_noise(keys, batch.images)

    def way(shares: jax.Array) -> jax.Array:
        return _season(batch.images, noise, shares)

    shares, best = search_line(
        oracle, batch, way, best, norm, num_levels=num_epsilons,
        num_bisections=_bisections_to_pixel(batch.images.shape, num_epsilons),
    )  # fmt: skip
    return way(shares), best


def salt_and_pepper_queries(shape: tuple[int, ...], num_epsilons: int) -> int:
    """How often `search_salt_and_pepper` asks at most about images of this shape (n, h, w, c)."""
    return num_epsilons + _bisections_to_pixel(shape, num_epsilons)


def _bisections_to_pixel(shape: tuple[int, ...], num_epsilons: int) -> int:
    """Bisections after which a step of the share is a pixel at most."""
    return max(0, math.ceil(math.log2(shape[1] * shape[2] / num_epsilons)))


@jax.jit
def _draw_gaussian(keys: jax.Array, like: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:]))(keys)


@jax.jit
def _add(images: jax.Array, noise: jax.Array, shares: jax.Array) -> jax.Array:
    return jnp.clip(images + per_image(shares) * noise, 0.0, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Noise:
    """Salt and pepper for n images.

    Attributes:
        ranks: The place of each pixel in the order of change, from 0; (n, height, width, 1).
        colors: What it changes to, 0 or 1; likewise.
        counts: How many pixels can change, (n,).
    """

    ranks: jax.Array
    colors: jax.Array
    counts: jax.Array


def _draw(keys: jax.Array, images: jax.Array) -> _Noise:
    def draw(key: jax.Array, image: jax.Array) -> _Noise:
        place_key, color_key = jax.random.split(key)
        shape = (*image.shape[:2], 1)
        colors = jax.random.bernoulli(color_key, 0.5, shape).astype(image.dtype)
        same = (image == colors).all(axis=2, keepdims=True)
        # Pixels that would not change come last.
        places = jax.random.uniform(place_key, shape) + same
        return _Noise(places.ravel().argsort().argsort().reshape(shape), colors, jnp.sum(~same))

    return jax.vmap(draw)(keys, images)


_draw_noise = jax.jit(_draw)


@jax.jit
def _season(images: jax.Array, noise: _Noise, shares: jax.Array) -> jax.Array:
    """Images in which these shares (n,) of the pixels that can change have done so."""
    return _change(images, noise, jnp.round(shares * noise.counts))


def _change(images: jax.Array, noise: _Noise, counts: jax.Array) -> jax.Array:
    counts = jnp.minimum(counts, noise.counts)
    return jnp.where(noise.ranks < per_image(counts), noise.colors, images)


@jax.jit
def _redraw(batch: Batch, best: Best, number: int, num_epsilons: int) -> tuple[_Noise, jax.Array]:
    """New noise, and images with a pixel less of it than has been found to fool.

    Args:
        batch: The originals.
        best: What has been found, in L0.
        number: The query's number, from 0.
        num_epsilons: Steps of the share where nothing has been found.
    """
    keys = jax.vmap(jax.random.fold_in, (0, None))(batch.keys, number + 1)
    noise = _draw(keys, batch.images)
    rising = jnp.round((number % num_epsilons + 1) / num_epsilons * noise.counts)
    counts = jnp.where(best.success, best.distances - 1, rising)
    return noise, _change(batch.images, noise, counts)


@jax.jit
def _lessen(
    batch: Batch,
    noise: _Noise,
    candidates: jax.Array,
    logits: jax.Array,
    best: Best,
    number: int,
    num_epsilons: int,
) -> tuple[_Noise, jax.Array, Best]:
    """Keeps what fools, and takes away a pixel of it; elsewhere draws anew."""
    fooled = batch.fooled(logits)
    best = bests.update(best, batch, candidates, logits, "l0")
    less = _change(batch.images, noise, best.distances - 1)
    new_noise, new_candidates = _redraw(batch, best, number, num_epsilons)
    noise, candidates = choose(fooled, (noise, less), (new_noise, new_candidates))
    return noise, candidates, best
