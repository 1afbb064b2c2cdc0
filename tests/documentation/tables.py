"""The tables of the pages, made from the registries.

python -m tests.documentation.tables writes them anew.
"""

import importlib
import inspect
import re
from collections.abc import Callable

from curvserve_client.errors import PROBLEMS, ProblemError
from torch import nn

import curvserve.engine.extensions  # noqa: F401 # a name of the package from then on
from curvserve.engine import layers, losses
from curvserve.engine.layers import LayerRule, recurrent
from curvserve.engine.layers.affine import Affine
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
from curvserve.models import available, resolve
from curvserve.server import create_app
from curvserve.server.route_table import SCOPES
from curvserve.sessions.machine import Expectation, Kind, Machine, Receipt, Stage, Ticket
from tests.documentation.pages import PAGES, ROOT

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
    if kind in CHAINS and rule is not None and (not rule.kinds or nn.Bilinear in rule.kinds):
        return "–"  # a part of a module, or it takes two inputs
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
        column = tuple(way(rule, kind) for rule in [*rows.values(), None, Affine(()), None])
        groups.setdefault(column, []).append(f"`{kind.__name__}`")
    head = ["layer", *(", ".join(names) for names in groups.values())]
    found = "`MultiheadAttention`, cells, `F.linear`, sums with a parameter (in the graph)"
    names = [*rows, f"{unrolled} (unrolled)", found, "any other module, bare parameters"]
    body = [[name, *(column[i] for column in groups)] for i, name in enumerate(names)]
    return table(head, body)


def loss_table() -> str:
    rows = []
    for kind, rule in losses.RULES.items():
        rows.append(
            [f"`{kind.__name__}`", inspect.getdoc(type(rule)).splitlines()[0].replace("|", r"\|")]
        )
    return table(["loss", "curvature"], rows)


def errors() -> str:
    rows = []
    for code, problem in PROBLEMS.items():
        when = inspect.getdoc(problem).splitlines()[0]
        rows.append([f"`{code}`", str(problem.status), problem.title, when, problem.advice])
    return table(["code", "status", "title", "when", "what to do"], rows)


def calls() -> str:
    document = create_app([resolve("mnist_cnn")]).openapi()
    rows = []
    for call, scope in SCOPES.items():
        method, path = call.split()
        answers = document["paths"].get(path, {}).get(method.lower(), {}).get("responses", {})
        schemas = [
            answer["content"]["application/problem+json"]["schema"]
            for status, answer in sorted(answers.items())
            if "application/problem+json" in answer.get("content", {})
        ]
        found = [
            code for schema in schemas for code in schema["allOf"][1]["properties"]["code"]["enum"]
        ]
        own = [
            f"`{code}`" for code in found if code not in ("unauthorized", "forbidden", "internal")
        ]
        rows.append([f"`{call}`", str(scope or "open"), ", ".join(own) or "–"])
    return table(["call", "scope", "problems"], rows)


def staged(stage: Stage) -> tuple[Machine, Ticket]:
    """A session's machine with one step in a stage."""
    machine, ticket = Machine(), Ticket(Kind.STEP, "key", b"request")
    machine.admit(ticket)
    if stage is not Stage.QUEUED:
        machine.start(ticket)
    if stage in (Stage.COMMITTING, Stage.ENDED):
        machine.computed(ticket)
    if stage is Stage.ENDED:
        machine.commit(ticket, Receipt(1, {}))
    return machine, ticket


EVENTS: dict[str, Callable[[Machine, Ticket], object]] = {
    "its turn comes (`start`)": lambda m, t: m.start(t),
    "its turn comes, and the version is another": lambda m, t: (
        setattr(t, "expectation", Expectation(frozenset([99]))), m.start(t)
    ),
    "its result is there (`computed`)": lambda m, t: m.computed(t),
    "it is durable (`commit`)": lambda m, t: m.commit(t, Receipt(1, {})),
    "it fails (`fail`)": lambda m, t: m.fail(t),
    "its deadline passes (`abandon`)": lambda m, t: m.abandon(t),
    "its deadline passes, then its result is there": lambda m, t: (m.abandon(t), m.computed(t)),
    "the session is deleted, then its result is there": lambda m, t: (m.delete(), m.computed(t)),
    "the same request comes again": lambda m, t: m.admit(Ticket(t.kind, t.key, t.fingerprint)),
    "another request comes with its key": lambda m, t: m.admit(Ticket(t.kind, t.key, b"other")),
}  # fmt: skip


def outcome(stage: Stage, event: Callable[[Machine, Ticket], object]) -> str:
    """What an event does to a request in a stage: the next stage, or what is answered."""
    machine, ticket = staged(stage)
    try:
        found = event(machine, ticket)
    except AssertionError:
        return "–"  # cannot happen
    except ProblemError as error:
        return f"`{error.code}`"
    return "its answer" if isinstance(found, Receipt) else str(ticket.stage)


def machine() -> str:
    rows = [
        [event, *(outcome(stage, happens) for stage in Stage)] for event, happens in EVENTS.items()
    ]
    return table(["what happens", *map(str, Stage)], rows)


# Where the public names of BackPACK's modules are here.
IMPORTS = {
    "backpack": "curvserve.engine",
    "backpack.extensions": "curvserve.engine.extensions",
    "backpack.extensions.curvature": "curvserve.engine.hbp_options",
    "backpack.extensions.secondorder.hbp.hbp_options": "curvserve.engine.hbp_options",
    "backpack.hessianfree.ggnvp": "curvserve.engine.products",
    "backpack.hessianfree.hvp": "curvserve.engine.products",
    "backpack.hessianfree.lop": "curvserve.engine.products",
    "backpack.hessianfree.rop": "curvserve.engine.products",
    "backpack.utils.kroneckers": "curvserve.engine.kronecker",
}


def shared_names(theirs: str, ours: str) -> list[str]:
    """The names that can be imported from both modules, in the order of the peer's."""
    module = importlib.import_module(theirs)
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == theirs]
    names = getattr(module, "__all__", [*own, "extensions"] if theirs == "backpack" else own)
    here = importlib.import_module(ours)
    return [name for name in names if hasattr(here, name)]


def import_table() -> str:
    rows = [
        [f"`{theirs}`", f"`{ours}`", ", ".join(f"`{n}`" for n in shared_names(theirs, ours))]
        for theirs, ours in IMPORTS.items()
    ]
    return table(["from", "becomes from", "import"], rows)


def built_in() -> str:
    rows = []
    for name in available():
        model = resolve(name)
        count = sum(p.numel() for p in model.build().parameters())
        what = inspect.getdoc(inspect.getmodule(model.build)).splitlines()[0].rstrip(".")
        sizes = [f"`{list(spec.shape)}`" for spec in (model.inputs, model.targets)]
        metrics = ", ".join(f"`{metric}`" for metric in model.metrics)
        rows.append([f"`{name}`", what, f"{count:,}", *sizes, metrics])
    return table(["model", "what", "parameters", "a sample", "its target", "metrics"], rows)


TABLES = {
    "built_in": built_in,
    "extensions": extensions,
    "layers": kinds,
    "losses": loss_table,
    "errors": errors,
    "calls": calls,
    "machine": machine,
    "imports": import_table,
}


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        if f"<!-- {name} -->" not in page:
            continue
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = make()
        page = re.sub(pattern, lambda m: m[1] + text + "\n" + m[2], page, flags=re.DOTALL)  # noqa: B023  # called at once
    return page


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
