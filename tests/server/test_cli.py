"""The command line: instant help, one-line refusals, a clean end."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from curvserve import __version__
from curvserve.api_keys import KeyRing, Scope
from curvserve.cli import app
from tests.server.process import PATIENCE, serving

HEAVY = ("torch", "fastapi", "uvicorn", "httpx")


def run(*arguments: str) -> Result:
    # what `serve` sets for its own process must not stay behind in this one
    return CliRunner().invoke(app, arguments, env={"OMP_WAIT_POLICY": "PASSIVE"})


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["demo", "--help"], ["keys", "new", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from curvserve.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        f"print('imported:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "imported: []" in done.stdout, done.stdout + done.stderr
    assert "Usage" in done.stdout


def test_the_package_is_a_program_and_tells_its_version() -> None:
    command = [sys.executable, "-m", "curvserve", "--version"]
    assert subprocess.check_output(command, text=True) == f"curvserve {__version__}\n"


def test_the_registered_models_are_listed() -> None:
    assert "mnist_cnn" in run("models").stdout


def refused(*arguments: str) -> str:
    """Run a command that must fail in one line, and return the line."""
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("curvserve: ") and done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "resnet"], "no model is called 'resnet'"),
        (["--model", "no.such:model"], "'no.such:model' cannot be imported"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "::"], "give --api-keys FILE, or say --insecure"),
        (["--api-keys", "/no/such"], "cannot read the API keys in /no/such: No such file"),
        (["--host", "no-such-host.invalid"], "no such host: no-such-host.invalid"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--device", "abacus"], "no device 'abacus'"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(arguments: list[str], reason: str) -> None:
    assert reason in refused("serve", "--port", "0", *arguments)


def test_a_new_key_is_shown_beside_the_entry_that_lets_it_in(tmp_path: Path) -> None:
    done = run("keys", "new", "--name", "loop", "--scope", "admin")
    (tmp_path / "keys.toml").write_text(done.stdout)
    key = done.stderr.split()[-1]
    assert key.startswith("cs_") and key not in done.stdout
    found = KeyRing.read(tmp_path / "keys.toml").find(key)
    assert found is not None and (found.name, found.scope) == ("loop", Scope.ADMIN)


def test_a_new_key_may_have_quotas_of_its_own(tmp_path: Path) -> None:
    quotas = ("--sessions", "0", "--requests", "8")
    (tmp_path / "keys.toml").write_text(run("keys", "new", "--name", "loop", *quotas).stdout)
    (entry,) = KeyRing.read(tmp_path / "keys.toml").entries
    assert (entry.sessions, entry.requests) == (0, 8)


def test_a_new_key_needs_a_name_that_a_file_can_hold() -> None:
    assert "name: String should match" in refused("keys", "new", "--name", "a b")


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        reason = f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert reason in refused("serve", "--port", str(port))


def test_a_demo_without_its_data_is_told_what_is_expected() -> None:
    assert "expected the four gunzipped idx files" in refused("demo", "--data-dir", "/no/such")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_announces_itself_and_ends_cleanly_on_a_signal(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(cold=True) as server:
        assert server.announcement == f"curvserve: serving mnist_cnn at {server.address}\n"
        assert httpx.get(f"{server.address}/readyz").json() == {"status": "ready"}
        server.process.send_signal(number)
        assert server.process.wait(PATIENCE) == 0
        assert server.process.stdout is not None and server.process.stdout.read() == ""
    assert capfd.readouterr().err == ""
