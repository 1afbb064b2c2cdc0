"""The command line: one file a command, each named here, in the order of the help.

Nothing heavy is imported before a command runs: `--help` is instant.
"""

from . import (  # noqa: F401, I001  # each adds its command
    serve,
    demo,
    models,
    sessions,
    checkpoints,
    backup,
    keys,
    bench,
    doctor,
)
from .root import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app(prog_name="curvserve")
