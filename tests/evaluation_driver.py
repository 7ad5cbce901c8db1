"""Evaluates fakes, slowly: `python -m tests.evaluation_driver WORKDIR`, for tests that kill it."""

import pathlib
import sys
import time

from abs_model.attacks import NORMS
from abs_model.attacks.registry import Access, AttackInfo
from abs_model.evaluation import AttackSpec, Settings, evaluate
from tests.evaluation_fakes import stripe_classifier, stripe_dataset, towards_next_class


def slow_step(model, images, labels, key, *, norm):
    """`towards_next_class`, after a moment."""
    time.sleep(0.1)
    return towards_next_class(model, images, labels, key, norm=norm)


def main():
    entry = AttackInfo(title="slow step", function=slow_step, norms=NORMS, access=Access.SCORES)
    suite = [AttackSpec(f"slow_{norm}", "slow", entry, norm, "paper") for norm in ("l2", "linf")]
    models = {"a": stripe_classifier(), "b": stripe_classifier(scale=0.1)}
    settings = Settings(num_clean=10, num_images=12, batch_size=2, seed=0)
    evaluate(models, stripe_dataset(), suite, settings, pathlib.Path(sys.argv[1]))


if __name__ == "__main__":
    main()
