"""What fine-tuning of ABS trains: the decoders, on hard images of all classes.

The loss of an image x of class y is ||x - G_y(z)||^2, with z a sample of the posterior, plus the
cross-entropy of softmax(-E(x) / T) times a weight. At the temperature T = 1, with uniform classes,
the softmax is Bayes' rule for the likelihoods exp(-E_c); a higher one also widens the gaps of
images that are classified correctly. By the envelope theorem, the gradient of an energy with respect to the
decoder is that at the best latents. These are kept for each pair of a hard image and a class, and
follow the decoder: whenever a pair is drawn, its latents take a step of gradient descent. Pairs
are drawn in proportion to the size of dCE/dE_c = [y = c] - p_c, which depends on all classes'
energies, as they were when last drawn. Encoders and the statistics of batch norm stay as they are.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax import lax

from abs_model._runtime.mesh import CLASS, place, replicate, training_mesh
from abs_model._runtime.vectorize import map_classes
from abs_model.data import Dataset
from abs_model.data.augmentation import shift_and_rotate
from abs_model.data.batches import ImagesByClass, epoch_order, group_by_class, to_float
from abs_model.inference.solvers.norm_ball import project
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.build import build_abs, search_settings
from abs_model.models.vae import VAE
from abs_model.training.abs_pictures import draw_pictures
from abs_model.training.hard_images import HardImages
from abs_model.training.loop import State

PyTree = Any
# Of gradient descent of the latents. The energy's curvature is in the tens, so a step of 1/50 does
# not overshoot; the gradient is cut to a norm of 10, so that latents move by at most 0.2.
_STEP_SIZE = 0.02
_MAX_GRADIENT = 10.0
# Added to the size of each pair's gradient, so that there is always something to draw.
_LEAST = 1e-6


class FineTuningTask:
    """Fine-tunes decoders; see `abs_model.training.loop.Task`.

    The state has, beside "model" and "optimizer", "pairs": latents (classes, N, latent) and
    energies (classes, N) of the N hard images.
    """

    best_metric = "validation/cross_entropy"
    best_mode = "min"

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        dataset: Dataset,
        graphdef: nnx.GraphDef,
        model: Mapping[str, PyTree],
        hard: HardImages,
        surrogate: Surrogate | None,
    ):
        """Puts the data on the device.

        Args:
            config: As in `configs/abs_fine_tuned.py`.
            dataset: What to train on.
            graphdef: Structure of one VAE.
            model: The pretrained model, {"params": ..., "statistics": ...}, leading axis
                classes.
            hard: Its hard images.
            surrogate: Its surrogates, if its solver needs any. Validation searches the latents with
                them: the decoders change little.
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
        # An axis for images would be of no use to latents that are kept for each.
        self._mesh = training_mesh(dataset.num_classes, 1)
        split = dataset.train_and_validation if train.include_validation else dataset.train
        # Copies of the images that are not hard count, too: as classified without loss.
        self._images_per_class = len(split.labels) * train.copies / dataset.num_classes
        self.data = place(group_by_class(split, dataset.num_classes), self._mesh, CLASS)
        self.hard = place(
            (jnp.asarray(hard.images), jax.nn.one_hot(hard.labels, dataset.num_classes, axis=0)),
            self._mesh,
        )
        total_steps = train.epochs * train.steps_per_epoch
        self.optimizer = optax.adam(optax.cosine_decay_schedule(train.learning_rate, total_steps))

    def init_state(self) -> State:
        model, pairs = jax.tree.map(jnp.array, (self._pretrained, self._pairs))
        optimizer = self.optimizer.init(model["params"]["decoder"])
        return place({"model": model, "optimizer": optimizer, "pairs": pairs}, self._mesh, CLASS)

    def run_steps(
        self, state: State, first_step: int, num_steps: int
    ) -> tuple[State, Mapping[str, jax.Array]]:
        return self._run_steps(state, self.data, self.hard, first_step, num_steps)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _run_steps(
        self,
        state: State,
        data: ImagesByClass,
        hard: tuple[jax.Array, jax.Array],
        first_step: jax.Array,
        num_steps: jax.Array,
    ) -> tuple[State, Mapping[str, jax.Array]]:
        """One program for any number of steps of one epoch."""
        batch_size = self.config.train.batch_size_per_class
        key = jax.random.key(self.config.seed)
        epoch = first_step // self.steps_per_epoch
        order_key = jax.random.fold_in(key, epoch)
        order = epoch_order(data, order_key, self.steps_per_epoch * batch_size)
        noise_key = jax.random.fold_in(key, self.num_epochs)

        def step(i: jax.Array, carry: tuple[State, PyTree]) -> tuple[State, PyTree]:
            state, sums = carry
            position = (i % self.steps_per_epoch) * batch_size
            chosen = lax.dynamic_slice_in_dim(order, position, batch_size, axis=1)
            state, metrics = self._step(state, data, hard, chosen, jax.random.fold_in(noise_key, i))
            return state, jax.tree.map(jnp.add, sums, metrics)

        zeros = dict.fromkeys(("loss", "reconstruction", "cross_entropy"), jnp.zeros(()))
        state, sums = lax.fori_loop(first_step, first_step + num_steps, step, (state, zeros))
        return state, jax.tree.map(lambda x: x / num_steps, sums)

    def _step(
        self,
        state: State,
        data: ImagesByClass,
        hard: tuple[jax.Array, jax.Array],
        chosen: jax.Array,
        key: jax.Array,
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update of all decoders; `chosen` (classes, batch) indexes each class's images."""
        train = self.config.train
        params, statistics = state["model"]["params"], state["model"]["statistics"]
        latents, energies = state["pairs"]["latents"], state["pairs"]["energies"]
        hard_images, is_own = hard
        # dCE/dE_c of each image and class, times the temperature.
        slopes = is_own - jax.nn.softmax(-energies / train.temperature, axis=0)
        weight = train.cross_entropy_weight / (train.temperature * self._images_per_class)

        def class_gradient(
            decoder: PyTree,
            encoder: PyTree,
            statistics: PyTree,
            images: jax.Array,
            chosen: jax.Array,
            slopes: jax.Array,
            latents: jax.Array,
            energies: jax.Array,
            key: jax.Array,
        ) -> tuple[PyTree, jax.Array, jax.Array, jax.Array]:
            def vae(decoder: PyTree) -> VAE:
                return nnx.merge(
                    self.graphdef, {"encoder": encoder, "decoder": decoder}, statistics
                )

            change_key, sample_key, draw_key = jax.random.split(key, 3)
            own = to_float(images[chosen])
            if train.max_shift or train.max_rotation:
                own = shift_and_rotate(
                    own, change_key, max_shift=train.max_shift, max_rotation=train.max_rotation
                )
            mean, log_variance = vae(decoder).encode(own)
            noise = jax.random.normal(sample_key, mean.shape)
            samples = mean + jnp.exp(0.5 * log_variance) * noise
            sizes = jnp.abs(slopes) + _LEAST
            drawn = jax.random.choice(
                draw_key, len(sizes), (train.pairs_per_class,), p=sizes / sizes.sum()
            )
            pairs = to_float(hard_images[drawn])
            moved = _descend(vae(decoder), pairs, latents[drawn], self.config.inference.max_norm)

            def loss(decoder: PyTree) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
                both = jnp.concatenate([own, pairs])
                decoded = vae(decoder).decode(jnp.concatenate([samples, moved]))
                errors = jnp.sum((both - decoded) ** 2, axis=(1, 2, 3))
                reconstruction = errors[: len(own)].mean()
                found = errors[len(own) :] + 0.5 * jnp.sum(moved**2, axis=1)
                # Drawn in proportion to |slope|: the mean estimates the sum of slope times energy.
                sampled = sizes.sum() * (jnp.sign(slopes[drawn]) * found).mean()
                return reconstruction + weight * sampled, (found, reconstruction)

            gradient, (found, reconstruction) = jax.grad(loss, has_aux=True)(decoder)
            latents = latents.at[drawn].set(moved)
            return gradient, latents, energies.at[drawn].set(found), reconstruction

        gradients, latents, energies, reconstructions = map_classes(
            class_gradient,
            params["decoder"],
            params["encoder"],
            statistics,
            data.images,
            chosen,
            slopes,
            latents,
            energies,
            jax.random.split(key, len(chosen)),
        )
        updates, optimizer = self.optimizer.update(gradients, state["optimizer"], params["decoder"])
        decoder = optax.apply_updates(params["decoder"], updates)
        new_state = {
            "model": {"params": params | {"decoder": decoder}, "statistics": statistics},
            "optimizer": optimizer,
            "pairs": {"latents": latents, "energies": energies},
        }
        # Of all training images: those that are not hard count as classified without loss.
        scores = jax.nn.log_softmax(-energies / train.temperature, axis=0)
        total = -jnp.sum(is_own * scores)
        cross_entropy = total / (self._images_per_class * len(chosen))
        reconstruction = reconstructions.mean()
        metrics = {
            "loss": reconstruction + train.cross_entropy_weight * cross_entropy,
            "reconstruction": reconstruction,
            "cross_entropy": cross_entropy,
        }
        return new_state, metrics

    def evaluate(self, state: State, epoch: int) -> dict[str, float]:
        """Accuracy and cross-entropy of ABS, unweighted, on the first validation images."""
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
        logits = replicate(classifier).logits(images)
        energies = -np.prod(self.dataset.image_shape) * np.asarray(logits)
        labels = split.labels[:count]
        own = energies[np.arange(count), labels]
        scores = jax.nn.log_softmax(-energies / self.config.train.temperature)
        scores = scores[np.arange(count), labels]
        return {
            "validation/cross_entropy": -float(scores.mean()),
            "validation/abs_accuracy": float(np.mean(energies.argmin(axis=1) == labels)),
            "validation/energy": float(own.mean()),
        }

    def images(self, state: State) -> dict[str, np.ndarray]:
        """Samples of each class, and validation images above their reconstructions."""
        columns = self.config.validation.image_columns
        return draw_pictures(self.graphdef, state["model"], self.dataset, columns)


def _descend(vae: VAE, images: jax.Array, latents: jax.Array, max_norm: float) -> jax.Array:
    """Latents (N, latent) after a step of gradient descent on their energies."""

    def energy(latents: jax.Array) -> jax.Array:
        return jnp.sum((images - vae.decode(latents)) ** 2) + 0.5 * jnp.sum(latents**2)

    gradients = jax.grad(energy)(latents)
    norms = jnp.linalg.norm(gradients, axis=1, keepdims=True)
    gradients *= jnp.minimum(1, _MAX_GRADIENT / jnp.maximum(norms, 1e-12))
    return project((latents - _STEP_SIZE * gradients).T, max_norm).T
