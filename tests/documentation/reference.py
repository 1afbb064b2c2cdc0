"""docs/api.md, made from the docstrings.

python -m tests.documentation.reference writes it anew.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from tests.documentation.pages import ROOT

API = ROOT / "docs" / "api.md"

HEAD = """# Reference

Every public name, made from the docstrings. `python -m tests.documentation.reference` writes this
page anew, and a test holds it to the code. Shapes are written `[N, ...]`, samples first.
"""

PLACES = (
    "curvserve.engine",
    "curvserve.engine.extensions",
    "curvserve.engine.losses",
    "curvserve.engine.products",
    "curvserve.engine.kronecker",
    "curvserve.engine.spectrum",
    "curvserve.engine.errors",
    "curvserve.models",
    "curvserve_client",
    "curvserve_client.rules",
)

_SECTION = re.compile(r"^(Args|Arguments|Attributes|Returns|Yields|Raises|Example|Examples|Note):$")


def page() -> str:
    """The whole page."""
    modules = [importlib.import_module(place) for place in PLACES]
    where = [f"- [{m.__name__}](#{m.__name__.replace('.', '')})" for m in modules]
    seen: set[int] = set()
    parts = [HEAD, "\n".join(where), *(_module(module, seen) for module in modules)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _module(module: ModuleType, seen: set[int]) -> str:
    parts = [f"## {module.__name__}", prose(inspect.getdoc(module) or "")]
    for name in module.__all__ if hasattr(module, "__all__") else sorted(public(module)):
        found = getattr(module, name)
        if id(found) in seen or isinstance(found, ModuleType):
            continue
        seen.add(id(found))
        if inspect.isclass(found) or inspect.isfunction(found):
            parts.extend(_entry(name, found))
    return "\n\n".join(part for part in parts if part)


def public(module: ModuleType) -> Iterator[str]:
    """The names of a module that does not list them."""
    for name, found in vars(module).items():
        kind = inspect.isclass(found) or inspect.isfunction(found)
        if kind and not name.startswith("_") and found.__module__.startswith(module.__name__):
            yield name


def _entry(name: str, found: Any) -> Iterator[str]:
    yield f"### {name}"
    yield _call(name, found)
    yield prose(inspect.getdoc(found) or "")
    if not inspect.isclass(found):
        return
    begun = getattr(found.__dict__.get("__init__"), "__doc__", None)
    if begun and not begun.startswith("Initialize self"):
        yield prose(inspect.cleandoc(begun))
    for method, value in vars(found).items():
        inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        inner = inner.fget if isinstance(inner, property) else inner
        if (method.startswith("_") and method != "__call__") or not inspect.isfunction(inner):
            continue
        if not inner.__qualname__.startswith(f"{found.__qualname__}."):
            continue  # inherited, and put here by torch when an optimizer of the class was made
        text = inspect.getdoc(inner) or ""
        if not text or re.match(r"See (the base class|`|:)", text):
            continue
        kind = "" if not isinstance(value, property) else "property "
        yield f"#### {kind}{name}.{method}"
        if not kind:
            yield _call(method, inner)
        yield prose(text)


def _call(name: str, found: Any) -> str:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # an error class takes what its base takes
        return ""
    plain = [
        p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"
    ]
    short = signature.replace(parameters=plain, return_annotation=signature.empty)
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{name}{short}")
    if len(text) > 96:
        text = f"{name}(\n" + "".join(f"    {p},\n" for p in plain) + ")"
    return f"```text\n{text}\n```"


def prose(text: str) -> str:
    """A docstring as Markdown: its sections as lists, reST's roles and double quotes as code."""
    text = re.sub(r":\w+:`~?\.*([^`]+)`", r"`\1`", text).replace("``", "`")
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        if match := _SECTION.match(line):
            section = match[1]
            lines += ["", f"**{section}**", ""]
            lines += ["```text"] if section.startswith("Example") else []
        elif section.startswith("Example"):
            if line and not line.startswith(" "):
                lines += ["```", "", line]
                section = ""
            else:
                lines.append(line[4:])
        elif section and line.startswith("    "):
            lines.append(_item(line[4:], section))
        else:
            section = section if not line.strip() else ""
            lines.append(line)
    if section.startswith("Example"):
        lines.append("```")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _item(line: str, section: str) -> str:
    if line.startswith("    ") or section in ("Returns", "Yields", "Note"):
        return f"  {line.strip()}" if line.startswith("    ") else line
    name, colon, rest = line.partition(": ")
    return f"- `{name}`: {rest}" if colon and " " not in name.strip("`*") else f"- {line}"


if __name__ == "__main__":
    API.write_text(page())
