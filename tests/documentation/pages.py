"""The code blocks of a page."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = sorted(
    path
    for pattern in ("*.md", "client/*.md", "docs/**/*.md", "curvserve/**/*.md")
    for path in ROOT.glob(pattern)
)

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str) -> list[Block]:
    """Return the blocks of a language on all pages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[1], match[2]))
    return [block for block in found if block.language == language]


def shape(text: str) -> list[str]:
    """Return lines with every number replaced, so that runs can be compared."""
    return [re.sub(r"\d[\d.]*", "#", re.sub(r" {2,}", "  ", line)) for line in text.splitlines()]


def shown(command: str) -> list[str]:
    """Return what the pages show that a command prints."""
    (found,) = [b.text for b in blocks("console") if b.text.startswith(f"$ {command}\n")]
    return found.splitlines()[1:]
