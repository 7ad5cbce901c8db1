"""Radii within which no change of an image can change the decision of analysis by synthesis.

Let y be the decided class and keep its explanation (z_y, G_y) fixed. It explains the changed image
x + d at the cost w_y (||x + d - G_y||^2 + ||z_y||^2 / 2), which is at least the weighted energy of
y there. Class c can win only if one of its explanations z costs less. The difference of the two,

    gap + 2 v . d + a ||d||^2,   gap = w_c (||x - G_c(z)||^2 + ||z||^2 / 2) - (the same of y),
                                 v = w_c (x - G_c(z)) - w_y (x - G_y),   a = w_c - w_y,

is linear in d but for the class weights. It falls by at most the reach of ||d||
(`inference.changes`), which takes into account that images lie in [0, 1] and, for Binary ABS, how
far a pixel must move to flip. So y wins within

    radius = min over c != y and z of the smallest r with reach(r; c, z) = gap(c, z).

For class weights of 1 and without the range [0, 1] that is gap / (2 ||G_c(z) - G_y||) in the dual
norm, the distance to the nearest half-space that bisects the explanation of y and one of another
class.

The minimum over z is searched, not proven: a certificate holds if the search has found the global
minimum over the ball of latents. At a common radius of all classes, BFGS minimizes gap - reach
from each class's best explanation and from prior samples. Where that falls below 0, the radius is
lowered to where it is 0, until no such explanation is found (Dinkelbach 1967).

The older forms, `lipschitz_radii` and `paper_radii`, are in L2 only and never larger.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from abs_model._runtime.checks import check_count
from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import map_chunks, map_classes
from abs_model.inference.changes import REACHES, Range, allowed_range, find_radius
from abs_model.inference.energy import Inference
from abs_model.inference.solvers import Solver, bfgs, sample_prior
from abs_model.inference.solvers.multistart import MultistartSettings, polish
from abs_model.inference.solvers.norm_ball import project
from abs_model.models.decoders import Decoder

PyTree = Any

# Each start has 500 samples in 5 parts. The best ones of each part in L2 are compared in the norm.
_SAMPLES_PER_START, _PARTS_PER_START = 500, 5
_SPREAD = 1.6  # explanations by other classes lie farther out than most prior samples
_DECODE_BATCH = 250
_TOLERANCE = 1e-4  # of the search at a radius, in nats
# A search is given up once it is expected to end above this, in nats: expectations are rough.
_CEILING = 1.0
# Searches are made at a radius smaller than the one that the best explanation has, relatively.
_DECREASE = 1e-4


@dataclasses.dataclass(frozen=True)
class CertificateSettings:
    """How thoroughly latents are searched.

    Attributes:
        num_starts: Searches for each image and other class: from the class's best explanation, and
            from prior samples.
        num_rounds: How often the radius may be lowered. An image that needs more gets radius 0.
        max_evaluations: Evaluations of the decoder and its gradient, at most, for each search and
            round.

    Raises:
        ValueError: A setting is below 1.
    """

    num_starts: int = 10
    num_rounds: int = 50
    max_evaluations: int = 25

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_count(field.name, getattr(self, field.name))


DEFAULT_SETTINGS = CertificateSettings()


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Certificate:
    """Radii below which the decision on N images cannot change.

    Attributes:
        radii: (N,), in units of the pixel range or, for L0, in pixels. No image at a smaller
            distance is decided otherwise, provided that the search over latents has found the
            global minimum.
        predictions: The decided classes, int32 (N,).
        rivals: The class that comes closest to winning, int32 (N,).
        rival_latents: Its explanation z that does, (N, latent).
        rival_reconstructions: G_c(z), (N, height, width, channels).
    """

    radii: jax.Array
    predictions: jax.Array
    rivals: jax.Array
    rival_latents: jax.Array
    rival_reconstructions: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Decision:
    """The images and how the decided class explains them; every leaf is (..., N).

    Attributes:
        pixels: What the decoders explain.
        allowed: How images may change.
        own: G_y.
        own_costs: Weighted energies of y.
        own_weights: w_y.
        radii: At which `_cost` compares.
    """

    pixels: jax.Array
    allowed: Range
    own: jax.Array
    own_costs: jax.Array
    own_weights: jax.Array
    radii: jax.Array

    def compare(
        self, weights: jax.Array, decoded: jax.Array, latents: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """gap, v and a of other explanations, by classes of these weights."""
        residuals = self.pixels - decoded
        energies = jnp.sum(residuals**2, axis=0) + 0.5 * jnp.sum(latents**2, axis=0)
        v = weights * residuals - self.own_weights * (self.pixels - self.own)
        return weights * energies - self.own_costs, v, weights - self.own_weights


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Explanations:
    """One explanation of each image by another class, leaves (..., N)."""

    classes: jax.Array
    latents: jax.Array
    decoded: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """Prior samples, some of which start searches.

    Attributes:
        latents: (latent, samples).
        decoded: By each class, (C, pixels, samples).
    """

    latents: jax.Array
    decoded: jax.Array


def decode_samples(solver: Solver, settings: CertificateSettings) -> Samples:
    """Draws the samples, farther out than the prior, and decodes them by every class; pure.

    Args:
        solver: The solver of all classes.
        settings: How many starts.
    """
    count = (settings.num_starts - 1) * _SAMPLES_PER_START
    max_norm = solver.settings.max_norm
    # One at least, because there is no array of none to draw from.
    drawn = dataclasses.replace(solver.settings, num_prior_samples=max(count, 1))
    latents = sample_prior(drawn, solver.decoder.latent_size)[:count].T
    latents = project(latents * jnp.linspace(1, _SPREAD, count), max_norm)

    def decode(one: Decoder) -> jax.Array:
        return map_chunks(one, latents, size=_DECODE_BATCH)

    return Samples(latents, map_classes(decode, solver.decoder))


def certify(
    solver: Solver,
    images: jax.Array,
    inference: Inference,
    class_weights: jax.Array,
    samples: Samples,
    settings: CertificateSettings,
    *,
    norm: str,
    binary: bool,
) -> Certificate:
    """Certifies the decisions on images; pure.

    Args:
        solver: The solver of all classes.
        images: As the model gets them, float32 (N, height, width, channels) in [0, 1].
        inference: What was found for them.
        class_weights: Factors of the energies, (C,).
        samples: From `decode_samples` of the same settings.
        settings: How thoroughly to search.
        norm: "l2", "linf" or "l0".
        binary: Whether decoders explain thresholded images.
    """
    decoder = solver.decoder
    weighted = class_weights * inference.energies
    predictions = jnp.argmin(weighted, axis=1)
    rows = jnp.arange(len(images))
    inside = decoder.to_pixels(jnp.ones_like(images[:1]))
    decision = _Decision(
        decoder.to_pixels(inference.images),
        allowed_range(decoder.to_pixels(images), inside, channels=images.shape[-1], binary=binary),
        decoder.to_pixels(inference.reconstructions[rows, predictions]),
        weighted[rows, predictions],
        class_weights[predictions],
        jnp.zeros(len(images)),
    )
    others = jnp.arange(len(class_weights))[:, None] != predictions
    latents = jnp.moveaxis(inference.latents, 0, -1)
    decoded = jax.vmap(decoder.to_pixels)(inference.reconstructions.swapaxes(0, 1))

    def ratios(weight: jax.Array, decoded: jax.Array, latents: jax.Array) -> jax.Array:
        gaps, v, _ = decision.compare(weight, decoded, latents)
        return gaps / jnp.linalg.norm(v, axis=0)

    nearest = jnp.where(others, jax.vmap(ratios)(class_weights, decoded, latents), jnp.inf)
    best = _choose(jnp.argmin(nearest, axis=0), latents, decoded)
    largest = jnp.full(len(images), _largest_radius(norm, *images.shape[1:]))
    radii = _radii_of(norm, decision, class_weights, best, largest)

    def start(
        weight: jax.Array, latents: jax.Array, decoded: jax.Array, is_other: jax.Array
    ) -> bfgs.Iterate:
        starts = latents[:, None]
        if settings.num_starts > 1:
            at_radii = dataclasses.replace(decision, radii=radii)
            best = _best_samples(norm, samples.latents, decoded, weight, at_radii)
            starts = jnp.concatenate([starts, best], axis=1)
        alive = jnp.tile(is_other, settings.num_starts)
        begun = bfgs.initial_iterate(starts.reshape(len(latents), -1))
        return dataclasses.replace(begun, energies=jnp.where(alive, -1, jnp.inf))

    iterates = map_classes(start, class_weights, latents, samples.decoded, others)
    search_settings = MultistartSettings(
        max_norm=solver.settings.max_norm,
        tolerance=_TOLERANCE,
        max_evaluations=settings.max_evaluations,
    )

    # The reach of a knapsack has a kink wherever the order of its gains changes.
    is_smooth = norm != "l0" and not binary

    def lower(carry: PyTree) -> PyTree:
        count, radii, best, iterates, falling = carry
        tested = dataclasses.replace(decision, radii=_smaller(norm, radii))

        def search(
            decode: Decoder, weight: jax.Array, now: bfgs.Iterate
        ) -> tuple[bfgs.Iterate, jax.Array, jax.Array, jax.Array]:
            # What was far from winning at a larger radius is farther at this one.
            begun = dataclasses.replace(
                bfgs.initial_iterate(now.latents, now.inverse_hessians),
                energies=jnp.where(
                    (now.energies < _CEILING) & jnp.tile(falling, settings.num_starts), 0, jnp.inf
                ),
            )
            cost = functools.partial(_cost, norm, weight)
            found = polish(
                decode, tested, begun, search_settings, cost,
                limits=jnp.full(len(radii), _CEILING), only_lowest=False, skip_duplicates=is_smooth,
            )  # fmt: skip
            lowest = found.iterate.energies.reshape(-1, len(radii)).min(axis=0)
            return found.iterate, lowest, found.latents, found.decoded

        iterates, lowest, latents, decoded = map_classes(search, decoder, class_weights, iterates)
        new = _choose(jnp.argmin(lowest, axis=0), latents, decoded)
        falls = lowest.min(axis=0) < 0
        best = jax.tree.map(lambda new, old: jnp.where(falls, new, old), new, best)
        fallen = _radii_of(norm, decision, class_weights, best, radii)
        return count + 1, jnp.where(falls, fallen, radii), best, iterates, falls

    def unfinished(carry: PyTree) -> jax.Array:
        return (carry[0] < settings.num_rounds) & jnp.any(carry[-1])

    carry = (0, radii, best, iterates, jnp.ones(len(images), bool))
    _, radii, best, _, falling = lax.while_loop(unfinished, lower, carry)
    radii = jnp.where(falling, 0, radii)  # not searched at
    return Certificate(
        radii if norm == "l0" else _smaller(norm, radii),
        predictions.astype(jnp.int32),
        best.classes.astype(jnp.int32),
        best.latents.T,
        decoder.to_images(best.decoded),
    )


def _cost(
    norm: str, weight: jax.Array, decoded: jax.Array, decision: _Decision, latents: jax.Array
) -> jax.Array:
    """By how much y still wins after the worst change within the radius, in nats, (N,)."""
    gaps, v, a = decision.compare(weight, decoded, latents)
    return gaps - REACHES[norm](decision.allowed, v, a, decision.radii)


def _radii_of(
    norm: str,
    decision: _Decision,
    class_weights: jax.Array,
    explanations: _Explanations,
    largest: jax.Array,
) -> jax.Array:
    """The radii at which the given explanations come to win, (N,)."""
    gaps, v, a = decision.compare(
        class_weights[explanations.classes], explanations.decoded, explanations.latents
    )
    radii = find_radius(norm, decision.allowed, v, a, gaps, largest)
    return jnp.ceil(radii) if norm == "l0" else radii


def _smaller(norm: str, radii: jax.Array) -> jax.Array:
    """The next smaller radius to search at."""
    return jnp.maximum(radii - 1, 0) if norm == "l0" else radii * (1 - _DECREASE)


def _largest_radius(norm: str, height: int, width: int, channels: int) -> float:
    """The distance of a black and a white image."""
    return {"l2": (height * width * channels) ** 0.5, "linf": 1.0, "l0": height * width}[norm]


def _choose(classes: jax.Array, latents: jax.Array, decoded: jax.Array) -> _Explanations:
    """Each image's explanation by one class of all, leaves (C, ..., N)."""
    chosen = (
        jnp.take_along_axis(leaf, classes[None, None], axis=0)[0] for leaf in (latents, decoded)
    )
    return _Explanations(classes, *chosen)


