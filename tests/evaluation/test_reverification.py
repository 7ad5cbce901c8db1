import dataclasses

from abs_model.attacks import NORMS
from abs_model.attacks.registry import ATTACKS, Access, AttackInfo
from abs_model.evaluation import AttackSpec, Settings, evaluate
from abs_model.evaluation.run.reverification import reverify
from tests.evaluation_fakes import stripe_classifier, stripe_dataset, towards_next_class

PGD = {"epsilon": 0.5, "step_size": 0.1, "num_steps": 10}


def test_adversarial_examples_stand_in_batches_of_other_sizes_but_not_on_another_model(tmp_path):
    entry = AttackInfo(title="step", function=towards_next_class, norms=NORMS, access=Access.SCORES)
    suite = [
        AttackSpec("step", "tests:step", entry, "linf", "stronger"),
        AttackSpec("aimed", "pgd", ATTACKS["pgd"], "linf", "stronger", PGD, targets="next_class"),
    ]
    settings = Settings(num_clean=10, num_images=10, batch_size=4, seed=0)
    model = stripe_classifier()
    results = evaluate({"m": model}, stripe_dataset(), suite, settings, tmp_path)
    found = list(reverify(results, {"m": model}, (1, 7)))
    assert [each.batch_size for each in found] == [1, 7]
    assert all(each.num_examples == 20 and each.lost == [] for each in found)
    other = dataclasses.replace(model, weights=-model.weights)
    (lost,) = reverify(results, {"m": other}, (3,))
    # What was the largest logit is now the smallest.
    assert len([each for each in lost.lost if each.startswith("aimed: image ")]) == 10
