"""Surrogates: small networks that imitate the decoders, for latent search to look around on.

A class's surrogate is a multilayer perceptron from latents to the leading principal components of
its decoder's images. It costs a small part of the decoder's time, and minima of the energy found on
it lie close to the decoder's. Fitted once per model.
"""

import dataclasses
import functools
import hashlib
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from optax.contrib import MuonDimensionNumbers
from rich.console import Console
from rich.progress import track

from abs_model._runtime.atomic_files import atomic_write_bytes
from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import map_chunks
from abs_model.inference.solvers.norm_ball import project
from abs_model.models.decoders import Decoder

PyTree = Any
_DECODE_BATCH = 250
# Standard deviation of the latents to fit on: those that explain another class's images lie farther
# out than the prior's, half of them beyond a norm of 4. Those outside the ball go onto its sphere.
_SPREAD = 1.5
_TANGENT_WEIGHT = 0.3
_METHOD = 2  # of fitting; surrogates fitted by an older one are fitted again


@dataclasses.dataclass(frozen=True)
class SurrogateSettings:
    """How surrogates are fitted.

    Attributes:
        components: Principal components that the network gives.
        widths: Of its hidden layers.
        num_samples: Decoded latents to fit on, per class.
        num_steps: Of Muon.
        batch_size: Latents per step.
        learning_rate: At the start; it falls to 0 along a cosine.
        max_norm: Latents are taken from the ball of this radius.
        seed: Of the latents and the network.
    """

    components: int = 128
    widths: tuple[int, ...] = (256, 256)
    num_samples: int = 30000
    num_steps: int = 3000
    batch_size: int = 500
    learning_rate: float = 0.05
    max_norm: float = 5.0
    seed: int = 0


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Surrogate:
    """One class's surrogate, or all classes' with a leading class axis on every array.

    Attributes:
        kernels: (out, in) of each layer.
        biases: (out, 1) of each layer.
        mean: Of the decoder's pixels, (pixels, 1).
        basis: Orthonormal, (pixels, components).
    """

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    mean: jax.Array
    basis: jax.Array

    def __call__(self, latents: jax.Array) -> jax.Array:
        """(latent, N) -> the decoded images' components, (components, N)."""
        return _network((self.kernels, self.biases), latents)

    def project(self, pixels: jax.Array) -> jax.Array:
        """(pixels, N) -> components, (components, N)."""
        return self.basis.T @ (pixels - self.mean)

    def outside(self, pixels: jax.Array, components: jax.Array) -> jax.Array:
        """The squared distance of pixels (pixels, N) from what components can give, (N,)."""
        return jnp.sum((pixels - self.mean) ** 2, axis=0) - jnp.sum(components**2, axis=0)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As host arrays by name, for files; `from_arrays` reads them."""
        arrays = {"mean": self.mean, "basis": self.basis}
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            arrays |= {f"kernel_{i}": kernel, f"bias_{i}": bias}
        return {name: np.asarray(array) for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """From what `to_arrays` made.

        Raises:
            KeyError: An array is missing.
        """
        layers = range(sum(name.startswith("kernel_") for name in arrays))
        # jnp.asarray would compile a program for each shape (JAX 0.10.2).
        return cls(
            kernels=tuple(jax.device_put(arrays[f"kernel_{i}"]) for i in layers),
            biases=tuple(jax.device_put(arrays[f"bias_{i}"]) for i in layers),
            mean=jax.device_put(arrays["mean"]),
            basis=jax.device_put(arrays["basis"]),
        )


def fit_surrogates(decoder: Decoder, latent_size: int, settings: SurrogateSettings) -> Surrogate:
    """Fits all classes' surrogates, one after the other, with a progress bar.

    Args:
        decoder: All classes' decoders.
        latent_size: Number of latent dimensions.
        settings: How to fit.
    """
    num_classes = len(decoder.biases[0])
    keys = jax.random.split(jax.random.key(settings.seed), num_classes)
    classes = track(range(num_classes), "fitting surrogates", console=Console(stderr=True))
    fitted = []
    for index in classes:
        decode = jax.tree.map(lambda leaf, i=index: leaf[i], decoder)
        fitted.append(jax.block_until_ready(_fit(decode, keys[index], latent_size, settings)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *fitted)


class SurrogateFileError(Exception):
    """A file of surrogates is damaged, or of another model or other settings."""


def surrogate_origin(decoder_origin: str, settings: SurrogateSettings) -> str:
    """A digest of what surrogates are fitted to, `Decoder.origin`, and how."""
    return hashlib.sha256(repr((_METHOD, settings, decoder_origin)).encode()).hexdigest()


def write_surrogate(path: pathlib.Path, surrogate: Surrogate, origin: str) -> None:
    """Writes a surrogate and its `surrogate_origin` as an .npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, origin=np.asarray(origin), **surrogate.to_arrays())
    atomic_write_bytes(path, content.getvalue())


