"""The figure of the closest adversarial examples."""

import numpy as np
import pytest

from abs_model._runtime.errors import UserError
from abs_model.attacks import NORMS
from abs_model.attacks.registry import Access, AttackInfo
from abs_model.evaluation import AttackSpec, Settings, evaluate
from abs_model.figures import minimal
from abs_model.figures.registry import Work
from tests.evaluation_fakes import stripe_classifier, stripe_dataset, towards_next_class


def test_each_class_is_shown_with_its_closest_examples(tmp_path):
    dataset = stripe_dataset()
    models = {"a": stripe_classifier(), "b": stripe_classifier()}
    info = AttackInfo(title="Step", function=towards_next_class, norms=NORMS, access=Access.SCORES)
    suite = [
        AttackSpec(f"step_{size}", "tests", info, "l2", "paper", settings={"epsilon": float(size)})
        for size in (3, 5)
    ]
    results = evaluate(
        models,
        dataset,
        suite,
        Settings(num_clean=10, num_images=10, batch_size=5, seed=0),
        tmp_path / "evaluation",
    )
    work = Work("minimal", models, dataset, 10, tmp_path, results)
    data = minimal.compute(work)
    numbers = data.numbers["l2"]
    assert numbers["labels"] == [dataset.test.labels[index] for index in numbers["test images"]]
    assert len(set(numbers["labels"])) == len(numbers["labels"]) > 0
    clean = data.arrays["l2/clean"]
    for name in models:
        for place, example in enumerate(numbers["models"][name]):
            away = np.linalg.norm(data.arrays[f"l2/{name}"][place] - clean[place])
            assert example["distance"] == pytest.approx(away, rel=1e-5)
            assert example["prediction"] != numbers["labels"][place]
    assert work.commits == set(results.commits)
    assert set(minimal.draw(data)) == {"minimal_l2"}


def test_without_an_evaluation_it_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="requires an evaluation; give --evaluation=WORKDIR"):
        minimal.compute(Work("minimal", {}, stripe_dataset(), 0, tmp_path))
