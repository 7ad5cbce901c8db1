"""What the page knows of an evaluation, as JSON can hold it.

Models, attacks, norms and images are named by their position, so that no name of a model becomes
a key. A distance that is infinite is null, and so is an accuracy of no images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from abs_model.data import Split
from abs_model.evaluation.images.style import MODEL_COLORS
from abs_model.evaluation.report.images import pack, pack_perturbations
from abs_model.evaluation.report.reconstructions import Reconstructions
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.run.verification import ABSOLUTE_ROUNDING, RELATIVE_ROUNDING
from abs_model.evaluation.tables.cells import Cell, PublishedCell
from abs_model.evaluation.tables.paper_results import published_beside
from abs_model.evaluation.tables.results import GROUPS, PlannedAttack, Results
from abs_model.evaluation.tables.statistics import THRESHOLDS, Estimate
from abs_model.evaluation.tables.table import NORM_NAMES, UNITS, Block, Row, make_tables
from abs_model.evaluation.tables.table_formats import EXPLANATION, warning_lines

Json = dict[str, Any]
TITLE = "Accuracy and robustness"


def make_content(
    results: Results,
    test: Split,
    reconstructions: Mapping[str, Mapping[str, Reconstructions]],
    *,
    num_images: int | None = None,
    notes: Sequence[str] = (),
) -> Json:
    """All that the page shows.

    Args:
        results: Of an evaluation, finished or not.
        test: The test images that were attacked.
        reconstructions: By model, from `reconstruct`, of the images in the gallery.
        num_images: In the gallery, the first ones; all that were attacked without it.
        notes: What the reader should know, such as models that could not be opened.
    """
    plan, tables = results.plan, make_tables(results)
    shown = plan.num_images if num_images is None else min(num_images, plan.num_images)
    data = plan.about.get("dataset", {}).get("name", "")
    return {
        "title": f"{TITLE}: {data}" if data else TITLE,
        "explanation": EXPLANATION,
        "notes": [*notes, *_left_out(plan.about)],
        "warnings": warning_lines(tables),
        "finished": results.finished,
        "complete": tables.complete,
        "num_clean": plan.num_clean,
        "num_images": plan.num_images,
        "about": dict(plan.about),
        "commits": list(results.commits),
        "devices": list(results.devices),
        "packages": list(results.packages),
        "rounding": [RELATIVE_ROUNDING, ABSOLUTE_ROUNDING],
        "norms": [
            {
                "key": norm,
                "name": NORM_NAMES[norm],
                "unit": UNITS[norm],
                "threshold": THRESHOLDS[norm],
            }
            for norm in results.norms
        ],
        "models": [
            {
                "name": model,
                "color": MODEL_COLORS[position % len(MODEL_COLORS)],
                "clean": _finite(tables.clean[model]),
            }
            for position, model in enumerate(plan.models)
        ],
        "attacks": [_attack(results, attack) for attack in plan.attacks],
        "blocks": [_block(results, block) for block in tables.blocks],
        "curves": [[_curve(results, norm, name) for name in plan.models] for norm in results.norms],
        "gallery": _gallery(results, test, reconstructions, shown),
    }


def _left_out(about: Mapping[str, Any]) -> list[str]:
    left = about.get("attacks_left_out", ())
    return [f"Not tried, because --attacks left them out: {', '.join(left)}."] if left else []


def _attack(results: Results, attack: PlannedAttack) -> Json:
    models = results.plan.models
    return {
        "name": attack.name,
        "title": attack.title,
        "norm": results.norms.index(attack.norm),
        "group": attack.group,
        "targeted": attack.targets is not None,
        "reference": attack.reference,
        "settings": [attack.settings.get(model) for model in models],
        "refusals": [attack.refusals.get(model) for model in models],
        "limits": [_finite(attack.limit(model)) for model in models],
    }


def _block(results: Results, block: Block) -> Json:
    """A norm's table."""
    names = [attack.name for attack in results.plan.attacks]
    return {
        "norm": results.norms.index(block.norm),
        "rows": [
            {
                "title": row.title,
                "attack": names.index(row.attack.name) if row.attack else None,
                "budget": row.budget,
                "certified": row.certified,
                "cells": [_cell(row, model) for model in results.plan.models],
            }
            for row in block.rows
        ],
    }


def _cell(row: Row, model: str) -> Json | None:
    """A figure comes as itself and the ends of its interval; what was published has none."""
    cell = row.cells.get(model)
    if cell is None:
        return None
    if isinstance(cell, PublishedCell):
        figures = {"median": [cell.median], "accuracy": [cell.accuracy]}
        return {"published": True, "reached": True, "limit": None, **figures}
    return {
        "published": False,
        "median": _estimate(cell.summary.median) if cell.minimizes else None,
        "accuracy": _estimate(cell.summary.accuracy),
        "limit": _finite(cell.limit),
        "reached": cell.reached,
        "num_images": cell.summary.num_images,
        "num_expected": cell.num_expected,
        **_counts(cell),
    }


def _counts(cell: Cell) -> Json:
    return {
        "num_claimed": cell.num_claimed,
        "num_rejected": cell.num_rejected,
        "rejections": dict(cell.rejections),
        "num_by_search": cell.num_by_search,
        "warnings": list(cell.warnings),
        "num_queries": cell.num_queries,
        "num_gradients": cell.num_gradients,
        "eight_bit": cell.shares_in_eight_bits,
    }


def _estimate(estimate: Estimate) -> list[float | None]:
    return [_finite(each) for each in (estimate.value, estimate.low, estimate.high)]


def _curve(results: Results, norm: str, model: str) -> Json:
    """The distances that a curve is made of, ascending, to where, and the published curve."""
    distances = results.closest(model, norm, GROUPS)
    paper = published_beside(norm, results.plan.about, model)
    return {
        "distances": [_finite(each) for each in np.sort(distances[~np.isnan(distances)]).tolist()],
        "limit": _finite(results.limit(model, norm, GROUPS)),
        "published": paper
        and {"distances": paper.distances.tolist(), "accuracies": paper.accuracies.tolist()},
    }


def _gallery(
    results: Results,
    test: Split,
    reconstructions: Mapping[str, Mapping[str, Reconstructions]],
    num_images: int,
) -> Json:
    plan, clean = results.plan, test.images[:num_images]
    return {
        "num_images": num_images,
        "shape": list(test.images.shape[1:]),
        "labels": test.labels[:num_images].tolist(),
        "clean": pack(clean),
        "found": [
            [
                _found(results.records(model, attack.name), clean)
                if model in attack.ledgers
                else None
                for attack in plan.attacks
            ]
            for model in plan.models
        ],
        "closest": [
            [_closest(results, model, norm, num_images) for norm in results.norms]
            for model in plan.models
        ],
        "reconstructions": [
            _reconstructions(reconstructions.get(model), results.norms) for model in plan.models
        ],
    }


def _found(records: Sequence[Record], clean: np.ndarray) -> Json:
    """An attack's records in columns; `place` is the image's among the packed ones."""
    records = [record for record in records if record.index < len(clean)]
    held = {record.index: image for record in records if (image := record.adversarial) is not None}
    packed, scales = pack_perturbations(clean[list(held)], list(held.values()))
    places = {index: place for place, index in enumerate(held)}
    return {
        "index": [record.index for record in records],
        "clean_prediction": [record.clean_prediction for record in records],
        "clean_success": [record.clean_success for record in records],
        "target": [record.target for record in records],
        "prediction": [record.prediction for record in records],
        "distance": [_finite(record.distance) for record in records],
        "queries": [record.num_queries for record in records],
        "refused": [", ".join(record.reasons).replace("_", " ") for record in records],
        "eight_bit": [record.eight_bit for record in records],
        "holds": [record.is_verified for record in records],
        "place": [places.get(record.index) for record in records],
        "scales": scales,
        "perturbations": packed,
    }


def _closest(results: Results, model: str, norm: str, num_images: int) -> list[int | None]:
    """For each image the attack that came closest; null without a record."""
    names = [attack.name for attack in results.plan.attacks]
    found = {
        record.index: names.index(attack.name)
        for attack, record in results.closest_records(model, norm)
    }
    return [found.get(index) for index in range(num_images)]


def _reconstructions(
    found: Mapping[str, Reconstructions] | None, norms: Sequence[str]
) -> Json | None:
    if not found:
        return None
    packed = {
        what: {
            "indices": list(each.indices),
            "energies": [[_finite(energy) for energy in row] for row in each.energies],
            "images": pack(each.images),
        }
        for what, each in found.items()
    }
    return {"clean": packed.get("clean"), "closest": [packed.get(norm) for norm in norms]}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
