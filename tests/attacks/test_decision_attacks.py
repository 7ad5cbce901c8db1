"""Attacks that see decisions only, and where they begin: closed forms and bounds."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model import register_dataclass
from abs_model.attacks import Batch, distances
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.query import Query
from abs_model.attacks._search.gradient_direction import estimate_direction
from abs_model.attacks._search.line_search import interpolate
from abs_model.attacks._search.starting_points import (
    most_starting_queries,
    read_starting_points,
    search_starting_points,
)
from abs_model.attacks.boundary import boundary
from abs_model.attacks.hop_skip_jump import hop_skip_jump
from benchmarks.linear import LinearClassifier
from tests.linear_classifiers import (
    PIXELS,
    SHAPE,
    boundary_distances,
    check_bounds,
    grays,
    linear_classifier,
    three_classes,
    two_classes,
)
from tests.minimal_norm import check_closed_form_at_the_walls, walled

KEY = jax.random.key(3)
few_examples = hypothesis.settings(max_examples=6, deadline=None)
CASES = {
    "boundary": (boundary, "l2", {"num_steps": 60}),
    "hop_skip_jump-l2": (hop_skip_jump, "l2", {"num_steps": 3, "initial_num_evals": 10}),
    "hop_skip_jump-linf": (hop_skip_jump, "linf", {"num_steps": 3, "initial_num_evals": 10}),
}
all_attacks = pytest.mark.parametrize("case", CASES)


# Classifies each image by itself, so that rounding does not depend on the others: questions are
# asked on the boundary, where it decides.
@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OneByOne(LinearClassifier):
    def batch_logits(self, images):
        return jax.lax.map(lambda image: image.ravel() @ self.weights + self.biases, images)


def three_classes_one_by_one():
    model = three_classes()
    return OneByOne(
        **{field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    )


never = linear_classifier(np.zeros((PIXELS, 2)), [1.0, 0.0])


def run(case, model, images, labels, key=KEY, **changes):
    attack, norm, settings = CASES[case]
    given = settings | changes
    if attack is hop_skip_jump:
        given = {"norm": norm} | given
    return attack(model, images, labels, key, **given)


def begin(model, images, labels, starts, norm="l2"):
    """The images that attacks start from."""
    keys = image_keys(KEY, len(images))
    batch = Batch(jnp.asarray(images), jnp.asarray(labels), keys, targeted=False)
    query = Query(model, batch, norm)
    query.logits(batch.images)
    points = read_starting_points(starts, SHAPE)
    search_starting_points(query, points)
    assert query.num_queries <= 1 + most_starting_queries(points)
    return query.best


@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
def test_the_start_is_the_closest_that_fools(norm):
    model, images, starts = three_classes(), grays(6), walled(40)
    # Some that differ in few pixels, so that L0 has a choice.
    starts[:6] = images
    starts[np.arange(6), np.arange(6) % 6, 2] = 1.0
    starts[6:12] = images
    starts[6:12, :2] = 0.0
    labels = model.predict(images)
    result = begin(model, images, labels, starts, norm)
    predictions = model.predict(starts)
    for image, label, found, distance in zip(
        images, labels, result.images, result.distances, strict=True
    ):
        away = (starts - image).astype(np.float64)
        lengths = {
            "l2": np.sqrt((away**2).sum((1, 2, 3))),
            "linf": np.abs(away).max((1, 2, 3)),
            "l0": (away != 0).any(3).sum((1, 2)).astype(float),
        }[norm]
        lengths[predictions == label] = np.inf
        np.testing.assert_allclose(distance, lengths.min(), rtol=1e-5)
        assert any(np.array_equal(found, start) for start in starts[lengths == lengths.min()])


def test_an_image_without_a_start_fails_and_disturbs_no_other():
    model, images = three_classes(), grays(9)
    labels = model.predict(images)
    predictions = model.predict(walled(60))
    # All of one class, so that images of that class have none to begin at.
    starts = walled(60)[predictions == labels[0]][:5]
    alone = labels != labels[0]
    for case in CASES:
        result = run(case, model, images, labels, starting_points=starts)
        np.testing.assert_array_equal(result.success, alone)
        part = run(case, model, images[alone], labels[alone], image_keys(KEY, 9)[alone],
                   starting_points=starts)  # fmt: skip
        np.testing.assert_allclose(part.images, result.images[alone], atol=1e-5)


def test_starts_are_classified_once(monkeypatch):
    model, images = three_classes().with_batch_size(2), grays(6)
    asked = []
    logits = type(model).decision_logits
    monkeypatch.setattr(
        type(model), "decision_logits", lambda self, x: asked.append(len(x)) or logits(self, x)
    )
    labels = model.predict(images)
    asked.clear()
    result = run("boundary", model, images, labels, starting_points=walled(20), num_steps=3)
    assert asked == [20]
    assert np.all(result.success)
    # One query of the original, of the starting point and of the last image, and 12 for each
    # bisection.
    np.testing.assert_array_equal(result.num_queries, 1 + 1 + 12 + 3 + 1 + 12)


def test_without_starts_noise_and_grays_are_tried():
    model, images = three_classes(), grays(12)
    labels = model.predict(images)
    result = begin(model, images, labels, None)
    assert np.all(result.success)
    np.testing.assert_array_equal(model.predict(result.images) != labels, True)
    assert np.all(np.asarray(result.images) >= 0) and np.all(np.asarray(result.images) <= 1)
    # Blends come closer than noise itself, whose values are a third from gray, in the mean square.
    assert np.median(result.distances) < 0.75 * np.sqrt(PIXELS / 12)


def test_noise_that_always_fails_ends():
    result = begin(never, grays(3), np.zeros(3, int), None)
    assert not np.any(result.success)


@pytest.mark.parametrize(
    ("case", "tolerance", "settings"),
    [
        ("boundary", 0.03, {"num_steps": 1500}),
        ("hop_skip_jump-l2", 0.04, {"num_steps": 20, "initial_num_evals": 60}),
        ("hop_skip_jump-linf", 0.1, {"num_steps": 20, "initial_num_evals": 60}),
    ],
)
def test_reaches_the_boundary_of_a_linear_classifier(case, tolerance, settings):
    model, w, bias = two_classes()
    images = grays(6)
    result = run(case, model, images, model.predict(images), **settings)
    needed = boundary_distances(images, w, bias, CASES[case][1])
    assert np.all(result.success)
    assert np.all(np.asarray(result.distances) >= needed * (1 - 1e-4))
    np.testing.assert_allclose(result.distances, needed, rtol=tolerance)


@pytest.mark.parametrize(
    ("case", "tolerance", "settings"),
    [
        ("boundary", 0.1, {"num_steps": 1500}),
        ("hop_skip_jump-l2", 0.1, {"num_steps": 20, "initial_num_evals": 60}),
        ("hop_skip_jump-linf", 0.2, {"num_steps": 20, "initial_num_evals": 60}),
    ],
)
def test_the_range_of_images_is_taken_into_account(case, tolerance, settings):
    attack, norm, _ = CASES[case]
    given = settings | ({"norm": norm} if attack is hop_skip_jump else {})
    check_closed_form_at_the_walls(attack, norm, tolerance, **given)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_lines_end_exactly_where_they_lead(norm):
    """The end may lie just across the boundary, where rounding would take it back."""
    originals, far = jnp.asarray(grays(200)), jnp.asarray(walled(200))
    ends = interpolate(originals, far, jnp.ones(200), norm)
    np.testing.assert_array_equal(ends, far)
    halfway = interpolate(originals, far, jnp.full(200, 0.5), norm)
    reached = distances(halfway, originals, norm) / distances(far, originals, norm)
    np.testing.assert_allclose(reached, 0.5, rtol=1e-5)


def test_directions_are_estimated_where_the_margin_grows():
    model, w, bias = two_classes()
    images = grays(4)
    towards = (images.reshape(4, -1) @ w + bias)[:, None] * w / (w @ w)
    points = jnp.asarray((images.reshape(4, -1) - towards).reshape(images.shape), jnp.float32)
    batch = Batch(points, jnp.array([0, 1, 0, 1]), image_keys(KEY, 4), targeted=False)
    cosines = []
    for size in (50, 2000):
        query = Query(model, batch, "l2")
        here = query.logits(points)
        directions = estimate_direction(query, here, jnp.full(4, 0.01), batch.keys, size)
        assert query.num_queries == 1 + size
        np.testing.assert_allclose(distances(directions, 0 * points, "l2"), 1.0, rtol=1e-5)
        sides = np.array([1, -1, 1, -1])
        cosines.append(sides * (np.asarray(directions).reshape(4, -1) @ w) / np.linalg.norm(w))
    # Of B random directions in d dimensions, cos^2 is about 1 / (1 + (pi / 2) (d - 1) / B).
    assert np.abs(np.median(cosines[0]) - (1 + np.pi / 2 * 59 / 50) ** -0.5) < 0.1
    assert np.all(cosines[1] > 0.96)


@all_attacks
@few_examples
@hypothesis.given(seed=st.integers(0, 1000))
def test_results_keep_to_the_bounds(case, seed):
    model = three_classes()
    images = walled(6, seed)
    labels = np.random.default_rng(seed).integers(0, 3, 6)
    result = run(case, model, images, labels, key=jax.random.key(seed))
    check_bounds(result, images, CASES[case][1], np.inf)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)
    wrong = model.predict(images) != labels
    np.testing.assert_array_equal(np.asarray(result.distances)[wrong], 0.0)
    np.testing.assert_array_equal(np.asarray(result.images)[wrong], images[wrong])


@all_attacks
def test_same_key_same_result_other_key_another(case):
    model, images = three_classes(), grays(6)
    labels = model.predict(images)
    first, again, other = (
        run(case, model, images, labels, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(np.asarray(first.images) - other.images).max() > 1e-3


@all_attacks
@pytest.mark.parametrize("with_starts", [False, True])
def test_result_does_not_depend_on_the_split_into_calls_and_batches(case, with_starts):
    model, images = three_classes_one_by_one(), grays(7)
    labels = model.predict(images)
    starts = walled(20) if with_starts else None
    settings = {"num_steps": 20} if case == "boundary" else {"num_steps": 2}
    whole = run(case, model.with_batch_size(7), images, labels, starting_points=starts, **settings)
    batched = run(
        case, model.with_batch_size(3), images, labels, starting_points=starts, **settings
    )
    parts = [
        run(
            case,
            model,
            images[part],
            labels[part],
            image_keys(KEY, 7)[part],
            starting_points=starts,
            **settings,
        )
        for part in (slice(0, 2), slice(2, 7))
    ]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    for other in (batched, joined):
        np.testing.assert_allclose(other.images, whole.images, atol=1e-5)
        np.testing.assert_array_equal(other.success, whole.success)


@all_attacks
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**13])  # which round nothing
def test_the_scale_of_the_logits_plays_no_part(case, scale):
    images = grays(6)
    labels = two_classes()[0].predict(images)
    plain, scaled = (run(case, two_classes(scale=s)[0], images, labels) for s in (1, scale))
    np.testing.assert_allclose(scaled.distances, plain.distances, rtol=0.01)
    assert np.all(scaled.success)


@all_attacks
def test_a_classifier_that_nothing_fools_is_no_trouble(case):
    images = walled(3)
    result = run(case, never, images, np.zeros(3, int))
    assert not np.any(result.success)
    assert np.all(np.isfinite(result.images))


@all_attacks
def test_targets_are_reached_from_starts_of_their_class(case):
    model, images = three_classes(), grays(6)
    labels = model.predict(images)
    untargeted = run(case, model, images, labels, starting_points=walled(40))
    for shift in (1, 2):
        targets = (labels + shift) % 3
        result = run(case, model, images, labels, targets=targets, starting_points=walled(40))
        np.testing.assert_array_equal(model.predict(result.images), targets)
        assert np.all(np.asarray(result.distances) > 0)
    assert np.all(untargeted.success)


@all_attacks
def test_more_steps_come_closer(case):
    model, images = three_classes(), walled(6)
    labels = model.predict(images)
    counts = (1, 60) if case == "boundary" else (1, 6)
    few, more = (run(case, model, images, labels, num_steps=count) for count in counts)
    assert np.all(np.asarray(more.distances) <= np.asarray(few.distances) * (1 + 1e-5))
    assert np.median(more.distances) < np.median(few.distances)


def test_the_boundary_attack_stops_when_its_steps_have_shrunk():
    model, images = three_classes(), grays(4)
    labels = model.predict(images)
    seen = []
    # Steps so long that they fail, until they are too short.
    result = run(
        "boundary", model, images, labels, num_steps=2000, source_step=0.4,
        source_step_convergence=0.3, starting_points=walled(20), progress=seen.append,
    )  # fmt: skip
    assert np.all(result.num_queries < 500)
    assert seen == list(range(1, int(result.num_queries[0]) + 1))
    np.testing.assert_array_equal(result.num_gradients, 0)


@pytest.mark.parametrize(("norm", "bisections"), [("l2", 11), ("linf", 14)])
def test_hop_skip_jump_asks_as_often_as_documented(norm, bisections):
    model, images = three_classes(), grays(4)
    settings = {
        "norm": norm,
        "initial_num_evals": 10,
        "max_num_evals": 15,
        "starting_points": walled(20),
    }
    labels = model.predict(images)
    case = f"hop_skip_jump-{norm}"
    result = run(case, model, images, labels, num_steps=3, **settings)
    # floor(10 sqrt(t)), at most 15.
    least = 1 + 1 + bisections + (10 + 14 + 15) + 3 * bisections
    assert np.all(result.num_queries >= least + 3)
    assert np.all(result.num_queries <= least + 3 * 16)
    two, limited = (
        run(case, model, images, labels, **settings, **budget)
        for budget in (
            {"num_steps": 2},
            {"num_steps": 9, "max_queries": least + 3 * 16 - 1},
        )
    )
    np.testing.assert_array_equal(limited.images, two.images)
    assert np.all(limited.num_queries < least + 3 * 16)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("boundary", {"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ("boundary", {"spherical_step": 0.0}, "spherical_step must be a finite number above 0.0"),
        ("boundary", {"source_step": -1.0}, "source_step must be a finite number above 0.0"),
        ("boundary", {"source_step_convergence": -1e-9}, "source_step_convergence must be"),
        ("boundary", {"step_adaptation": 1.0}, "step_adaptation must be a finite number above 1"),
        (
            "boundary",
            {"starting_points": grays(2)[:, :5]},
            r"starting_points must be .*\(N, 6, 5, 2\)",
        ),
        ("boundary", {"starting_points": grays(2) * 2}, r"starting_points must be .*\[0, 1\]"),
        ("hop_skip_jump-l2", {"norm": "l0"}, "norm must be one of l2, linf, got 'l0'"),
        ("hop_skip_jump-l2", {"num_steps": 1.5}, "num_steps must be"),
        ("hop_skip_jump-l2", {"initial_num_evals": 0}, "initial_num_evals must be"),
        ("hop_skip_jump-l2", {"max_num_evals": 0}, "max_num_evals must be"),
        ("hop_skip_jump-l2", {"gamma": 0.0}, "gamma must be a finite number above 0.0, got 0.0"),
        ("hop_skip_jump-l2", {"max_queries": 0}, "max_queries must be an integer of at least 1"),
        ("hop_skip_jump-l2", {"max_queries": 20}, "max_queries must be at least 55, .*got 20"),
        ("hop_skip_jump-l2", {"targets": np.array([1, 1])}, "targets must differ from labels"),
    ],
)
def test_faulty_arguments_are_named(case, changes, message):
    with pytest.raises(ValueError, match=message):
        run(case, three_classes(), grays(2), np.array([0, 1]), **changes)
