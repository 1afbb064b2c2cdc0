"""The commands that talk to a running server: what they print, write and refuse."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trustme
from curvserve_client import Client, RemoteSession
from safetensors import safe_open
from safetensors.torch import load_file

from tests.cli.run import document, printed, refused
from tests.server.api import digits
from tests.server.process import PATIENCE, serving
from tests.server.test_access import KEYS, write_keys

COMMANDS = [
    ("sessions", "list"),
    ("sessions", "show", "any"),
    ("sessions", "create", "mnist_cnn"),
    ("sessions", "delete", "any", "--yes"),
    ("sessions", "export", "any", "never-written"),
    ("checkpoints", "list", "any"),
    ("checkpoints", "create", "any", "one"),
    ("checkpoints", "download", "any", "one", "never-written"),
    ("backup", "never-written"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _url(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVSERVE_URL", server_url)


@pytest.fixture
def session(server_url: str) -> Iterator[RemoteSession]:
    """A session of one step, that the test may end."""
    name = f"cli-{uuid.uuid4().hex}"
    with Client(server_url) as client:
        made = client.create_session("mnist_cnn", name)
        batch = digits()
        made.step(batch["inputs"], batch["targets"])
        yield made
        if name in [each.name for each in client.sessions()]:
            client.delete_session(name)


def test_sessions_are_listed_as_text_and_as_json(session: RemoteSession) -> None:
    head, *rows = printed("sessions", "list").splitlines()
    assert head.split()[:4] == ["name", "model", "version", "durable"]
    (row,) = [row.split() for row in rows if row.startswith(session.name)]
    assert row == [session.name, "mnist_cnn", "1", "-", "1", "diag_ggn", "none", "0"]
    (found,) = [each for each in document("sessions", "list") if each["name"] == session.name]
    assert found == session.info().to_dict()
    assert document("sessions", "show", session.name) == found


def test_a_session_is_shown_with_its_parameters(session: RemoteSession) -> None:
    lines = [line.split() for line in printed("sessions", "show", session.name).splitlines()]
    assert ["version", "1"] in lines and ["problems", "none"] in lines
    assert ["0.weight", "float32", "[20,", "1,", "5,", "5]"] in lines


def test_a_session_begins_is_kept_goes_on_elsewhere_and_ends(server_url: str) -> None:
    name, other = (f"cli-{uuid.uuid4().hex}" for _ in range(2))
    made = document("sessions", "create", "mnist_cnn", "--name", name, "--seed", "3")
    assert (made["name"], made["seed"], made["version"]) == (name, 3, 0)
    kept = document("checkpoints", "create", name, "start")
    assert (kept["name"], kept["version"], kept["with_rule_state"]) == ("start", 0, True)
    assert document("checkpoints", "list", name) == [kept]
    head, row = printed("checkpoints", "list", name).splitlines()
    assert head.split() == ["name", "version", "size", "created", "with_rule_state"]
    assert row.split()[:2] == ["start", "0"]
    again = document(
        "sessions", "create", "mnist_cnn", "--name", other, "--from-checkpoint", f"{name}/start"
    )
    assert (again["name"], again["seed"]) == (other, 3)
    assert printed("sessions", "delete", name, "--yes") == f"deleted {name}\n"
    assert document("sessions", "delete", other, "--yes") == {"deleted": other}
    left = {each["name"] for each in document("sessions", "list")}
    assert not left & {name, other}


def test_parameters_are_exported_with_their_version(session: RemoteSession) -> None:
    told = document("sessions", "export", session.name, "weights.safetensors")
    size = Path("weights.safetensors").stat().st_size
    assert told == {
        "model": "mnist_cnn", "session": session.name, "version": 1,
        "file": "weights.safetensors", "size": size,
    }  # fmt: skip
    written, right = load_file("weights.safetensors"), session.pull()
    assert written.keys() == right.keys()
    assert all(torch.equal(written[name], right[name]) for name in right)
    with safe_open("weights.safetensors", "pt") as file:
        assert file.metadata() == {
            "model": "mnist_cnn", "session": session.name, "version": "1",
        }  # fmt: skip


def test_a_file_that_is_there_is_replaced_only_by_force(session: RemoteSession) -> None:
    session.checkpoint("one")
    for command in (("sessions", "export"), ("checkpoints", "download")):
        arguments = (*command, session.name, *(["one"] if command[0] == "checkpoints" else []))
        Path("file").write_text("mine")
        assert "file exists; say --force" in refused(1, *arguments, "file")
        assert Path("file").read_text() == "mine"
        printed(*arguments, "file", "--force")
        assert load_file("file")
        Path("file").unlink()
    assert "no/folder" in refused(1, "sessions", "export", session.name, "no/folder")


def test_a_downloaded_checkpoint_is_the_servers_file(session: RemoteSession) -> None:
    session.checkpoint("one")
    told = document("checkpoints", "download", session.name, "one", "one.safetensors")
    with safe_open("one.safetensors", "pt") as file:
        assert session.read_checkpoint("one")[1] == file.metadata()
    assert told["version"] == 1 and told["size"] == session.checkpoints()[0].size


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_server_that_is_not_there_ends_every_command_alike(command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert "refused" in refused(3, *command, "--url", url)


@pytest.mark.parametrize(
    "command",
    [*(each for each in COMMANDS if "any" in each), ("sessions", "create", "any")],
    ids=" ".join,
)
def test_what_the_server_refuses_is_told_in_its_words(command: tuple[str, ...]) -> None:
    assert re.search("no (session|model) is (called|named) 'any'", refused(1, *command))
    assert not Path("never-written").exists()


@pytest.mark.parametrize("command", [("sessions", "list"), ("backup", "a.tar")], ids=" ".join)
@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://a:b"])
def test_a_url_that_is_none_is_a_wrong_argument(command: tuple[str, ...], url: str) -> None:
    assert f"{url!r} is not a" in refused(2, *command, "--url", url)


def test_a_private_authority_is_trusted_by_its_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with serving(*tls, "--log-level", "error") as server:
        trusting = {"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "CURVSERVE_URL": server.address}
        assert document("sessions", "list", **trusting)
        assert "no data folder" in refused(1, "backup", "a.tar", **trusting)
        assert "certificate" in refused(3, "backup", "a.tar", CURVSERVE_URL=server.address)


def test_a_key_is_taken_from_a_file_or_from_the_environment(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEYS["admin"][0] + "\n")
    keys = write_keys(tmp_path / "keys.toml", "admin")
    with serving("--api-keys", str(keys), "--log-level", "error") as server:
        there = {"CURVSERVE_URL": server.address}
        assert "API key" in refused(1, "sessions", "list", **there)
        assert "API key" in refused(1, "backup", "file", **there)
        assert document("sessions", "list", "--api-key-file", str(key), **there)
        assert document("sessions", "list", CURVSERVE_API_KEY_FILE=str(key), **there)
        assert document("sessions", "list", CURVSERVE_API_KEY=KEYS["admin"][0], **there)
    reason = "cannot read the API key in /no/such: No such file"
    for command in (("sessions", "list"), ("backup", "file")):
        assert reason in refused(2, *command, "--api-key-file", "/no/such")


@pytest.mark.parametrize("command", [("sessions", "list"), ("backup", "a.tar")], ids=" ".join)
@pytest.mark.parametrize("key", ["two words", "schlüssel"])
def test_what_is_no_key_is_refused_and_not_shown(command: tuple[str, ...], key: str) -> None:
    line = refused(2, *command, CURVSERVE_API_KEY=key)
    assert "the API key holds spaces" in line and key not in line


def test_nobody_is_asked_where_nobody_watches(session: RemoteSession) -> None:
    assert f"say --yes to delete {session.name}" in refused(2, "sessions", "delete", session.name)
    assert session.info().version == 1


def at_a_terminal(*arguments: str, typed: bytes = b"", **environment: str) -> tuple[int, str]:
    """Run a command at a terminal; return its exit status and what the screen shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "curvserve", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **environment},
    ) as process:
        os.close(theirs)
        os.write(ours, typed)
        screen = b""
        try:
            while part := os.read(ours, 4096):
                screen += part
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
    return process.returncode, screen.decode()


