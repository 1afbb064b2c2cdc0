"""The tables of docs/rules.md, made from the rules' own dataclasses.

python -m tests.documentation.rule_tables writes them anew.
"""

import dataclasses
import inspect
import re
from typing import Any

from curvserve_client.rules import RULES, Rule
from curvserve_client.rules.options import expected

from tests.documentation.pages import ROOT
from tests.documentation.tables import table

PAGE = ROOT / "docs" / "rules.md"
_MEANING = re.compile(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", re.MULTILINE | re.DOTALL)


def meanings(rule: type[Rule]) -> dict[str, str]:
    """Option -> what the docstring says of it."""
    attributes = (inspect.getdoc(rule) or "").partition("Attributes:\n")[2]
    return {name: " ".join(text.split()).rstrip(".") for name, text in _MEANING.findall(attributes)}


def written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def options(rule: type[Rule]) -> str:
    said = meanings(rule)
    rows = [
        [
            f"`{known.name}`",
            written(known.default),
            expected(known),
            said[known.name].replace("|", r"\|"),
        ]
        for known in dataclasses.fields(rule)
    ]
    return table(["option", "default", "value", "what"], rows)


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, rule in RULES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = options(rule)
        page = re.sub(pattern, lambda m: m[1] + text + "\n" + m[2], page, flags=re.DOTALL)  # noqa: B023  # called at once
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
