"""Whether a contestant's numbers are right, in float64 and from the same draws."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..engine.errors import EngineError
from .case import SEED, Case
from .contestants import REFERENCES, Contestant, Found, Value
from .draws import drawing

TOLERANCE = 1e-10
SAMPLES = 8


class WrongNumbers(Exception):
    """A contestant computes something else; the text says which, what and how far off."""


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        off: contestant -> largest relative difference from its reference, None where it has none.
        refused: contestant -> why it does not take part.
    """

    off: Mapping[str, float | None]
    refused: Mapping[str, str]


def check(
    case: Case, quantity: str, kinds: Mapping[str, type[Contestant]], device: torch.device
) -> Checked:
    """Hold each contestant against its reference; see `distance`.

    The reference is BackPACK, and plain autograd sample by sample for BackPACK itself and for what
    it cannot do. Who cannot either, and says so by an error, does not take part.

    Args:
        case: net and data; a few samples of it are computed.
        quantity: what is computed.
        kinds: the contestants.
        device: where.

    Raises:
        WrongNumbers: a difference is more than rounding.
    """
    task = case.task(quantity, device, samples=1)
    found: dict[str, Found] = {}
    refused: dict[str, str] = {}
    everybody = {**kinds, **{kind.name: kind for kind in REFERENCES}}
    for name, kind in everybody.items():
        try:
            refused[name] = kind.refusal(task)
            if not refused[name]:
                found[name] = _computed(kind, case, quantity, device)
        except WrongNumbers:
            raise
        except Exception as error:  # peers refuse a net by whatever they raise; it is told
            if kind.own and not isinstance(error, EngineError):
                raise
            refused[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    off: dict[str, float | None] = {}
    for name in (name for name in kinds if name in found):
        reference = next((r.name for r in REFERENCES if r.name in found and r.name != name), None)
        off[name] = None
        if reference is not None:
            what = f"{name}: {quantity} of {case.name}, against {reference}"
            wanted = found[reference]
            if everybody[name].seeded:
                with drawing(SEED):
                    wanted = _computed(everybody[reference], case, quantity, device)
            off[name] = distance(found[name], wanted, what)
    return Checked(off, {name: refused[name] for name in kinds if refused[name]})


def distance(found: Found, wanted: Found, what: str) -> float:
    """Return the largest relative difference of a parameter's results, by Euclidean norm.

    Args:
        found: results by quantity and parameter.
        wanted: those of the reference.
        what: they are, for the message.

    Raises:
        WrongNumbers: one is more than `TOLERANCE`, or is missing.
    """
    worst = 0.0
    for field, parameters in found.items():
        if absent := wanted[field].keys() ^ parameters.keys():
            raise WrongNumbers(f"{what}: {field} of {min(absent)} is there once only")
        for name, value in parameters.items():
            relative = _largest(_tensors(value), _tensors(wanted[field][name]))
            if not relative <= TOLERANCE:
                raise WrongNumbers(f"{what}: {field} of {name} is off by {relative:.1e}")
            worst = max(worst, relative)
    return worst


def _computed(kind: type[Contestant], case: Case, quantity: str, device: torch.device) -> Found:
    with default_dtype(torch.float64):  # BackPACK averages in the default one
        samples = min(case.batch, SAMPLES)
        contestant = kind(case.task(quantity, device, torch.float64, samples))
        torch.manual_seed(SEED)
        contestant.run()
        found = contestant.found()
    if absent := set(contestant.fields) - found.keys():
        raise WrongNumbers(f"{kind.name}: {quantity} of {case.name}: no {min(absent)}")
    return found


def _tensors(value: Value) -> list[torch.Tensor]:
    return value if isinstance(value, list) else [value]


def _largest(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    if len(found) != len(wanted):
        return float("inf")
    return max(_relative(one, other) for one, other in zip(found, wanted, strict=True))


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    scale = wanted.norm()
    return float((found - wanted).norm() / scale) if scale > 0 else float(found.norm())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Change torch's default type for a block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
