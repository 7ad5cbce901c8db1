"""Table 1 and figure 2 of Schott et al. 2019 (arXiv 1805.09190), and stronger attacks beside them.

    python evaluate.py --config=configs/table1.py:cpu --workdir=runs/table1 \\
        --models=cnn,binary_cnn,nearest_neighbor,madry,binary_abs,abs

Variants:

    (none)   1,000 images, for a GPU. Gradients are estimated (GE) for networks only.
    full     As that, GE for ABS and the nearest neighbor, too: an estimated gradient is 785
             evaluations of the model, so that BIM with GE takes 142,000 for each image.
    cpu      100 images; smaller budgets, above all for ABS and the nearest neighbor. Gradients are
             estimated for the CNN and the Binary CNN.
    smoke    4 images, each attack in one norm with a tiny budget: whether all of it runs. Attacks
             that need no gradients are made on Binary ABS, not on ABS: the programs take longest to
             compile, and are nearly the same.
    tiny     2 images, three attacks: for the tests.

Settings of the paper's attacks are the defaults of Foolbox 1.x, where the paper gives none. Every
row of the tables prints its budget: a smaller budget supports a weaker claim. `cpu`
gives Transfer and the paper's noise attacks fewer than 100 queries on ABS and the nearest neighbor,
because salt-and-pepper images are the slowest for ABS to classify. The other decision-based attacks
get at least 1,000.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from abs_model._runtime.configuration import choose_variant
from abs_model.attacks.registry import ATTACKS, BLACK_BOX

_EPSILONS = {"l2": 1.5, "linf": 0.3}
_SURROGATE = "transfer"
# Training images from which attacks that see only decisions choose a starting point.
_STARTING_POINTS = 500
_SLOW = ("abs", "nearest_neighbor")

# By attack ("_ge": with estimated gradients), what differs for all models, or for the slow ones.
_CPU: dict[str, Any] = {
    "transfer": {"all": {"num_scales": 20}, "slow": {"num_scales": 10}},
    "gaussian_noise": {"slow": {"num_directions": 2, "num_epsilons": 30}},
    "boundary": {"all": {"num_steps": 3000}, "slow": {"num_steps": 1000}},
    # ABS would spend its queries on noise for the starting points of further restarts.
    "pointwise": {
        "all": {"max_queries": 2000},
        "abs": {"max_queries": 1100, "num_restarts": 1},
        "nearest_neighbor": {"max_queries": 1100, "num_restarts": 3},
    },
    "salt_and_pepper": {"slow": {"num_restarts": 3, "num_epsilons": 20}},
    "deepfool": {"all": {"num_steps": 50}},
    "deepfool_ge": {"all": {"num_steps": 5}},
    "fast_gradient": {"slow": {"num_epsilons": 20}},
    "bim": {"slow": {"num_searches": 10}},
    "bim_ge": {"all": {"num_steps": 2, "num_searches": 2}},
    "mim": {"slow": {"num_searches": 10}},
    "mim_ge": {"all": {"num_steps": 2, "num_searches": 2}},
    "carlini_wagner": {
        "all": {"num_searches": 5, "num_steps": 100, "step_size": 0.1},
        "slow": {"num_searches": 3},
    },
    "sparse_rs": {"all": {"num_steps": 1000}, "slow": {"num_steps": 500}},
    "greedy_pixels": {"slow": {"num_rounds": 1, "max_pixels": 40}},
    "flip_pixels": {"slow": {"num_rounds": 1, "max_flips": 50, "num_restarts": 3}},
    "pgd": {"all": {"num_restarts": 2}},
    "apgd": {"all": {"num_restarts": 1, "num_targets": 3}, "slow": {"num_steps": 50}},
    "fab": {"all": {"num_restarts": 1, "num_steps": 30}, "slow": {"num_steps": 20}},
    "fmn": {"all": {"num_steps": 200}},
    "square": {"all": {"num_steps": 1000}, "slow": {"num_steps": 500}},
    "hop_skip_jump": {"all": {"max_queries": 2000}, "slow": {"max_queries": 1400}},
}
# With estimated gradients; other attacks declare theirs.
_SMOKE: dict[str, Any] = {
    "deepfool_ge": {"all": {"num_steps": 1}},
    "bim_ge": {"all": {"num_steps": 2, "num_searches": 1}},
    "mim_ge": {"all": {"num_steps": 2, "num_searches": 1}},
}
_SMOKE_STARTING_POINTS = 8
_TINY = ("fast_gradient_l2", "mim_linf", "salt_and_pepper")

# num_clean, num_images, batch_size
_SIZES = {
    "": (10_000, 1000, 100),
    "full": (10_000, 1000, 100),
    "cpu": (10_000, 100, 100),
    "smoke": (4, 4, 4),
    "tiny": (4, 2, 2),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The configuration of a variant."""
    num_clean, num_images, batch_size = choose_variant(variant, _SIZES)
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.num_clean = num_clean
    config.num_images = num_images
    config.batch_size = batch_size
    config.certify = variant != "tiny"
    quick = variant in ("smoke", "tiny")
    attacks = _paper(full=variant == "full") | _stronger()
    if variant == "cpu":
        _shorten(attacks, _CPU)
        for row in attacks.values():
            if row.get("estimate_gradients"):
                row["only"] = ("cnn", "binary_cnn")
    elif quick:
        for row in attacks.values():
            info = ATTACKS[row["attack"]]
            row["settings"] |= info.smoke
            if "starting_points" in info.resources:
                row["settings"]["starting_points"] = _SMOKE_STARTING_POINTS
        _shorten(attacks, _SMOKE)
        attacks = _one_of_each(attacks)
    if variant == "smoke":
        for row in attacks.values():
            if ATTACKS[row["attack"]].access in BLACK_BOX:
                row["only"] = ("network", "nearest_neighbor", "binary_abs")
    elif variant == "tiny":
        attacks = {name: attacks[name] for name in _TINY}
    # In the order of the tables.
    config.attacks = ml_collections.ConfigDict(attacks, sort_keys=False)
    return config


