"""The tables of docs/engine.md, made from the registries.

python -m tests.documentation.tables writes them anew.
"""

import inspect
import re

from torch import nn

from curvserve.engine import layers, losses
from curvserve.engine.layers import LayerRule, recurrent
from curvserve.engine.quantities import (
    EKFAC,
    EXTENSIONS,
    GGNMP,
    HBP,
    HMP,
    KFAC,
    KFLR,
    KFRA,
    PCHMP,
    BatchDiagHessian,
    DiagHessian,
    HutchinsonDiagonal,
    HutchinsonTrace,
    Quantity,
)
from tests.documentation.pages import ROOT

PAGE = ROOT / "docs" / "engine.md"
FACTORS = (KFAC, KFLR, EKFAC)
CHAINS = (KFRA, HBP, PCHMP)
PRODUCTS = (GGNMP, HMP, HutchinsonDiagonal, HutchinsonTrace)
HESSIANS = (DiagHessian, BatchDiagHessian)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def signature(kind: type) -> str:
    if kind.__init__ is object.__init__:
        return f"`{kind.__name__}()`"
    own = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return f"`{kind.__name__}({', '.join(p.replace(annotation=p.empty).__str__() for p in own)})`"


def extensions() -> str:
    rows = []
    for kind in EXTENSIONS:
        first = inspect.getdoc(kind).splitlines()[0].rstrip(".")
        field = "hbp" if kind is HBP else kind().savefield
        rows.append([signature(kind), f"`{field}`", first.split(", in ``p.")[0].split(": a ")[0]])
    return table(["extension", "attribute", "what"], rows)


def way(rule: LayerRule | None, kind: type[Quantity]) -> str:
    """How a quantity is had for a parameter of a layer."""
    if kind in CHAINS and rule is not None and nn.Bilinear in rule.kinds:
        return "–"  # it takes two inputs
    linear = rule is not None and type(rule).matrices is not LayerRule.matrices
    if kind in (KFRA, HBP):
        return "chain" if linear else "–"
    if kind is PCHMP:
        return "chain" if rule else "–"
    if kind in FACTORS:
        return "yes" if linear else "vectors"
    if kind in PRODUCTS:
        return "again"
    if kind in HESSIANS:
        return "outputs" if rule else "elements"
    return "rule" if rule else "replay"


def kinds() -> str:
    groups: dict[tuple[str, ...], list[str]] = {}
    rows = {", ".join(f"`{k.__name__}`" for k in rule.kinds): rule for rule in dict.fromkeys(
        layers.RULES.values()
    )}  # fmt: skip
    unrolled = ", ".join(f"`{k.__name__}`" for k in recurrent.KINDS)
    for kind in EXTENSIONS:
        column = tuple(way(rule, kind) for rule in [*rows.values(), None, None])
        groups.setdefault(column, []).append(f"`{kind.__name__}`")
    head = ["layer", *(", ".join(names) for names in groups.values())]
    names = [*rows, f"{unrolled} (unrolled)", "any other module, bare parameters"]
    body = [[name, *(column[i] for column in groups)] for i, name in enumerate(names)]
    return table(head, body)


def loss_table() -> str:
    rows = []
    for kind, rule in losses.RULES.items():
        rows.append(
            [f"`{kind.__name__}`", inspect.getdoc(type(rule)).splitlines()[0].replace("|", r"\|")]
        )
    return table(["loss", "curvature"], rows)


TABLES = {"extensions": extensions, "layers": kinds, "losses": loss_table}


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = make()
        page = re.sub(pattern, lambda m: m[1] + text + "\n" + m[2], page, flags=re.DOTALL)  # noqa: B023
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
