"""What fine-tuning of ABS trains: the decoders, on hard images of all classes.

The loss of an image x of class y is ||x' - G_y(z)||^2 plus a weight times the cross-entropy CE of
softmax(-E(x)). Here x' is x, shifted and rotated at random, and z is a sample of the encoder's
posterior of x'. With uniform classes, the softmax is Bayes' rule for the likelihoods exp(-E_c).

By the envelope theorem, the gradient of an energy with respect to the decoder is that at the best
latents. These are kept for each pair of a hard image and a class, and follow the decoder: whenever
a pair is drawn, its latents take a step of gradient descent, after which the decoder's gradient is
taken. Pairs are drawn in proportion to the size of dCE/dE_c = [y = c] - p_c, which depends on all
classes' energies, as they were when last drawn. Encoders and the running statistics of batch norm
stay as they are.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from abs_model._runtime.mesh import CLASS, DATA, constrain, place, replicate, training_mesh
from abs_model._runtime.vectorize import map_classes
from abs_model.data import Dataset, Split
from abs_model.data.augmentation import shift_and_rotate
from abs_model.data.batches import ImagesByClass, group_by_class, to_float
from abs_model.inference.solvers.norm_ball import project
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.build import build_abs, search_settings
from abs_model.models.vae import VAE
from abs_model.training.abs_pictures import draw_pictures
from abs_model.training.abs_steps import run_steps
from abs_model.training.hard_images import HardImages
from abs_model.training.loop import State

PyTree = Any
_Pairs = dict[str, jax.Array]
# Of gradient descent of the latents: a fixed step, with gradients cut to this norm, so that latents
# move by at most 0.2. A step that raises the energy is undone afterwards: 0 to 6% of them in the
# end, when the energies of drawn pairs are 0.03 to 0.09 nats above their local minima.
_STEP_SIZE = 0.02
_MAX_GRADIENT = 10.0
# Added to the size of each pair's gradient: where all are 0, something must be drawn.
_LEAST = 1e-6


class FineTuningTask:
    """Fine-tunes decoders; see `abs_model.training.loop.Task`.

    The state has, beside "model" and "optimizer", "pairs": latents (classes, N, latent) and
    energies (classes, N) of the N hard images. The metric "reconstruction" is the error of the
    shifted and rotated images. The metric "cross_entropy" is the mean over all training images and
    as many copies of each as hard images have; it takes the energies as they were when last drawn,
    and that of images that are not hard to be 0.
    """

    best_metric = "validation/cross_entropy"
    best_mode = "min"

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        dataset: Dataset,
        split: Split,
        graphdef: nnx.GraphDef,
        model: Mapping[str, PyTree],
        hard: HardImages,
        surrogate: Surrogate | None,
    ):
        """Puts the data on the device.

        Args:
            config: As in `configs/abs_fine_tuned.py`.
            dataset: Whose validation images are used.
            split: What to train on.
            graphdef: Structure of one VAE.
            model: The pretrained model, {"params": ..., "statistics": ...}, leading axis classes.
            hard: The hard images of `split`.
            surrogate: The pretrained model's, if the solver needs any. Validation searches with
                them: decoders refine what surrogates find, and change little. (Refitted after 800
                steps, they led to the same cross-entropy of 1,000 images to within 1e-6 nats.)
        """
        train = config.train
        self.config = config
        self.dataset = dataset
        self.num_epochs = train.epochs
        self.steps_per_epoch = train.steps_per_epoch
        images = train.batch_size_per_class + train.pairs_per_class
        self.images_per_step = images * dataset.num_classes
        self.graphdef = graphdef
        self._surrogate = surrogate
        self._pretrained = model
        self._pairs = {
            "latents": np.ascontiguousarray(hard.latents.swapaxes(0, 1)),
            "energies": np.ascontiguousarray(hard.energies.T),
        }
        # Both batches of a step are shared out.
        shared = math.gcd(train.batch_size_per_class, train.pairs_per_class)
        self._mesh = training_mesh(dataset.num_classes, shared)
        # The mean is over all images and as many copies of each.
        self._images_per_class = len(split.labels) * (1 + train.copies) / dataset.num_classes
        self.data = place(group_by_class(split, dataset.num_classes), self._mesh, CLASS)
        self._hard_images = place(jnp.asarray(hard.images), self._mesh)
        is_own = jax.nn.one_hot(hard.labels, dataset.num_classes, axis=0)
        self._is_own = place(is_own, self._mesh, CLASS)
        total_steps = train.epochs * train.steps_per_epoch
        self.optimizer = optax.adam(optax.cosine_decay_schedule(train.learning_rate, total_steps))

    def init_state(self) -> State:
        model, pairs = jax.tree.map(jnp.array, (self._pretrained, self._pairs))
        optimizer = self.optimizer.init(model["params"]["decoder"])
        return place({"model": model, "optimizer": optimizer, "pairs": pairs}, self._mesh, CLASS)

    def run_steps(
        self, state: State, first_step: int, num_steps: int
    ) -> tuple[State, Mapping[str, jax.Array]]:
        return self._run_steps(
            state, self.data, self._hard_images, self._is_own, first_step, num_steps
        )

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _run_steps(
        self,
        state: State,
        data: ImagesByClass,
        hard_images: jax.Array,
        is_own: jax.Array,
        first_step: jax.Array,
        num_steps: jax.Array,
    ) -> tuple[State, Mapping[str, jax.Array]]:
        """One program for any number of steps of one epoch."""

        def step(
            state: State, chosen: jax.Array, key: jax.Array, _: jax.Array
        ) -> tuple[State, PyTree]:
            return self._step(state, data, hard_images, is_own, chosen, key)

        return run_steps(
            step,
            state,
            data,
            first_step,
            num_steps,
            config=self.config,
            steps_per_epoch=self.steps_per_epoch,
            mesh=self._mesh,
            metrics=("loss", "reconstruction", "cross_entropy"),
        )

    def _step(
        self,
        state: State,
        data: ImagesByClass,
        hard_images: jax.Array,
        is_own: jax.Array,
        chosen: jax.Array,
        key: jax.Array,
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update of all decoders; `chosen` (classes, batch) indexes each class's images."""
        params, statistics = state["model"]["params"], state["model"]["statistics"]
        latents, energies = state["pairs"]["latents"], state["pairs"]["energies"]
        # dCE/dE_c of each class and image.
        slopes = is_own - jax.nn.softmax(-energies, axis=0)
        draw_key, step_key = jax.random.split(key)
        pairs = self._draw(slopes, latents, draw_key)
        gradients, found, reconstructions = map_classes(
            self._class_gradient,
            params["decoder"],
            params["encoder"],
            statistics,
            data.images,
            chosen,
            hard_images[pairs["rows"]],
            pairs,
            jax.random.split(step_key, len(chosen)),
        )
        updates, optimizer = self.optimizer.update(gradients, state["optimizer"], params["decoder"])
        decoder = optax.apply_updates(params["decoder"], updates)
        # Of pairs that were drawn twice the first counts: a scatter keeps either.
        first = jnp.argmax(pairs["rows"][:, :, None] == pairs["rows"][:, None, :], axis=2)
        classes = jnp.arange(len(chosen))[:, None]
        latents = latents.at[classes, pairs["rows"]].set(found["latents"][classes, first])
        energies = energies.at[classes, pairs["rows"]].set(found["energies"][classes, first])
        new_state = {
            "model": {"params": params | {"decoder": decoder}, "statistics": statistics},
            "optimizer": optimizer,
            "pairs": {"latents": latents, "energies": energies},
        }
        total = -jnp.sum(is_own * jax.nn.log_softmax(-energies, axis=0))
        cross_entropy = total / (self._images_per_class * len(chosen))
        reconstruction = reconstructions.mean()
        metrics = {
            "loss": reconstruction + self.config.train.cross_entropy_weight * cross_entropy,
            "reconstruction": reconstruction,
            "cross_entropy": cross_entropy,
        }
        return new_state, metrics

    def _class_gradient(
        self,
        decoder: PyTree,
        encoder: PyTree,
        statistics: PyTree,
        images: jax.Array,
        chosen: jax.Array,
        hard_images: jax.Array,
        pairs: _Pairs,
        key: jax.Array,
    ) -> tuple[PyTree, _Pairs, jax.Array]:
        """One class's gradient, its pairs' new latents and energies, and reconstruction error."""
        train = self.config.train
        weight = train.cross_entropy_weight / self._images_per_class

        def vae(decoder: PyTree) -> VAE:
            return nnx.merge(self.graphdef, {"encoder": encoder, "decoder": decoder}, statistics)

        change_key, sample_key = jax.random.split(key)
        own = to_float(images[chosen])
        if train.max_shift or train.max_rotation:
            own = shift_and_rotate(
                own, change_key, max_shift=train.max_shift, max_rotation=train.max_rotation
            )
        mean, log_variance = vae(decoder).encode(own)
        noise = jax.random.normal(sample_key, mean.shape)
        samples = mean + jnp.exp(0.5 * log_variance) * noise
        drawn = to_float(hard_images)
        max_norm = self.config.inference.max_norm
        moved, before = _descend(vae(decoder), drawn, pairs["latents"], max_norm)

        def loss(decoder: PyTree) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            decoded = vae(decoder).decode(jnp.concatenate([samples, moved]))
            errors = jnp.sum((jnp.concatenate([own, drawn]) - decoded) ** 2, axis=(1, 2, 3))
            reconstruction = errors[: len(own)].mean()
            energies = errors[len(own) :] + 0.5 * jnp.sum(moved**2, axis=1)
            cross_entropy = (pairs["weights"] * energies).mean()
            return reconstruction + weight * cross_entropy, (reconstruction, energies)

        gradient, (reconstruction, after) = jax.grad(loss, has_aux=True)(decoder)
        lower = after < before
        found = {
            "latents": jnp.where(lower[:, None], moved, pairs["latents"]),
            "energies": jnp.where(lower, after, before),
        }
        return gradient, found, reconstruction

    def _draw(self, slopes: jax.Array, latents: jax.Array, key: jax.Array) -> _Pairs:
        """Pairs of each class, drawn in proportion to the size of their slopes.

        Returns:
            "rows", int32 (classes, pairs), of the hard images; "latents" (classes, pairs, latent);
            "weights" (classes, pairs), which make the mean of weight times energy over the pairs
            an unbiased estimate of the sum of slope times energy over all hard images.
        """
        sizes = jnp.abs(slopes) + _LEAST
        count = self.config.train.pairs_per_class

        def draw(sizes: jax.Array, key: jax.Array) -> jax.Array:
            return jax.random.choice(key, len(sizes), (count,), p=sizes / sizes.sum())

        rows = jax.vmap(draw)(sizes, jax.random.split(key, len(sizes)))
        rows = constrain(rows, self._mesh, CLASS, DATA)
        weights = jnp.take_along_axis(slopes / sizes, rows, axis=1)
        return {
            "rows": rows,
            "latents": jnp.take_along_axis(latents, rows[:, :, None], axis=1),
            "weights": weights * sizes.sum(axis=1, keepdims=True),
        }

    def evaluate(self, state: State, epoch: int) -> dict[str, float]:
        """Accuracy, cross-entropy and mean energy of the own class, on validation images.

        Both of the latter in nats; the class weights are 1.
        """
        del epoch
        split = self.dataset.validation
        count = min(self.config.validation.abs_images, len(split.labels))
        surrogate = self._surrogate
        classifier = build_abs(
            self.config,
            self.graphdef,
            state["model"],
            self.dataset.image_shape,
            search=search_settings(self.config),
            open_surrogate=None if surrogate is None else lambda decoder: surrogate,
        )
        images = split.images[:count].astype(np.float32) / 255
        energies = np.asarray(replicate(classifier).infer(images).energies)
        labels, rows = split.labels[:count], np.arange(count)
        return {
            "validation/cross_entropy": -float(jax.nn.log_softmax(-energies)[rows, labels].mean()),
            "validation/abs_accuracy": float(np.mean(energies.argmin(axis=1) == labels)),
            "validation/energy": float(energies[rows, labels].mean()),
        }

    def images(self, state: State) -> dict[str, np.ndarray]:
        """Samples of each class, and validation images above their reconstructions."""
        columns = self.config.validation.image_columns
        return draw_pictures(self.graphdef, state["model"], self.dataset, columns)


def _descend(
    vae: VAE, images: jax.Array, latents: jax.Array, max_norm: float
) -> tuple[jax.Array, jax.Array]:
    """Latents (N, latent) after a step of gradient descent on their energies, and these before."""

    def energies(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = jnp.sum((images - vae.decode(latents)) ** 2, axis=(1, 2, 3))
        found += 0.5 * jnp.sum(latents**2, axis=1)
        return found.sum(), found

    gradients, before = jax.grad(energies, has_aux=True)(latents)
    norms = jnp.linalg.norm(gradients, axis=1, keepdims=True)
    gradients *= jnp.minimum(1, _MAX_GRADIENT / jnp.maximum(norms, 1e-12))
    return project((latents - _STEP_SIZE * gradients).T, max_norm).T, before
