"""Figures about what models see, one file each; `scripts/figures.py` makes them.

`registry` says what a figure is. Importing this package registers all of them.
"""

from abs_model.figures import (
    certificates,
    corruptions,
    explanations,
    fooling,
    hardest,
    latent_space,
    manipulation,
    minimal,
    out_of_distribution,
    shortcut,
)
from abs_model.figures.make import choose_figures, make_figure, open_evaluation
from abs_model.figures.registry import FIGURES, Data, Figure, Film, Work, register

__all__ = [
    "FIGURES",
    "Data",
    "Figure",
    "Film",
    "Work",
    "certificates",
    "choose_figures",
    "corruptions",
    "explanations",
    "fooling",
    "hardest",
    "latent_space",
    "make_figure",
    "manipulation",
    "minimal",
    "open_evaluation",
    "out_of_distribution",
    "register",
    "shortcut",
]
