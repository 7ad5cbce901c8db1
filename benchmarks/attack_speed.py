"""The benchmark of attacks: ours against Foolbox's on JAX, same model, same steps, in turns.

Foolbox gets the classifier as one jitted function, and the same images, on which both run the same
number of steps; compilation comes before the first turn. On the CNN the queries of our PGD and
Boundary are timed by themselves, too: the rest of our time is the attack's own.
"""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import abs_model
from abs_model import AttackResult
from abs_model.attacks.boundary import boundary
from abs_model.attacks.deepfool import deepfool
from abs_model.attacks.pgd import pgd
from abs_model.models.classifier import Classifier
from benchmarks.timing import median_ratio, time_in_turns

_PGD: dict[str, Any] = {"norm": "linf", "epsilon": 0.3, "step_size": 0.01}
_ABS_PGD: dict[str, Any] = {"norm": "l2", "epsilon": 1.5, "step_size": 0.1}
_SEED = 0
_NUM_STARTS = 100


def measure(batch_sizes: Sequence[int], turns: int) -> dict[str, object]:
    """Images/s of both, and the ratios.

    Args:
        batch_sizes: Images at a time, on the CNN; ABS is attacked with the largest.
        turns: How often each is timed.
    """
    images, labels = _images(max(batch_sizes))
    candidates = {}
    for size in batch_sizes:
        cnn = abs_model.load("cnn", batch_size=size)
        for name, pair in _on_cnn(cnn, images[:size], labels[:size]).items():
            for side, run in pair.items():
                candidates[f"{name}, CNN, batch {size}", side] = (run, size)
    size = max(batch_sizes)
    model = abs_model.load("abs", batch_size=size)
    for side, run in _on_abs(model, images, labels).items():
        candidates[f"PGD, ABS, batch {size}", side] = (run, size)
    rates = time_in_turns(candidates, turns)
    names = dict.fromkeys(name for name, _ in candidates)
    return {
        "attacks": {
            name: {
                "images_per_second": {
                    side: round(statistics.median(rates[name, side]), 2)
                    for side in ("ours", "foolbox")
                },
                "ratio": median_ratio(rates[name, "ours"], rates[name, "foolbox"]),
            }
            | _share_of_queries(rates, name)
            for name in names
        }
    }


def _share_of_queries(rates: Mapping[tuple[str, str], list[float]], name: str) -> dict[str, float]:
    """The share of our time that the queries take, where they were timed."""
    if (name, "queries") not in rates:
        return {}
    return {"share_of_queries": median_ratio(rates[name, "ours"], rates[name, "queries"])}


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Validation images, which nothing is tuned on test images by."""
    split = abs_model.load_dataset("mnist").validation
    return split.images[:count].astype(np.float32) / 255, split.labels[:count]


def _training_images(count: int) -> np.ndarray:
    return abs_model.load_dataset("mnist").train.images[:count].astype(np.float32) / 255


def _nearest_adversarial(
    model: Classifier, images: np.ndarray, labels: np.ndarray, starts: np.ndarray
) -> jax.Array:
    """Of each image the closest of the starts that is adversarial for it, as ours picks it."""
    away = np.linalg.norm((images[:, None] - starts).reshape(len(images), len(starts), -1), axis=2)
    away[model.predict(starts) == labels[:, None]] = np.inf
    return jnp.asarray(starts[away.argmin(1)])


def _on_cnn(
    model: Classifier, images: np.ndarray, labels: np.ndarray
) -> dict[str, dict[str, Callable[[], object]]]:
    import foolbox

    key = jax.random.key(_SEED)
    theirs = _foolbox_runner(model, images, labels)
    attacks = foolbox.attacks
    # Foolbox is given where to begin; ours would look for it among all of them.
    starts = _nearest_adversarial(model, images, labels, _training_images(_NUM_STARTS))

    def our_pgd() -> AttackResult:
        return pgd(model, images, labels, key, num_steps=40, **_PGD)

    def our_boundary() -> AttackResult:
        return boundary(model, images, labels, key, num_steps=200, starting_points=starts)

    return {
        "PGD, 40 steps": {
            "ours": lambda: _wait(our_pgd()),
            "queries": _queries_of(our_pgd(), model, images),
            "foolbox": functools.partial(
                theirs, attacks.LinfPGD(abs_stepsize=0.01, steps=40), _PGD["epsilon"]
            ),
        },
        "DeepFool L2, 50 steps": {
            "ours": lambda: _wait(deepfool(model, images, labels, key, norm="l2", num_steps=50)),
            "foolbox": functools.partial(
                theirs, attacks.L2DeepFoolAttack(steps=50, candidates=10), None
            ),
        },
        "Boundary, 200 steps": {
            "ours": lambda: _wait(our_boundary()),
            "queries": _queries_of(our_boundary(), model, images),
            "foolbox": functools.partial(
                theirs,
                attacks.BoundaryAttack(steps=200),
                None,
                starting_points=starts,
            ),
        },
    }


def _queries_of(
    result: AttackResult, model: Classifier, images: np.ndarray
) -> Callable[[], object]:
    """Makes as many queries of each kind as the attack did, and nothing else."""
    assert result.num_queries is not None and result.num_gradients is not None  # ours count
    num_gradients = int(result.num_gradients.max())
    num_others = int(result.num_queries.max()) - num_gradients

    def gradients(model: Classifier, images: jax.Array) -> jax.Array:
        return jax.grad(lambda images: model.batch_logits(images)[:, 0].sum())(images)

    def one_by_one(
        query: Callable[[Classifier, jax.Array], jax.Array],
    ) -> Callable[[jax.Array], jax.Array]:
        # The same images, but not before the query is answered: an attack waits for it, too.
        answer = jax.jit(lambda model, images: images + 0.0 * query(model, images).sum())
        return functools.partial(answer, model)

    query_gradients = one_by_one(gradients)
    query_logits = one_by_one(lambda model, images: model.batch_logits(images))

    def run() -> None:
        queried = jnp.asarray(images)
        for _ in range(num_gradients):
            queried = query_gradients(queried)
        for _ in range(num_others):
            queried = query_logits(queried)
        jax.block_until_ready(queried)

    return run


def _on_abs(
    model: Classifier, images: np.ndarray, labels: np.ndarray
) -> dict[str, Callable[[], object]]:
    import foolbox

    theirs = _foolbox_runner(model, images, labels)
    attack = foolbox.attacks.L2PGD(abs_stepsize=_ABS_PGD["step_size"], steps=20)
    key = jax.random.key(_SEED)
    return {
        "ours": lambda: _wait(pgd(model, images, labels, key, num_steps=20, **_ABS_PGD)),
        "foolbox": functools.partial(theirs, attack, _ABS_PGD["epsilon"]),
    }


def _foolbox_runner(
    model: Classifier, images: np.ndarray, labels: np.ndarray
) -> Callable[..., None]:
    import foolbox

    function = jax.jit(model.batch_logits)
    wrapped = foolbox.JAXModel(function, bounds=(0, 1), data_format="channels_last")
    given = jnp.asarray(images), jnp.asarray(labels)

    def run(attack: Any, epsilon: float | None, **settings: Any) -> None:
        np.random.seed(_SEED)
        # For all it returns, or what is still at work would count against whoever is next.
        jax.block_until_ready(attack(wrapped, *given, epsilons=epsilon, **settings))

    return run


def _wait(result: AttackResult) -> object:
    return jax.block_until_ready(result.images)