def _paper(*, full: bool) -> dict[str, Any]:
    """The attacks of table 1, in its order."""

    def rows(name: str, norm: str) -> dict[str, Any]:
        """With exact and with estimated gradients."""
        kinds = {} if full else {"only": ("network",)}
        estimated = _row(name, norm) | {"estimate_gradients": True} | kinds
        return {f"{name}_{norm}": _row(name, norm), f"{name}_ge_{norm}": estimated}

    return {
        "transfer_l2": _row("transfer", "l2", surrogate=_SURROGATE),
        "gaussian_noise": _row("gaussian_noise", "l2"),
        "boundary": _row("boundary", "l2", starting_points=_STARTING_POINTS),
        "pointwise_l2": _row("pointwise", "l2", starting_points=_STARTING_POINTS),
        **rows("fast_gradient", "l2"),
        **rows("deepfool", "l2"),
        **rows("bim", "l2"),
        "latent_descent": _row("latent_descent", "l2"),
        "transfer_linf": _row("transfer", "linf", surrogate=_SURROGATE),
        **rows("fast_gradient", "linf"),
        **rows("deepfool", "linf"),
        **rows("bim", "linf"),
        **rows("mim", "linf"),
        "salt_and_pepper": _row("salt_and_pepper", "l0"),
        "pointwise_l0": _row("pointwise", "l0", starting_points=_STARTING_POINTS),
    }


def _stronger() -> dict[str, Any]:
    """What has come since, and what is made for ABS and for models on thresholded images."""
    rows = {
        "carlini_wagner": _row("carlini_wagner", "l2", "stronger", num_steps=1000),
        "sparse_rs": _row("sparse_rs", "l0", "stronger", num_pixels=60, minimize=True),
        "greedy_pixels": _row("greedy_pixels", "l0", "stronger"),
        "fmn_l0": _row("fmn", "l0", "stronger"),
        "flip_pixels_l0": _row("flip_pixels", "l0", "stronger"),
        "cutting_planes_l0": _row("cutting_planes", "l0", "stronger"),
    }
    # APGD on the CE is for networks: logits of the others differ by so little that their softmax is
    # nearly uniform, and its gradient leads towards all classes at once.
    for norm, epsilon in _EPSILONS.items():
        pgd = {"epsilon": epsilon, "step_size": epsilon / 40, "num_steps": 100}
        apgd = {"epsilon": epsilon, "num_steps": 100}
        rows |= {
            f"pgd_{norm}": _row("pgd", norm, "stronger", num_restarts=10, **pgd),
            f"apgd_ce_{norm}": _row("apgd", norm, "stronger", loss="ce", num_restarts=5, **apgd)
            | {"title": "APGD, CE", "only": ("network",)},
            f"apgd_dlr_{norm}": _row("apgd", norm, "stronger", loss="dlr", num_restarts=5, **apgd)
            | {"title": "APGD, DLR"},
            f"apgd_t_{norm}": _row("apgd", norm, "stronger", loss="targeted_dlr", **apgd)
            | {"title": "APGD, targeted DLR"},
            f"fab_{norm}": _row("fab", norm, "stronger", num_restarts=5),
            f"fmn_{norm}": _row("fmn", norm, "stronger", num_steps=1000),
            f"square_{norm}": _row("square", norm, "stronger", epsilon=epsilon, num_steps=5000),
            f"hop_skip_jump_{norm}": _row(
                "hop_skip_jump", norm, "stronger", starting_points=_STARTING_POINTS
            ),
            f"flip_pixels_{norm}": _row("flip_pixels", norm, "stronger"),
            f"cutting_planes_{norm}": _row("cutting_planes", norm, "stronger"),
        }
    return rows


def _one_of_each(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The first row of each attack, with exact and with estimated gradients."""
    first: dict[Any, str] = {}
    for name, row in rows.items():
        first.setdefault((row["attack"], row.get("estimate_gradients", False)), name)
    return {name: rows[name] for name in first.values()}


def _row(attack: str, norm: str, group: str = "paper", **settings: Any) -> dict[str, Any]:
    return {"attack": attack, "norm": norm, "group": group, "settings": settings}


def _shorten(rows: dict[str, Any], budgets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Gives rows smaller budgets: by attack, then "all" or the kind of model, then the setting."""
    for row in rows.values():
        key = row["attack"] + "_ge" * row.get("estimate_gradients", False)
        budget = dict(budgets.get(key, {}))
        row["settings"] = {**row["settings"], **budget.pop("all", {})}
        for kinds, settings in budget.items():
            for kind in _SLOW if kinds == "slow" else (kinds,):
                row.setdefault("settings_for", {})[kind] = dict(settings)