def _best_samples(
    norm: str, samples: jax.Array, decoded: jax.Array, weight: jax.Array, decision: _Decision
) -> jax.Array:
    """The best of each start's samples for each image, (latent, starts, N).

    The best of each part have the smallest gap / ||v||, which orders them as L2 does with equal
    weights; of these the one with the lowest cost in the norm is taken.

    Args:
        norm: The certificate's norm.
        samples: (latent, samples).
        decoded: By one class, (pixels, samples).
        weight: The class's weight.
        decision: The decisions on N images.
    """
    pixels, own_weights = decision.pixels, decision.own_weights
    squares = jnp.sum(decoded**2, axis=0)
    energies = (squares + 0.5 * jnp.sum(samples**2, axis=0))[:, None] - 2 * decoded.T @ pixels
    gaps = weight * (energies + jnp.sum(pixels**2, axis=0)) - decision.own_costs
    # v = u - w G(z)
    u = (weight - own_weights) * pixels + own_weights * decision.own
    squared = weight**2 * squares[:, None] - 2 * weight * decoded.T @ u + jnp.sum(u**2, axis=0)
    scores = gaps / jnp.sqrt(jnp.maximum(squared, 1e-6))
    size, count = _SAMPLES_PER_START // _PARTS_PER_START, pixels.shape[1]
    scores = scores.reshape(-1, size, count)
    best = jnp.argmin(scores, axis=1) + size * jnp.arange(len(scores))[:, None]
    repeated = jax.tree.map(lambda leaf: jnp.tile(leaf, len(best)), decision)
    chosen = best.reshape(-1)
    costs = _cost(norm, weight, decoded[:, chosen], repeated, samples[:, chosen])
    leaders = jnp.argmin(costs.reshape(-1, _PARTS_PER_START, count), axis=1)
    best = best.reshape(-1, _PARTS_PER_START, count)
    return samples[:, jnp.take_along_axis(best, leaders[:, None], axis=1)[:, 0]]