def test_a_person_is_asked_before_a_session_ends(session: RemoteSession) -> None:
    status, screen = at_a_terminal("sessions", "delete", session.name, typed=b"n\n")
    assert status == 1 and f"Delete {session.name} and its checkpoints?" in screen
    assert session.info().version == 1
    status, screen = at_a_terminal("sessions", "delete", session.name, typed=b"y\n")
    assert status == 0 and f"deleted {session.name}" in screen


def test_a_terminal_has_a_drawn_table_without_colours_where_none_are_wanted() -> None:
    url = os.environ["CURVSERVE_URL"]
    _, screen = at_a_terminal("doctor", "--url", url, NO_COLOR="1")
    assert "│ ready" in screen
    assert "\x1b[3" not in screen.replace("\x1b[3m", "")  # italics are no colour


def test_a_reader_that_leaves_ends_a_command_quietly() -> None:
    asked = f"{sys.executable} -m curvserve doctor --json --url {os.environ['CURVSERVE_URL']}"
    command = f"{asked} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.strip() in ("0", "1")


def test_an_interrupt_ends_a_command_with_130() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        subprocess.Popen(
            [sys.executable, "-m", "curvserve", "backup", "a.tar"],
            env={**os.environ, "CURVSERVE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        with silent.accept()[0] as connection:
            connection.recv(1)  # it has asked, and waits
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        assert process.stderr is not None and process.stderr.read() == ""
    assert list(Path().iterdir()) == []


def test_the_registered_models_are_listed() -> None:
    head, *rows = printed("models").splitlines()
    assert head.split() == ["name", "inputs", "targets", "loss", "parameters"]
    (row,) = [row for row in rows if row.startswith("mnist_cnn ")]
    assert row.split()[-2:] == ["CrossEntropyLoss", "431,080"] and "uint8 [1, 28, 28]" in row
    (found,) = [each for each in document("models") if each["name"] == "mnist_cnn"]
    assert found["parameters"] == 431080 and found["inputs"]["shape"] == [1, 28, 28]
    keys = ["name", "inputs", "targets", "loss", "metrics", "max_batch", "parameters"]
    assert list(found) == keys


def test_a_new_key_is_had_as_json() -> None:
    made = document("keys", "new", "--name", "loop")
    assert list(made) == ["name", "scope", "key", "entry"] and made["key"].startswith("cs_")


def test_every_command_that_prints_has_json() -> None:
    from tests.cli.test_completion import commands

    without = {
        " ".join(path)
        for path, command in commands()
        if "--json" not in [opt for parameter in command.params for opt in parameter.opts]
    }
    assert without == {"serve"}
