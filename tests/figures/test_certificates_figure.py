"""The figure of certificates: what it says of radii and attacks, and that it can be drawn."""

import dataclasses

import numpy as np

from abs_model.data import Dataset, Split
from abs_model.evaluation.run.workdir import model_identity
from abs_model.evaluation.tables.results import Plan, Results
from abs_model.figures import certificates
from abs_model.figures.registry import Work
from tests.evaluation.test_tables import planned, records
from tests.linear_decoders import IMAGE, linear_abs


def linear_work(folder):
    """A figure's work on linear decoders, the model, and the data set of their offsets."""
    random = np.random.default_rng(0)
    matrices = random.normal(size=(3, 16, 2)) * 0.05
    offsets = random.uniform(0.3, 0.7, (3, 16))
    model = linear_abs(matrices, offsets)
    labels = np.arange(6, dtype=np.int32) % 3
    pixels = np.round(255 * offsets[labels]).astype(np.uint8).reshape(-1, *IMAGE)
    split = Split(pixels, np.where(np.arange(6) == 5, 0, labels).astype(np.int32))
    dataset = Dataset("offsets", 3, split, split, split)
    return Work("certificates", {"linear": model}, dataset, 6, folder), model, dataset


def test_numbers_are_those_of_the_radii(tmp_path):
    work, model, _ = linear_work(tmp_path)
    data = certificates.compute(work)
    expected = np.array(model.certify(work.images, norm="l2").radii)
    expected[5] = 0  # misclassified
    np.testing.assert_allclose(data.arrays["linear/l2/certified"], expected, rtol=1e-4)
    assert data.numbers["linear"]["l2"]["certified"]["mean"] == np.float32(expected.mean())
    assert set(data.numbers["linear"]["l2"]) == {"certified", "lipschitz", "paper"}
    assert set(certificates.draw(data)) == {"certificates"}


def test_a_bracket_counts_broken_and_settled_certificates():
    certified = np.array([0.0, 1.0, 2.0, 3.0, 1.0])
    attacked = np.array([0.0, 2.0, 2.0, 1.5, np.inf])
    found = certificates._bracket(certified, attacked, "l2")["certified over attacked"]
    assert found == {"num_images": 3, "median": 1.0, "largest": 2.0, "settled": 1}
    nothing = certificates._bracket(certified, np.full(5, np.inf), "l2")
    assert nothing["certified over attacked"]["median"] is None
    assert nothing["attacked"]["mean"] is None


def test_attacks_count_only_on_the_same_weights(tmp_path):
    plan = Plan(["linear"], [planned("a", models=("linear",))], 6, 6, {}, {})
    found = {("linear", "a"): records([1e-6] * 6)}
    _, model, dataset = linear_work(tmp_path)
    results = Results(plan, {}, found, identities={"linear": model_identity(model)})
    work = Work("certificates", {"linear": model}, dataset, 6, tmp_path, results)
    assert work.is_evaluated("linear")
    data = certificates.compute(work)
    np.testing.assert_array_equal(data.arrays["linear/l2/attacked"], [1e-6] * 6)
    others = dataclasses.replace(results, identities={"linear": "another"})
    data = certificates.compute(dataclasses.replace(work, evaluation=others))
    assert "linear/l2/attacked" not in data.arrays
