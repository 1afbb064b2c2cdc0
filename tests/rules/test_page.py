"""docs/rules.md and the rules say the same."""

import dataclasses
import inspect
import re

import pytest
from curvserve_client.rules import RULES, Rule

from tests.documentation.rule_tables import PAGE, filled, meanings

EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def test_the_tables_are_those_of_the_dataclasses() -> None:
    assert filled(PAGE.read_text()) == PAGE.read_text(), (
        "write them anew: python -m tests.documentation.rule_tables"
    )


def test_every_rule_has_its_section() -> None:
    sections = re.findall(r"^## (\w+)$", PAGE.read_text(), re.MULTILINE)
    assert sections == list(RULES)
    assert all(f"<!-- {name} -->\n| option" in PAGE.read_text() for name in RULES)


@EVERY_RULE
def test_every_option_is_explained_where_it_stands(rule: type[Rule]) -> None:
    assert list(meanings(rule)) == [known.name for known in dataclasses.fields(rule)]


@EVERY_RULE
def test_a_rule_names_its_paper(rule: type[Rule]) -> None:
    assert re.search(r"\b(19|20)\d\d\b", inspect.getdoc(rule) or "")