def lipschitz_radii(inference: Inference, class_weights: jax.Array) -> jax.Array:
    """L2 radii that only use the energies of the other classes, (N,).

    sqrt(E_c) is the distance from (x, 0) to the nearest (G_c(z), z / sqrt(2)) and so falls by at
    most the length of a change, while the distance from x to G_y grows by at most that.

    Args:
        inference: What was found for N images.
        class_weights: Factors of the energies, (C,).
    """
    return _radii_by_distances(inference, class_weights, jnp.sqrt(inference.energies))


def paper_radii(inference: Inference, class_weights: jax.Array, solver: Solver) -> jax.Array:
    """L2 radii by the bound of Schott et al. 2019, (N,).

    As `lipschitz_radii`, with the distances to the nearest G_c(z) in place of sqrt(E_c); they come
    from a search from the best explanations.

    Args:
        inference: What was found for N images.
        class_weights: Factors of the energies, (C,).
        solver: The solver of all classes.
    """
    pixels = solver.decoder.to_pixels(inference.images)
    settings = MultistartSettings(max_norm=solver.settings.max_norm, tolerance=_TOLERANCE)

    def squared_errors(decoded: jax.Array, pixels: jax.Array, latents: jax.Array) -> jax.Array:
        del latents
        return jnp.sum((pixels - decoded) ** 2, axis=0)

    def search(decode: Decoder, latents: jax.Array) -> jax.Array:
        begun = dataclasses.replace(
            bfgs.initial_iterate(latents), energies=jnp.zeros(latents.shape[1])
        )
        return polish(decode, pixels, begun, settings, squared_errors).iterate.energies

    latents = jnp.moveaxis(inference.latents, 0, -1)
    found = map_classes(search, solver.decoder, latents)
    return _radii_by_distances(inference, class_weights, jnp.sqrt(found.T))


def _radii_by_distances(
    inference: Inference, class_weights: jax.Array, distances: jax.Array
) -> jax.Array:
    """The least r with w_c (d_c - r)^2 = w_y ((d_y + r)^2 + ||z_y||^2 / 2) over other classes c.

    Args:
        inference: What was found for the images.
        class_weights: (C,).
        distances: d_c, (N, C); that of y is to its explanation.
    """
    predictions = jnp.argmin(class_weights * inference.energies, axis=1)
    rows = jnp.arange(len(predictions))
    own_energies = inference.energies[rows, predictions][:, None]
    priors = 0.5 * jnp.sum(inference.latents[rows, predictions] ** 2, axis=1)[:, None]
    own_distances = jnp.sqrt(own_energies - priors)
    own_weights = class_weights[predictions][:, None]
    gaps = class_weights * distances**2 - own_weights * own_energies
    slopes = class_weights * distances + own_weights * own_distances
    a = class_weights - own_weights
    radii = gaps / (slopes + jnp.sqrt(jnp.maximum(slopes**2 - a * gaps, 0)))
    others = jnp.arange(len(class_weights)) != predictions[:, None]
    return jnp.maximum(jnp.min(jnp.where(others, radii, jnp.inf), axis=1), 0)
