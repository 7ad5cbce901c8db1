"""What ABS trains: one VAE per class, all in one jitted step, each on its own class's images only.

A dispatch is one XLA program: for each step, for each class, gather a batch, compute the loss and
its gradient; then one Adam update of all classes' parameters together. Data, parameters and
optimizer stay on the device, and the state's buffers are donated.
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

from abs_model._runtime.mesh import CLASS, place, replicate, training_mesh
from abs_model._runtime.vectorize import map_classes
from abs_model.attacks.pgd import pgd
from abs_model.data import Dataset
from abs_model.data.augmentation import shift_and_rotate
from abs_model.data.batches import ImagesByClass, group_by_class, to_float
from abs_model.models.build import build_abs, init_vaes, search_settings
from abs_model.models.vae import elbo_terms
from abs_model.training.abs_pictures import draw_pictures
from abs_model.training.abs_steps import run_steps
from abs_model.training.loop import State

PyTree = Any
_VALIDATION_BATCH = 125
# Short, because it is repeated during training. At this epsilon the paper's ABS keeps 80%.
_ATTACK: dict[str, Any] = {
    "norm": "l2",
    "epsilon": 1.5,
    "step_size": 0.2,
    "num_steps": 20,
    "random_start": False,
}


class ABSTask:
    """Trains the stacked VAEs; see `abs_model.training.loop.Task`."""

    best_metric = "validation/elbo"
    best_mode = "max"

    def __init__(self, config: ml_collections.ConfigDict, dataset: Dataset):
        """Puts the data on the device.

        Args:
            config: As in `configs/abs.py`.
            dataset: What to train on.

        Raises:
            ValueError: More images are to be attacked than there are.
        """
        train = config.train
        num_attacked = config.validation.get("num_attacked") or 0
        if num_attacked > len(dataset.validation.labels):
            raise ValueError(
                f"validation.num_attacked must be at most the {len(dataset.validation.labels)}"
                f" validation images there are, got {num_attacked}"
            )
        per_step = train.batch_size_per_class * dataset.num_classes
        self.config = config
        self.dataset = dataset
        self.num_epochs = train.epochs
        self.images_per_step = per_step
        split = dataset.train_and_validation if train.get("include_validation") else dataset.train
        self.steps_per_epoch = max(1, len(split.labels) // per_step)
        # The energy that inference minimizes has a variance of 1/2.
        self._variance = train.get("likelihood_variance") or 0.5
        self._mesh = training_mesh(dataset.num_classes, train.batch_size_per_class)
        data = group_by_class(split, dataset.num_classes)
        self.data = place(data, self._mesh, CLASS)
        self.graphdef, self._model = init_vaes(config, dataset.image_shape, dataset.num_classes)
        # Constant while beta falls: what the VAEs learn at beta = 1, they learn at the full rate.
        total_steps = train.epochs * self.steps_per_epoch
        decay_steps = round(train.decay_fraction * total_steps)
        decay = optax.cosine_decay_schedule(train.learning_rate, max(1, decay_steps))
        constant = optax.constant_schedule(train.learning_rate)
        rate = optax.join_schedules([constant, decay], [total_steps - decay_steps])
        self.optimizer = optax.adam(rate)

    def init_state(self) -> State:
        model = jax.tree.map(jnp.copy, self._model)  # steps donate what they are given
        state = {"model": model, "optimizer": self.optimizer.init(model["params"])}
        return place(state, self._mesh, CLASS)

    def run_steps(
        self, state: State, first_step: int, num_steps: int
    ) -> tuple[State, Mapping[str, jax.Array]]:
        return self._run_steps(state, self.data, first_step, num_steps)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _run_steps(
        self, state: State, data: ImagesByClass, first_step: jax.Array, num_steps: jax.Array
    ) -> tuple[State, Mapping[str, jax.Array]]:
        """One program for any number of steps of one epoch."""

        def step(
            state: State, chosen: jax.Array, key: jax.Array, i: jax.Array
        ) -> tuple[State, PyTree]:
            return self._step(state, data, chosen, key, i)

        state, metrics = run_steps(
            step,
            state,
            data,
            first_step,
            num_steps,
            config=self.config,
            steps_per_epoch=self.steps_per_epoch,
            mesh=self._mesh,
            metrics=("loss", "reconstruction", "kl"),
        )
        return state, metrics | {"beta": self._beta(first_step + num_steps)}

    def _step(
        self, state: State, data: ImagesByClass, chosen: jax.Array, key: jax.Array, step: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update of all VAEs; `chosen` (classes, batch) indexes each class's images."""
        beta = self._beta(step)
        # Absent in older configurations.
        changes = {k: self.config.train.get(k) or 0.0 for k in ("max_shift", "max_rotation")}

        def class_gradient(
            params: PyTree, statistics: PyTree, images: jax.Array, chosen: jax.Array, key: jax.Array
        ) -> tuple[PyTree, tuple[dict[str, jax.Array], PyTree]]:
            batch = to_float(images[chosen])
            if any(changes.values()):
                key, change_key = jax.random.split(key)
                batch = shift_and_rotate(batch, change_key, **changes)

            def loss(params: PyTree) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
                vae = nnx.merge(self.graphdef, params, statistics)
                reconstruction, kl = elbo_terms(vae, batch, key, training=True)
                metrics = {"reconstruction": reconstruction.mean(), "kl": kl.mean()}
                # The negative ELBO times 2 * variance, so that gradients keep their size.
                value = metrics["reconstruction"] + beta * 2 * self._variance * metrics["kl"]
                return value, (
                    {"loss": value} | metrics,
                    nnx.to_pure_dict(nnx.state(vae, nnx.BatchStat)),
                )

            return jax.grad(loss, has_aux=True)(params)

        model = state["model"]
        keys = jax.random.split(key, chosen.shape[0])
        gradients, (metrics, statistics) = map_classes(
            class_gradient, model["params"], model["statistics"], data.images, chosen, keys
        )
        updates, optimizer = self.optimizer.update(gradients, state["optimizer"], model["params"])
        params = optax.apply_updates(model["params"], updates)
        new_state = {
            "model": {"params": params, "statistics": statistics},
            "optimizer": optimizer,
        }
        return new_state, jax.tree.map(jnp.mean, metrics)

    def _beta(self, step: jax.Array) -> jax.Array:
        """Factor of the KL divergence in the ELBO: linear from `beta_start` to 1, then 1."""
        train = self.config.train
        annealing = round(train.beta_fraction * train.epochs * self.steps_per_epoch)
        progress = jnp.minimum(1.0, step / max(1, annealing))
        return train.beta_start + (1 - train.beta_start) * progress

    def evaluate(self, state: State, epoch: int) -> dict[str, float]:
        """ELBO and encoder accuracy on validation images; every few epochs, those of ABS."""
        split = self.dataset.validation
        count = min(self.config.validation.elbo_images, len(split.labels))
        totals = {"elbo": 0.0, "encoder_accuracy": 0.0}
        for first in range(0, count, _VALIDATION_BATCH):
            images = split.images[first : min(first + _VALIDATION_BATCH, count)]
            labels = split.labels[first : first + len(images)]
            padding = ((0, _VALIDATION_BATCH - len(images)), (0, 0), (0, 0), (0, 0))
            terms = self._validation_terms(state["model"], np.pad(images, padding))
            for name, values in _score(np.asarray(terms)[:, :, : len(images)], labels).items():
                totals[name] += values
        metrics = {f"validation/{name}": total / count for name, total in totals.items()}
        if epoch % self.config.validation.abs_every_epochs == 0 or epoch == self.num_epochs:
            metrics |= self._of_classifier(state)
        return metrics

    @functools.partial(jax.jit, static_argnums=0)
    def _validation_terms(self, model: PyTree, images: jax.Array) -> jax.Array:
        """Each class's ELBO (row 0) and energy at the encoder's mean (row 1): (2, classes, N)."""
        images = to_float(images)
        # Relative to a variance of 1/2, so that ELBOs of different variances can be compared.
        constant = 0.5 * math.prod(self.dataset.image_shape) * math.log(2 * self._variance)

        def class_terms(params: PyTree, statistics: PyTree) -> tuple[jax.Array, jax.Array]:
            vae = nnx.merge(self.graphdef, params, statistics)
            reconstruction, kl = elbo_terms(vae, images, jax.random.key(0), training=False)
            mean, _ = vae.encode(images)
            errors = jnp.sum((images - vae.decode(mean)) ** 2, axis=(1, 2, 3))
            elbo = -(reconstruction / (2 * self._variance) + kl) - constant
            return elbo, errors + 0.5 * jnp.sum(mean**2, axis=1)

        return jnp.stack(map_classes(class_terms, model["params"], model["statistics"]))

    def _of_classifier(self, state: State) -> dict[str, float]:
        """Accuracy of the full classifier on the first validation images, attacked or not."""
        split, settings = self.dataset.validation, self.config.validation
        # There are no surrogates before training has ended, so the solver that needs none serves.
        classifier = build_abs(
            self.config,
            self.graphdef,
            state["model"],
            self.dataset.image_shape,
            search=search_settings(self.config, "adam"),
        )
        # Trained on fewer devices than classify, perhaps.
        classifier = replicate(classifier)

        def first(count: int) -> tuple[np.ndarray, np.ndarray]:
            return split.images[:count].astype(np.float32) / 255, split.labels[:count]

        images, labels = first(settings.abs_images)
        accuracy = float(np.mean(classifier.predict(images) == labels))
        found = {"validation/abs_accuracy": accuracy}
        if num_attacked := settings.get("num_attacked"):  # absent in older configurations
            found["validation/robust_accuracy"] = 1.0 - float(
                pgd(classifier, *first(num_attacked), jax.random.key(0), **_ATTACK).success.mean()
            )
        return found

    def images(self, state: State) -> dict[str, np.ndarray]:
        """Samples of each class, and validation images above their reconstructions."""
        columns = self.config.validation.image_columns
        return draw_pictures(self.graphdef, state["model"], self.dataset, columns)


def _score(terms: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Sums over the images of their own class's ELBO and of the encoder's hits.

    Args:
        terms: From `_validation_terms`, (2, classes, N).
        labels: (N,).
    """
    elbo, energies = terms
    hits = np.argmin(energies, axis=0) == labels
    return {
        "elbo": float(elbo[labels, np.arange(len(labels))].sum()),
        "encoder_accuracy": float(hits.sum()),
    }