def read_surrogate(path: pathlib.Path, origin: str) -> Surrogate:
    """Reads what `write_surrogate` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        SurrogateFileError: It is damaged or of another origin.
    """
    try:
        with np.load(path) as file:
            arrays = dict(file)
            found, surrogate = arrays["origin"], Surrogate.from_arrays(arrays)
    except FileNotFoundError:
        raise
    except Exception as error:  # damage shows as nearly any exception
        raise SurrogateFileError(f"{path} can't be read: {error}") from error
    if found != origin:
        raise SurrogateFileError(f"{path} is of another model or other settings")
    return surrogate


@functools.partial(jax.jit, static_argnums=(2, 3))
def _fit(
    decode: Decoder, key: jax.Array, latent_size: int, settings: SurrogateSettings
) -> Surrogate:
    """One class's surrogate, from values and directional derivatives of the decoder."""
    latent_key, tangent_key, network_key, order_key = jax.random.split(key, 4)
    shape = (latent_size, settings.num_samples)
    latents = project(_SPREAD * jax.random.normal(latent_key, shape), settings.max_norm)
    tangents = jax.random.normal(tangent_key, shape)
    pixels, slopes = map_chunks(
        lambda z, t: jax.jvp(decode, (z,), (t,)), latents, tangents, size=_DECODE_BATCH
    )
    mean = pixels.mean(axis=1, keepdims=True)
    centered = pixels - mean
    _, vectors = jnp.linalg.eigh(centered @ centered.T / settings.num_samples)
    basis = vectors[:, : -settings.components - 1 : -1]
    components, component_slopes = basis.T @ centered, basis.T @ slopes
    sizes = [latent_size, *settings.widths, basis.shape[1]]
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps)
    # Kernels are (out, in); biases are left to Muon's Adam.
    optimizer = optax.contrib.muon(
        rate,
        muon_weight_dimension_numbers=(
            tuple(MuonDimensionNumbers(reduction_axis=1, output_axis=0) for _ in sizes[1:]),
            tuple(None for _ in sizes[1:]),
        ),
    )

    def loss(network: PyTree, chosen: jax.Array) -> jax.Array:
        values, derivatives = jax.jvp(
            lambda z: _network(network, z), (latents[:, chosen],), (tangents[:, chosen],)
        )
        errors = jnp.sum((values - components[:, chosen]) ** 2, axis=0)
        slope_errors = jnp.sum((derivatives - component_slopes[:, chosen]) ** 2, axis=0)
        return jnp.mean(errors + _TANGENT_WEIGHT * slope_errors)

    def step(i: jax.Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        network, state = carry
        batch_key = jax.random.fold_in(order_key, i)
        chosen = jax.random.randint(batch_key, (settings.batch_size,), 0, settings.num_samples)
        updates, state = optimizer.update(jax.grad(loss)(network, chosen), state, network)
        return optax.apply_updates(network, updates), state

    network = _init_network(network_key, sizes)
    carry = (network, optimizer.init(network))
    (kernels, biases), _ = lax.fori_loop(0, settings.num_steps, step, carry)
    return Surrogate(kernels, biases, mean, basis)


def _init_network(key: jax.Array, sizes: Sequence[int]) -> PyTree:
    keys = jax.random.split(key, len(sizes) - 1)
    initial = jax.nn.initializers.variance_scaling(1.5, "fan_in", "normal", in_axis=1, out_axis=0)
    kernels = tuple(
        initial(k, (outputs, inputs), jnp.float32)
        for k, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )
    return kernels, tuple(jnp.zeros((outputs, 1)) for outputs in sizes[1:])


def _network(network: PyTree, latents: jax.Array) -> jax.Array:
    kernels, biases = network
    hidden = latents
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        hidden = jax.nn.silu(kernel @ hidden + bias)
    return kernels[-1] @ hidden + biases[-1]
