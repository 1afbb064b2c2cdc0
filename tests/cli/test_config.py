"""Flag over environment over file over default, and nothing in a file is guessed."""

import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main

from curvserve.cli import app
from curvserve.cli.config import read_options
from curvserve.cli.serve import serve
from tests.cli.run import refused
from tests.server.process import ROOT, serving

EXAMPLE = ROOT / "docker" / "curvserve.example.toml"

REFUSED = [
    ("prot = 1", "no option is called 'prot'; did you mean port? (there are: model, weights, "),
    ("data-dir = 'x'", "no option is called 'data-dir'; did you mean data_dir?"),
    ("config = 'x'", "no option is called 'config'"),
    ("port = '8000'", "port is '8000': expected a valid integer"),
    ("port = true", "port is True: expected a valid integer"),
    ("port = 65536", "port is 65536: expected less than or equal to 65535"),
    ("queue = 0", "queue is 0: expected greater than or equal to 1"),
    ("work_seconds = inf", "work_seconds is inf: expected a finite number"),
    ("insecure = 'yes'", "insecure is 'yes': expected a valid boolean"),
    ("durability = 'most'", "durability is 'most': expected 'full', 'process', 'snapshot' or"),
    ("model = 'mnist_cnn'", "model is 'mnist_cnn': expected a valid array"),
    ("model = ['a', 1]", "model[1] is 1: expected a valid string"),
    ("[serve]\nport = 1", "no option is called 'serve'"),
    ("port = ", "is not TOML: Invalid value"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_an_entry_that_is_wrong_is_refused_by_its_name(
    text: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "curvserve.toml"
    file.write_text(text)
    line = refused(2, "serve", "--config", str(file))
    assert f"{file}" in line and reason in line


def test_a_file_that_is_not_there_is_told() -> None:
    assert "cannot read /no/such: No such file" in refused(2, "serve", CURVSERVE_CONFIG="/no/such")


def write(folder: Path, **options: str) -> Path:
    file = folder / "curvserve.toml"
    file.write_text("\n".join(f"{name} = {value}" for name, value in options.items()))
    return file


def test_the_environment_comes_before_the_file_and_a_flag_before_both(tmp_path: Path) -> None:
    socket, other = tmp_path / "flag", tmp_path / "file"
    config = write(tmp_path, uds=f"'{other}'", model="['tests.server.tiny:model']", queue="1")
    environment = {"CURVSERVE_CONFIG": str(config), "CURVSERVE_MODEL": "mnist_cnn"}
    with serving("--uds", str(socket), "--log-level", "error", **environment) as server:
        assert server.announcement == f"curvserve: serving mnist_cnn at unix:{socket}\n"
    with serving("--config", str(config), CURVSERVE_LOG_LEVEL="error") as server:
        assert server.announcement == f"curvserve: serving tiny at unix:{other}\n"
        transport = httpx.HTTPTransport(uds=str(other))
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            assert client.get("/readyz").status_code == 200


def options() -> dict[str, Any]:
    """Every option of `serve` and its default, as the command line has them."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]  # it is a group
    defaults = {parameter.name: parameter.default for parameter in command.params}
    return {name: value for name, value in defaults.items() if name not in ("config", "help")}


def uncommented(text: str) -> str:
    """An example with its entries in force: those lines whose comment has no space."""
    return "\n".join(line.removeprefix("#") for line in text.splitlines() if line[:2] != "# ")


def test_the_example_shows_every_option_with_its_default() -> None:
    text = EXAMPLE.read_text()
    shown = tomllib.loads(uncommented(text))
    assert list(shown) == list(options())
    different = {
        name: (shown[name], default)
        for name, default in options().items()
        if default is not None and shown[name] != default
    }
    assert different == {}


def test_the_example_can_be_used_as_it_is_and_with_all_its_entries(tmp_path: Path) -> None:
    assert read_options(EXAMPLE, serve, without="config") == {}
    whole = tmp_path / "whole.toml"
    whole.write_text(uncommented(EXAMPLE.read_text()))
    assert set(read_options(whole, serve, without="config")) == set(options())
