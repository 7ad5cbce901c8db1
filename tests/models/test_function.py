"""Functions and modules as classifiers: a classifier answers as they did when they were wrapped."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import abs_model
from abs_model.evaluation.run.workdir import model_identity
from abs_model.models.classifier import jitted_cold_logits

IMAGE_SHAPE = (4, 4, 1)
KEY = jax.random.key(0)


def flat(images):
    return images.reshape(len(images), -1)


def images_of(count=3, seed=0):
    return np.random.default_rng(seed).random((count, *IMAGE_SHAPE), np.float32)


def wrap(function, batch_size=4, **settings):
    settings = {"num_classes": 3, "image_shape": IMAGE_SHAPE, **settings}
    return abs_model.from_function(function, batch_size=batch_size, **settings)


def linear(seed=0):
    return nnx.Linear(16, 3, rngs=nnx.Rngs(seed))


def double(module):
    nnx.update(module, jax.tree.map(lambda leaf: 2 * leaf, nnx.state(module)))


class Network(nnx.Module):
    """Logits sign * images . matrix."""

    def __init__(self):
        self.layer = linear()

    def __call__(self, images, sign=1.0):
        return sign * self.layer(flat(images))

    def logits(self, images):
        return self(images)


class Holder:
    """Logits by an attribute."""

    def __init__(self, matrix):
        self.matrix = matrix

    def logits(self, images):
        return flat(images) @ self.matrix


SCALE = 1.0
MODULE = linear(3)


def by_globals(images):
    return SCALE * MODULE(flat(images))


def set_scale(value):
    globals()["SCALE"] = value


def with_network(make):
    network = Network()
    return make(network), lambda: double(network)


def sequential():
    network = nnx.Sequential(flat, linear())
    return network, lambda: double(network)


def hidden_module():
    inner = linear()
    return nnx.Sequential(flat, lambda x: inner(x)), lambda: double(inner)


def numpy_in_place(make=lambda function: function):
    matrix = np.array(linear().kernel[...])
    return make(lambda images: flat(images) @ matrix), lambda: np.multiply(matrix, 2, out=matrix)


def attribute():
    holder = Holder(linear().kernel[...])
    return holder.logits, lambda: setattr(holder, "matrix", 2 * holder.matrix)


def looping(function):
    """A jitted function inside a loop."""
    jitted = jax.jit(function)
    return lambda images: jax.lax.fori_loop(0, 2, lambda _, x: x + jitted(images), jitted(images))


def custom(function):
    """The gradient is the function's own, and of the same weights."""
    own = jax.custom_vjp(function)
    own.defvjp(
        lambda images: (function(images), images),
        lambda images, steps: jax.vjp(function, images)[1](steps),
    )
    return lambda images: own(images)


COMPLETE = {  # snapshots
    "module": sequential,
    "bound method": lambda: with_network(lambda network: network.logits),
    "call": lambda: with_network(lambda network: network.__call__),
    "partial": lambda: with_network(lambda network: functools.partial(network, sign=-1.0)),
}
LIVE = {
    "closure": lambda: with_network(lambda network: lambda images: network(images)),
    "argument": lambda: with_network(lambda n: functools.partial(lambda n, x: n(x), n)),
    "jitted": lambda: with_network(lambda network: jax.jit(lambda images: network(images))),
    "nested": lambda: with_network(lambda n: (lambda f: lambda x: f(x))(jax.jit(lambda x: n(x)))),
    "nnx.jit": lambda: with_network(lambda network: nnx.jit(lambda images: network(images))),
    "module in a layer": hidden_module,
    "NumPy": numpy_in_place,
    "NumPy in jit": lambda: numpy_in_place(jax.jit),
    "NumPy in a loop": lambda: numpy_in_place(looping),
    "own gradient": lambda: numpy_in_place(custom),
    "attribute": attribute,
    "global": lambda: (by_globals, lambda: set_scale(2 * SCALE)),
    "jitted global": lambda: (jax.jit(lambda x: by_globals(x)), lambda: set_scale(2 * SCALE)),
    "module in a global": lambda: (by_globals, lambda: double(MODULE)),
}


def gradients(model, images):
    return jax.grad(lambda images: model.logits(images)[:, 1].sum())(jnp.asarray(images))


