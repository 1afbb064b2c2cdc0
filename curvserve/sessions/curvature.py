"""What the curvature of a step looks like, layer by layer: plain numbers for whoever watches.

Everything is read of evenly spaced coordinates, so that it costs the same for every net.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from curvserve_client.rules import Quantities, RuleState
from torch import Tensor

from .state import Tensors

LOW, HIGH, STEP = -12.0, 4.0, 0.25
"""Bins of log10 of the diagonal: the first and the last take what lies beyond, but for zeros."""

SAMPLE = 100_000
"""Coordinates that are looked at in all, divided among the parameters."""

SAMPLE_EACH = 8_192
"""Of one parameter: below 32,768, from which on torch calls its other threads to help."""

LEVELS = (0.1, 0.5, 0.9)

_BINS = round((HIGH - LOW) / STEP)
_EDGES = torch.tensor([10.0 ** (LOW + STEP * number) for number in range(1, _BINS)])


Diagonal = Tensor | tuple[Tensor, Tensor]
"""Of a parameter's shape; or those of Kronecker factors B and A: their outer product is it."""


@dataclass(frozen=True, eq=False)
class SeenStep:
    """A step as it is looked at: references to tensors that nobody writes to.

    Attributes:
        before: the parameters before it.
        after: the parameters after it.
        quantities: what it read of its batch.
        memory: what its rule remembered after it.
        answer: what its caller was told.
        time: when it was taken, in seconds since 1970.
    """

    before: Tensors
    after: Tensors
    quantities: Quantities
    memory: RuleState
    answer: Mapping[str, Any]
    time: float


def summary(step: SeenStep) -> dict[str, Any]:
    """Return what the curvature of a step looks like, as JSON values.

    Returns:
        `version`, `time`, `damping` (None where the rule has none), `bins`; `total` and, for each
        parameter, one of `layers`: `name`, `size`, `update_ratio` |p' - p| / |p| (None where p is
        zero), and `curvature`, None where the step used none of it: `quantiles` of the diagonal at
        0.1, 0.5 and 0.9, the share `damped` that is less than the damping, the share `zero`, and
        the histogram of log10, `shares` in thousandths from the bin `first` on.
    """
    damping = step.answer["update"].get("damping")
    samples = _sampled(step)
    layers = [
        {
            "name": name,
            "size": step.after[name].numel(),
            "update_ratio": _ratio(before, after),
            "curvature": None if diagonal is None else _spread(diagonal, damping),
        }
        for name, (before, after, diagonal) in samples.items()
    ]
    return {
        "version": step.answer["version"],
        "time": step.time,
        "damping": damping,
        "bins": {"low": LOW, "high": HIGH, "step": STEP},
        "total": _total(layers),
        "layers": [_rounded(layer) for layer in layers],
    }


def diagonals(quantities: Quantities, memory: RuleState) -> dict[str, Diagonal]:
    """Return the diagonal of the curvature that a step divided by, parameter name -> diagonal.

    What a rule remembers of it comes before what it read of the batch. Empty for a rule without
    curvature.
    """
    inner = memory.tensors.get("inner", {})
    factors: dict[str, Diagonal] = {
        name: (b.diagonal(), inner[name].diagonal()) if name in inner else b.diagonal()
        for name, b in memory.tensors.get("outer", {}).items()
    }
    return {
        **quantities.get("diag_ggn_mc", {}),
        **memory.tensors.get("curvature", {}),
        **factors,
    }


def _at(diagonal: Diagonal, places: Tensor) -> Tensor:
    """Return some coordinates of a diagonal, numbered row by row."""
    if isinstance(diagonal, Tensor):
        return diagonal.take(places)
    rows, columns = diagonal
    return rows[places // len(columns)] * columns[places % len(columns)]


def _sampled(step: SeenStep) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Return evenly spaced coordinates before and after and of the diagonal, in host memory."""
    most = max(1, min(SAMPLE_EACH, SAMPLE // max(1, len(step.after))))
    known = diagonals(step.quantities, step.memory)
    found = {}
    for name, after in step.after.items():
        size = after.numel()
        # not by a whole stride: it could meet the same column in every row
        places = torch.linspace(0, size - 1, min(size, most), dtype=torch.float64).round().long()
        places = places.to(after.device)
        before, now = (tensor.take(places).cpu().float() for tensor in (step.before[name], after))
        diagonal = _at(known[name], places).cpu().float() if name in known else None
        found[name] = before, now, diagonal
    return found


def _ratio(before: Tensor, after: Tensor) -> float | None:
    size = torch.linalg.vector_norm(before, dtype=torch.float64)
    moved = torch.linalg.vector_norm(after - before, dtype=torch.float64)
    return float(moved / size) if size else None


def _spread(diagonal: Tensor, damping: float | None) -> dict[str, Any]:
    ordered = diagonal.clamp(min=0).sort().values  # a difference of means may be a hair below zero
    count = len(ordered)
    zeros = int(torch.searchsorted(ordered, 0.0, right=True))
    marks = [zeros, *torch.searchsorted(ordered, _EDGES).tolist(), count]
    below = None if damping is None else int(torch.searchsorted(ordered, damping)) / count
    return {
        "quantiles": [ordered[round(level * (count - 1))].item() for level in LEVELS],
        "damped": below,
        "zero": zeros / count,
        "shares": [(after - before) / count for before, after in pairwise(marks)],
    }


def _total(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the spread over all layers, each by its size; the quantiles from the histogram."""
    known = [layer for layer in layers if layer["curvature"] is not None]
    size = sum(layer["size"] for layer in known)
    if not size:
        return None
    weights: list[float] = [layer["size"] / size for layer in known]
    spreads = [layer["curvature"] for layer in known]

    def mean(values: Sequence[float]) -> float:
        return sum(w * value for w, value in zip(weights, values, strict=True))

    shares = [mean([s["shares"][i] for s in spreads]) for i in range(_BINS)]
    zero, damped = mean([s["zero"] for s in spreads]), [s["damped"] for s in spreads]
    return _told(
        {
            "quantiles": [_quantile(shares, level - zero) for level in LEVELS],
            "damped": None if None in damped else mean(damped),
            "zero": zero,
            "shares": shares,
        }
    )


def _quantile(shares: Sequence[float], level: float) -> float:
    """Return the value below which a share lies, taken as even within a bin; 0 for no share."""
    if level <= 0:
        return 0.0
    passed = 0.0
    for number, share in enumerate(shares):
        if share and passed + share >= level:
            return float(10 ** (LOW + STEP * (number + (level - passed) / share)))
        passed += share
    return float(10**HIGH)


def _rounded(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer as it is told: four digits say all that a picture shows."""
    ratio, spread = layer["update_ratio"], layer["curvature"]
    ratio = None if ratio is None or not math.isfinite(ratio) else _significant(ratio)
    return {**layer, "update_ratio": ratio, "curvature": spread and _told(spread)}


def _told(spread: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spread as it is told, without the empty bins at the ends of its histogram."""
    held = [number for number, share in enumerate(spread["shares"]) if share] or [0]
    shares = spread["shares"][held[0] : held[-1] + 1]
    return {
        "quantiles": [_significant(value) for value in spread["quantiles"]],
        "damped": None if spread["damped"] is None else round(spread["damped"], 4),
        "zero": round(spread["zero"], 4),
        "first": held[0],
        "shares": [round(1000 * share) for share in shares],
    }


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
