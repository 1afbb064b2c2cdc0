"""The reference says what the docstrings say."""

import re

from tests.documentation.reference import API, page, prose


def test_the_reference_is_that_of_the_docstrings() -> None:
    assert page() == API.read_text(), "write it anew: python -m tests.documentation.reference"


def test_every_name_has_a_sentence() -> None:
    entries = re.split(r"^###+ ", page(), flags=re.MULTILINE)[1:]
    named = {e.partition("\n")[0]: e.partition("\n")[2] for e in entries}
    bare = [n for n, e in named.items() if not re.sub(r"```.*?```", "", e, flags=re.S).strip()]
    assert bare == [] and len(entries) > 300


def test_sections_become_lists() -> None:
    text = "Does ``x`` by :func:`a.b`.\n\nArgs:\n    x: One\n        thing.\n\nExample:\n    >>> 1"
    first = "Does `x` by `a.b`.\n\n**Args**\n\n- `x`: One\n  thing.\n\n"
    assert prose(text) == first + "**Example**\n\n```text\n>>> 1\n```"
