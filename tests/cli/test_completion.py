"""What a shell is offered, by its own protocol, and that nothing heavy is loaded for it."""

import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from curvserve_client import Client

from curvserve.cli import app
from curvserve.cli.completion import model_names
from curvserve.models import available

Path = tuple[str, ...]


def commands(command: Any = None, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every command with its path."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*path, name))


def completed(line: str, *, program: str = "-m curvserve", **environment: str) -> list[str]:
    """Return what bash would offer behind a line, whose last word is being typed."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    told = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, *shlex.split(program)],
        env={**os.environ, **environment, **told, "_CURVSERVE_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_every_registered_model_is_offered() -> None:
    assert sorted(model_names()) == available()


def test_commands_and_models_are_completed_without_torch() -> None:
    assert completed("curvserve sess") == ["sessions"]
    heavy = "import sys\nfrom curvserve.cli import main\ntry:\n    main()\nfinally:\n"
    heavy += "    assert not {'torch', 'fastapi'} & set(sys.modules)"
    offered = completed("curvserve serve --model mnist", program=f"-c {shlex.quote(heavy)}")
    assert offered == ["mnist_cnn"]


def test_the_servers_sessions_are_completed(server_url: str) -> None:
    name = f"typed-{uuid.uuid4().hex}"
    with Client(server_url) as client:
        client.create_session("mnist_cnn", name)
        try:
            for command in ("sessions show", "sessions delete", "checkpoints list"):
                line = f"curvserve {command} {name[:12]}"
                assert completed(line, CURVSERVE_URL=server_url) == [name]
        finally:
            client.delete_session(name)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense"])
def test_where_no_server_answers_nothing_is_offered(url: str) -> None:
    assert completed("curvserve sessions show ", CURVSERVE_URL=url) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shells_script_calls_the_program(shell: str) -> None:
    command = [sys.executable, "-m", "curvserve", "--show-completion", shell]
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = subprocess.check_output(command, text=True, env=environment)
    assert f"_CURVSERVE_COMPLETE=complete_{shell}" in script
