"""How long `configs/table1.py` would take on accelerators, by their data sheets.

A query takes a batch of images the larger of its FLOP and its bytes over the device's rates, of
which a share is assumed to be reached; and, whatever the batch, some time for the start of each
kernel and for Python. None of this has been measured on an accelerator.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from abs_model.evaluation.run.suite import read_suite
from abs_model.models.classifier import Classifier
from configs import table1

# Assumed: the share of either rate that is reached, and seconds for each kernel and each query.
_EFFICIENCY, _PER_KERNEL, _PER_QUERY = 0.5, 5e-6, 5e-4
# Logits whose gradients a Jacobian has.
_JACOBIAN = 10
# What starts no kernel of its own.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
# A name, a type, which may be a tuple with comments, and what is done.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*?[\])}] ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:body|condition|to_apply)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator, by its data sheet.

    Attributes:
        name: For tables.
        flop_rate: FLOP/s of matrix products of float32.
        byte_rate: Bytes/s of its memory.
        count: How many.
    """

    name: str
    flop_rate: float
    byte_rate: float
    count: int = 1


# TPUs multiply float32 in six passes of bfloat16.
_H100 = Device("H100 SXM", 67e12, 3.35e12)
_DEVICES = (
    _H100,
    dataclasses.replace(_H100, name="8 H100 SXM", count=8),
    Device("TPU v5e-64", 197e12 / 6, 0.82e12, 64),
)
# Images, and images in a batch.
_SIZES = ((1000, 100), (1000, 1000), (10_000, 1000))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a query takes.

    Attributes:
        flop: FLOP of an image.
        moved: Bytes of an image.
        kernels: Kernels that follow each other, whatever the number of images.
    """

    flop: float
    moved: float
    kernels: float

    def repeated(self, times: float) -> "Cost":
        """That of a program which does the same so many times."""
        return Cost(times * self.flop, times * self.moved, times * self.kernels)


@dataclasses.dataclass(frozen=True)
class ModelCosts:
    """What the queries of a model take.

    Attributes:
        logits: Without gradient.
        gradient: With the gradient of a number; forward and backward.
    """

    logits: Cost
    gradient: Cost

    @property
    def jacobian(self) -> Cost:
        """With gradients of several logits, which are pulled back side by side."""
        logits, gradient = self.logits, self.gradient
        return Cost(
            logits.flop + _JACOBIAN * (gradient.flop - logits.flop),
            logits.moved + _JACOBIAN * (gradient.moved - logits.moved),
            gradient.kernels,
        )


def predict(
    models: Mapping[str, Classifier], costs: Mapping[str, ModelCosts]
) -> list[dict[str, Any]]:
    """Hours of `configs/table1.py` by device, number of images and model.

    Rows whose queries nothing limits (Pointwise) are left out.
    """
    found = []
    for name, model in models.items():
        queries = _queries_of_table(model, costs[name])
        for device in _DEVICES:
            for images, batch in _SIZES:
                batches = math.ceil(images / batch)
                waiting = working = 0.0
                for cost, count in queries.items():
                    waiting += count * (cost.kernels * _PER_KERNEL + _PER_QUERY)
                    slowest = max(cost.flop / device.flop_rate, cost.moved / device.byte_rate)
                    working += count * batch * slowest / _EFFICIENCY
                found.append(
                    {
                        "device": device.name,
                        "images": images,
                        "batch": batch,
                        "model": name,
                        "hours": math.ceil(batches / device.count) * (waiting + working) / 3600,
                        "share_waiting": waiting / (waiting + working),
                        # Each batch is one device's; a device that gets none waits.
                        "devices_at_work": min(batches, device.count),
                    }
                )
    return found


def _queries_of_table(model: Classifier, costs: ModelCosts) -> Mapping[Cost, float]:
    """How many queries of each cost the table makes of an image."""
    found: dict[Cost, float] = collections.defaultdict(float)
    for spec in read_suite(table1.get_config()):
        if spec.why_not(model) is not None:
            continue
        most = spec.most_queries(model)
        assert most is not None, spec.name
        if math.isinf(most.logits):
            continue
        found[costs.logits] += most.logits
        if spec.estimate_gradients:
            # One program evaluates each value's logits, one after the other.
            values = math.prod(model.image_shape)
            found[costs.logits.repeated(1 + values)] += most.gradients + most.jacobians
        else:
            found[costs.gradient] += most.gradients
            found[costs.jacobian] += most.jacobians
    return found


def count_kernels(compiled: Any) -> int:
    """How many kernels follow each other in an optimized program.

    Of the program and of what it calls. What fusions, reductions and sorts consist of belongs to
    them; the body of a loop counts once, however often it runs.
    """
    counts: dict[str, int] = {}
    called: dict[str, list[str]] = {}
    entry = name = ""
    for line in compiled.as_text().splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            counts[name], called[name] = 0, []
            entry = name if start[1] else entry
        elif found := _INSTRUCTION.match(line):
            counts[name] += found[1] not in _FREE
            if found[1] in ("while", "call"):
                called[name] += _CALLED.findall(line)

    def total(name: str) -> int:
        return counts[name] + sum(map(total, called[name]))

    return total(entry)


def device_table(predicted: list[dict[str, Any]], titles: Mapping[str, str]) -> str:
    """Markdown of `predict`: hours, and the share of them that waits for kernels and Python.

    Args:
        predicted: From `predict`.
        titles: The models' titles by name.
    """
    shown = " | ".join(f"{title}: hours | waiting" for title in titles.values())
    lines = [
        f"| Device | Images | Batch | At work | {shown} |",
        f"| --- |{' ---: |' * (3 + 2 * len(titles))}",
    ]
    rows: dict[tuple[str, int, int, int], dict[str, Any]] = {}
    for one in predicted:
        key = one["device"], one["images"], one["batch"], one["devices_at_work"]
        rows.setdefault(key, {})[one["model"]] = one
    for (device, images, batch, at_work), row in rows.items():
        cells = [device, f"{images:,}", f"{batch:,}", str(at_work)]
        for name in titles:
            hours = row[name]["hours"]
            cells.append(f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}")
            cells.append(f"{row[name]['share_waiting']:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