@pytest.mark.parametrize("case", [*COMPLETE, *LIVE])
def test_a_classifier_is_what_was_wrapped_and_a_new_one_what_it_has_become(case):
    function, change = (COMPLETE | LIVE)[case]()
    images = images_of()
    first = wrap(function)
    before, slope = first.logits(images), jax.grad(lambda x: function(x)[:, 1].sum())(images)
    identity = model_identity(first)
    unused = wrap(function)  # whose programs are compiled after the change
    change()
    second = wrap(function)
    np.testing.assert_allclose(second.logits(images), 2 * before, rtol=1e-5)
    np.testing.assert_allclose(gradients(second, images), 2 * slope, rtol=1e-5)
    for model in (first, unused):
        np.testing.assert_allclose(model.logits(images), before, rtol=1e-6)
        np.testing.assert_allclose(gradients(model, images), slope, rtol=1e-5)
        assert model_identity(model) == identity
    assert model_identity(second) != identity


@pytest.mark.parametrize("case", COMPLETE)
def test_a_wrapped_module_is_complete(case):
    function, change = COMPLETE[case]()
    images = images_of()
    model = wrap(function)
    before = np.asarray(function(images))
    change()
    for size in (1, 2, 5):
        np.testing.assert_allclose(
            model.with_batch_size(size).logits(images), before, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("case", LIVE)
def test_a_changed_function_is_refused_where_a_number_of_images_is_new(case):
    function, change = LIVE[case]()
    images = images_of()
    model = wrap(function)
    before = model.with_batch_size(2).logits(images)
    change()
    with pytest.raises(
        ValueError, match=r"has changed since abs_model\.from_function.*call it again"
    ):
        model.with_batch_size(3).logits(images)
    np.testing.assert_allclose(model.with_batch_size(2).logits(images), before, rtol=1e-6)


def test_another_number_of_images_follows_as_long_as_nothing_changes():
    offsets = np.arange(3, dtype=np.float32)
    # Constants that go with the number of images, beside one that does not.
    model = wrap(lambda images: flat(images)[:, :3] * offsets + np.zeros((len(images), 1)))
    images = images_of(7)
    for size in (1, 2, 3, 7):
        np.testing.assert_allclose(
            model.with_batch_size(size).logits(images), flat(images)[:, :3] * offsets
        )


def test_training_compiles_nothing_again_for_a_module():
    network, change = sequential()
    images = images_of()
    wrap(network).logits(images)
    compiled = jitted_cold_logits._cache_size()
    for _ in range(3):
        change()
        wrap(network).logits(images)
    assert jitted_cold_logits._cache_size() == compiled


def test_a_copied_module_survives_the_donation_of_its_arrays():
    network, _ = sequential()
    images = images_of()
    model = wrap(network)
    before = np.asarray(network(images))
    for leaf in jax.tree.leaves(nnx.state(network)):
        leaf.delete()
    np.testing.assert_allclose(model.logits(images), before, rtol=1e-5)


def attack(model, images, **settings):
    settings = {"norm": "linf", "epsilon": 0.1, "step_size": 0.03, "num_steps": 5, **settings}
    return abs_model.pgd(model, images, np.zeros(len(images), int), KEY, **settings)


@pytest.mark.parametrize("case", [*COMPLETE, "closure", "jitted", "attribute", "own gradient"])
def test_what_was_wrapped_is_collected_with_the_classifier(case):
    function, change = (COMPLETE | LIVE)[case]()
    model, images = wrap(function), images_of(3)
    model.logits(images)
    attack(model, images)
    model_identity(model)
    arrays = [weakref.ref(leaf) for leaf in jax.tree.leaves(model.function)]
    (owner,) = [cell.cell_contents for cell in change.__closure__]
    owner = weakref.ref(owner)
    del function, change, model
    gc.collect()
    assert owner() is None
    assert arrays and all(array() is None for array in arrays)


def test_evaluation_during_training_follows_it():
    """Accuracy, what PGD reaches and the fingerprint are of the network as it is in each epoch."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(16, 3)).astype(np.float32)
    images = images_of(200)
    labels = ((flat(images) - 0.5) @ matrix).argmax(1)
    network = nnx.Sequential(lambda i: flat(i) - 0.5, linear())
    optimizer = nnx.Optimizer(network, optax.adam(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer):
        def loss(network):
            logits = network(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        optimizer.update(network, nnx.grad(loss)(network))

    accuracies, identities = [], []
    for _ in range(3):
        model = wrap(network, batch_size=200)
        predictions = np.asarray(network(images)).argmax(1)
        np.testing.assert_array_equal(model.predict(images), predictions)
        found = abs_model.pgd(
            model, images, labels, KEY, norm="linf", epsilon=0.02, step_size=0.01, num_steps=3
        )
        wrong = np.asarray(network(found.images)).argmax(1) != labels
        assert np.mean(wrong == found.success) > 0.98  # all but what is within rounding
        checked = abs_model.verify(model, images, labels, found.images, norm="linf", epsilon=0.02)
        np.testing.assert_array_equal(checked.verified, found.success)
        accuracies.append(np.mean(predictions == labels))
        identities.append(model_identity(model))
        for _ in range(30):
            step(network, optimizer)
    assert accuracies[0] < 0.6 and accuracies[2] > 0.9
    assert len(set(identities)) == 3


class Regularized(nnx.Module):
    def __init__(self, layer):
        self.first, self.last = (nnx.Linear(*size, rngs=nnx.Rngs(0)) for size in ((16, 8), (8, 3)))
        self.layer = layer

    def __call__(self, images):
        return self.last(self.layer(self.first(flat(images))))


LAYERS = {
    "dropout": lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(2)),
    "batch normalization": lambda: nnx.BatchNorm(8, rngs=nnx.Rngs(2)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("closed", [False, True])
def test_a_module_in_training_mode_is_told_of_eval(layer, closed):
    network = Regularized(LAYERS[layer]())
    function = (lambda images: network(images)) if closed else network
    with pytest.raises(ValueError, match=r"changes .*state.*\.eval\(\)"):
        wrap(function)
    network.eval()
    images = images_of()
    np.testing.assert_allclose(wrap(function).logits(images), network(images), rtol=1e-5)


def test_a_module_that_puts_values_by_is_no_module_in_training_mode():
    class Sowing(Network):
        def __call__(self, images):
            logits = super().__call__(images)
            self.sow(nnx.Intermediate, "found", logits)
            return logits

    network, images = Sowing(), images_of()
    expected = network(images)  # what it puts by is now part of it
    np.testing.assert_allclose(wrap(network).logits(images), expected, rtol=1e-5)


def test_a_function_that_differs_each_time_it_is_traced_is_refused():
    random = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"changes with each call.*jax\.pure_callback"):
        wrap(lambda images: flat(images)[:, :3] + random.normal())


def test_numpy_functions_are_told_of_callbacks():
    with pytest.raises(ValueError, match=r"NumPy array.*jax\.pure_callback.*black_box=True"):
        wrap(lambda images: np.asarray(images).reshape(len(images), -1)[:, :3])


def test_arrays_that_change_in_place_are_refused():
    reference = jax.new_ref(jnp.ones((16, 3)))
    with pytest.raises(ValueError, match=r"reads a jax\.Ref.*jax\.freeze"):
        wrap(lambda images: flat(images) @ reference[...])


KINDS = [jnp.int32, jnp.uint8, jnp.bool_, jnp.float16, jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_any_type_become_float32_and_integers_have_no_gradient(kind):
    model, images = wrap(lambda images: (flat(images)[:, :3] * 2).astype(kind)), images_of()
    logits = model.logits(images)
    assert logits.dtype == np.float32
    expected = np.asarray((jnp.asarray(flat(images)[:, :3]) * 2).astype(kind), np.float32)
    np.testing.assert_array_equal(logits, expected)
    assert model.differentiable == jnp.issubdtype(kind, jnp.floating)
    if not model.differentiable:
        with pytest.raises(ValueError, match="no gradients"):
            attack(model, images)


def test_logits_in_double_precision_become_float32():
    with jax.enable_x64(True):
        model = wrap(lambda images: flat(images)[:, :3].astype(jnp.float64))
        assert model.logits(images_of()).dtype == np.float32
        assert model.differentiable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes must be an integer of at least 2, got 1"),
        ({"num_classes": 3.0}, "num_classes must be an integer of at least 2, got 3.0"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"image_shape": (28, 28)}, r"image_shape must be \(height, width, channels\)"),
        ({"image_shape": (4, 0, 1)}, "each number in image_shape must be an integer"),
    ],
)
def test_faulty_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        wrap(lambda images: flat(images)[:, :3], **settings)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: (flat(images)[:, :3],) * 2, "it gives tuple"),
        (lambda images: flat(images)[:, :3] + 1j, "real numbers, it gives complex64"),
    ],
)
def test_what_is_no_logits_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        wrap(function)
