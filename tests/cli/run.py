"""Runs `curvserve` in this process, as a person at a pipe would see it."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from curvserve.cli import app


def curvserve(*arguments: str, **environment: str | None) -> Result:
    """Run a command; it may fail."""
    return CliRunner().invoke(app, arguments, env=environment)


def printed(*arguments: str, **environment: str | None) -> str:
    """Run a command that must succeed, and return what it prints."""
    done = curvserve(*arguments, **environment)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return done.stdout


def document(*arguments: str, **environment: str | None) -> Any:
    """Run a command with --json, and return what it prints."""
    return json.loads(printed(*arguments, "--json", **environment))


def refused(status: int, *arguments: str, **environment: str | None) -> str:
    """Run a command that must fail in one line, and return the line."""
    done = curvserve(*arguments, **environment)
    assert (done.exit_code, done.stdout) == (status, ""), done.output
    assert done.stderr.startswith("curvserve: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr
