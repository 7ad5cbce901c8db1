"""What feed-forward networks train: plain or adversarial steps.

In adversarial training each batch is attacked with PGD first, and the network learns the result:
Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018
(https://arxiv.org/abs/1706.06083). With a single step from a random start it is the fast recipe of
Wong et al., "Fast is better than free", ICLR 2020 (https://arxiv.org/abs/2001.03994). The last
epochs may take an attack of their own, as a costly end of a cheap training.

A dispatch is one XLA program: for each step, gather a batch, attack it, and make one Adam update.
Data, parameters and optimizer stay on the device, and the state's buffers are donated.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax import lax

from abs_model._runtime.configuration import (
    ConfigError,
)
from abs_model._runtime.mesh import DATA, constrain, place, replicate, training_mesh
from abs_model.attacks import ascend, pgd
from abs_model.data import Dataset
from abs_model.data.batches import to_float
from abs_model.models.architectures import create_network
from abs_model.models.network import NetworkClassifier
from abs_model.training.loop import State

PyTree = Any


class NetworkTask:
    """Training of a network, for `abs_model.training.loop.fit`.

    Without steps of an attack (`train.attack.num_steps` = 0) it is plain training, and the best
    checkpoint is the most accurate one, else the most robust one.

    Step t trains on the next batch of its epoch's random order, attacked from a random start of its
    own: both follow from the seed and t. What an epoch's steps don't reach is left out of it.
    """

    best_mode = "max"

    def __init__(self, config: ml_collections.ConfigDict, dataset: Dataset) -> None:
        """Puts the data on the device.

        Args:
            config: As in configs/cnn.py or configs/madry.py, checked.
            dataset: What to train and validate on.

        Raises:
            ConfigError: The data set has fewer images than the configuration requires.
        """
        train = config.train
        _check_sizes(config, dataset)
        self._plain = train.attack.num_steps == 0
        self.best_metric = "validation/" + ("accuracy" if self._plain else "robust_accuracy")
        self.num_epochs: int = train.epochs
        self.images_per_step: int = train.batch_size
        self.steps_per_epoch: int = train.steps_per_epoch or _most_steps(config, dataset)
        self._config = config
        self._dataset = dataset
        self._mesh = training_mesh(1, train.batch_size)
        self._images, self._labels = place(
            (jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels)), self._mesh
        )
        init_key, self._order_key, self._attack_key = jax.random.split(
            jax.random.key(config.seed), 3
        )
        network = create_network(
            config.model, dataset.image_shape, dataset.num_classes, nnx.Rngs(init_key)
        )
        self._graphdef, variables = nnx.split(network)
        self._initial = nnx.to_pure_dict(variables)
        self._optimizer = optax.adam(_learning_rate(config, self.steps_per_epoch))
        # One program for all numbers of steps; the state is donated.
        self._run = jax.jit(self._trace_steps, donate_argnums=0)

    def init_state(self) -> State:
        """The state before step 0: the network's variables, and the state of Adam."""
        variables = jax.tree.map(jnp.copy, self._initial)
        _, parameters, _ = self._split(variables)
        state = {"model": variables, "optimizer": self._optimizer.init(parameters)}
        return place(state, self._mesh)

    def run_steps(
        self, state: State, first_step: int, num_steps: int
    ) -> tuple[State, Mapping[str, jax.Array]]:
        """Makes steps of one epoch.

        Args:
            state: From `init_state` or `run_steps`; its buffers are donated.
            first_step: Number of the first step, counted over the whole run.
            num_steps: How many; must stay within the epoch of the first.

        Returns:
            The state after them; the means of "loss" (cross-entropy in nats) and "accuracy" on the
            batches, attacked unless training is plain.
        """
        return self._run(state, self._images, self._labels, first_step, num_steps)

    def evaluate(self, state: State, epoch: int) -> dict[str, float]:
        """Accuracy on the validation images, and on its first ones under the validation attack."""
        del epoch
        images = self._dataset.validation.images.astype(np.float32) / 255
        labels = self._dataset.validation.labels
        classifier = self.classifier(state)
        settings = self._config.validation
        attacked = slice(settings.num_attacked)
        result = pgd(
            classifier, images[attacked], labels[attacked], self._attack_key, **settings.attack
        )
        return {
            "validation/accuracy": float(np.mean(classifier.predict(images) == labels)),
            "validation/robust_accuracy": 1.0 - float(np.mean(result.success)),
        }

    def images(self, state: State) -> dict[str, np.ndarray]:
        """No pictures."""
        del state
        return {}

    def classifier(self, state: State) -> NetworkClassifier:
        """The network being trained, with the parameters of a state."""
        classifier = NetworkClassifier(
            name=self._config.model.name,
            image_shape=self._dataset.image_shape,
            num_classes=self._dataset.num_classes,
            batch_size=self._config.validation.batch_size,
            graphdef=self._graphdef,
            state=state["model"],
            binary=False,
        )
        # Trained on fewer devices than classify, perhaps.
        return replicate(classifier.with_folded_weights())

    def _trace_steps(
        self,
        state: State,
        images: jax.Array,
        labels: jax.Array,
        first_step: jax.Array,
        num_steps: jax.Array,
    ) -> tuple[State, Mapping[str, jax.Array]]:
        size, steps = self.images_per_step, self.steps_per_epoch
        order_key = jax.random.fold_in(self._order_key, first_step // steps)
        order = jax.random.permutation(order_key, len(images))

        def body(
            step: jax.Array, carry: tuple[State, dict[str, jax.Array]]
        ) -> tuple[State, dict[str, jax.Array]]:
            state, sums = carry
            batch = lax.dynamic_slice_in_dim(order, step % steps * size, size)
            batch = constrain(batch, self._mesh, DATA)
            chosen = to_float(images[batch])
            if not self._plain:
                chosen = self._attack(state["model"], chosen, labels[batch], step)
            state, metrics = self._update(state, chosen, labels[batch])
            return state, jax.tree.map(jnp.add, sums, metrics)

        sums = {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}
        state, sums = lax.fori_loop(first_step, first_step + num_steps, body, (state, sums))
        return state, jax.tree.map(lambda total: total / num_steps, sums)

    def _attack(
        self, variables: PyTree, images: jax.Array, labels: jax.Array, step: jax.Array
    ) -> jax.Array:
        """The images attacked; over the first steps the attack grows linearly to its full size."""
        train = self._config.train
        final = step >= (train.epochs - train.final_attack.epochs) * self.steps_per_epoch
        settings = dict(train.attack) | {
            name: jnp.where(final, train.final_attack[name], train.attack[name])
            for name in ("step_size", "num_steps")
        }
        size = jnp.minimum(1.0, (step + 1) / max(1, train.attack_warmup_steps))
        settings |= {name: size * settings[name] for name in ("epsilon", "step_size")}
        key = jax.random.fold_in(self._attack_key, step)
        return ascend(nnx.merge(self._graphdef, variables), images, labels, key, **settings)

    def _update(
        self, state: State, images: jax.Array, labels: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One step of descent."""
        graphdef, parameters, statistics = self._split(state["model"])

        def loss(parameters: PyTree) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
            network = nnx.merge(graphdef, parameters, statistics)
            logits = network(images, training=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            # With the parameters as they were; the statistics are those of this batch.
            variables = nnx.to_pure_dict(nnx.state(network))
            return losses.mean(), ((logits.argmax(1) == labels).mean(), variables)

        (value, (accuracy, variables)), gradients = jax.value_and_grad(loss, has_aux=True)(
            parameters
        )
        updates, optimizer = self._optimizer.update(gradients, state["optimizer"], parameters)
        _, _, statistics = self._split(variables)
        network = nnx.merge(graphdef, optax.apply_updates(parameters, updates), statistics)
        state = {"model": nnx.to_pure_dict(nnx.state(network)), "optimizer": optimizer}
        return state, {"loss": value, "accuracy": accuracy}

    def _split(self, variables: PyTree) -> tuple[nnx.GraphDef, PyTree, PyTree]:
        """Structure, parameters, and what else the network keeps (batch statistics)."""
        network = nnx.merge(self._graphdef, variables)
        graphdef, *parts = nnx.split(network, nnx.Param, ...)
        # As plain arrays: variables of one trace can't be changed in another.
        parameters, others = map(nnx.to_pure_dict, parts)
        return graphdef, parameters, others


def _learning_rate(
    config: ml_collections.ConfigDict, steps_per_epoch: int
) -> float | optax.Schedule:
    """A constant rate; or one cycle over the run: up for 30% of the steps, then down to zero."""
    train = config.train
    if train.schedule == "constant":
        return train.learning_rate
    return optax.cosine_onecycle_schedule(train.epochs * steps_per_epoch, train.learning_rate)


def _most_steps(config: ml_collections.ConfigDict, dataset: Dataset) -> int:
    """How many batches the training images fill."""
    return len(dataset.train.labels) // config.train.batch_size


def _check_sizes(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    limits = {
        "train.batch_size": len(dataset.train.labels),
        "train.steps_per_epoch": _most_steps(config, dataset),
        "validation.num_attacked": len(dataset.validation.labels),
    }
    for key, limit in limits.items():
        section, name = key.split(".")
        value = config[section][name]
        if value is not None and value > limit:
            raise ConfigError(f"{key} must be at most {limit} for {dataset.name}, got {value}")
