"""An evaluation as one HTML page that needs no network: tables, curves, a gallery of images.

The way of a page: `open_sources` finds what the ledgers don't hold (test images, and the models
that can reconstruct), `reconstruct` queries these models, `make_content` puts everything into what
JSON can hold, and `to_html` puts that into the page, whose scripts draw it.

    content.py, images.py    what the page knows
    page.html, page.css      its frame and looks
    *.js                     its tables, curves and gallery
"""

from abs_model.evaluation.report.content import make_content
from abs_model.evaluation.report.page import to_html
from abs_model.evaluation.report.reconstructions import (
    Reconstructions,
    num_inferences,
    reconstruct,
)
from abs_model.evaluation.report.sources import Sources, open_sources

__all__ = [
    "Reconstructions",
    "Sources",
    "make_content",
    "num_inferences",
    "open_sources",
    "reconstruct",
    "to_html",
]
