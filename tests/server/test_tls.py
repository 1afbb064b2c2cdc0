"""TLS by flags, and what is refused or warned of beyond loopback."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from curvserve_client import ConnectionFailed, connect

from curvserve.api_keys import new_key
from curvserve.server.tls import TLSFileError, tls_context
from tests.server.process import Server, serving
from tests.server.test_cli import refused

AUTHORITY = trustme.CA()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate, its key, another's key, and an API key's entry."""
    folder = tmp_path_factory.mktemp("tls")
    leaf = AUTHORITY.issue_cert("127.0.0.1", "localhost")
    (folder / "cert.pem").write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
    AUTHORITY.issue_cert("localhost").private_key_pem.write_to_path(str(folder / "other.pem"))
    (folder / "keys.toml").write_text(new_key("loop", ["train"])[1].to_toml())
    (folder / "keys.toml").chmod(0o600)
    return folder


def flags(folder: Path) -> list[str]:
    return ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(*flags(folder), "--log-level", "error") as server:
        yield server


def test_a_client_that_trusts_the_authority_trains_over_tls(server: Server) -> None:
    assert server.address.startswith("https://127.0.0.1:")
    trusting = ssl.create_default_context()
    AUTHORITY.configure_trust(trusting)
    with (
        httpx.Client(verify=trusting) as http,
        connect(server.address, model="mnist_cnn", http=http) as session,
    ):
        assert session.pull()["7.weight"].shape == (500, 800)


def test_a_client_that_does_not_trust_the_authority_refuses(server: Server) -> None:
    with pytest.raises(ConnectionFailed, match="CERTIFICATE_VERIFY_FAILED"):
        connect(server.address, model="mnist_cnn")


def test_plain_http_gets_no_answer_where_tls_is_spoken(server: Server) -> None:
    with pytest.raises(ConnectionFailed):
        connect(server.address.replace("https", "http"), model="mnist_cnn")


def test_nothing_older_than_tls_1_2_is_spoken(folder: Path) -> None:
    context = tls_context(folder / "cert.pem", folder / "key.pem")
    assert context is not None and context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_without_a_certificate_there_is_no_tls() -> None:
    assert tls_context(None, None) is None


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        ("cert.pem", None, "need each other"),
        (None, "key.pem", "need each other"),
        ("cert.pem", "absent.pem", r"cannot read .*absent\.pem: No such file"),
        ("cert.pem", "other.pem", "KEY_VALUES_MISMATCH"),
        ("key.pem", "cert.pem", "are no certificate and its key"),
        ("keys.toml", "key.pem", "are no certificate and its key"),
    ],
)
def test_files_that_make_no_pair_are_refused(
    folder: Path, certificate: str | None, key: str | None, reason: str
) -> None:
    paths = [None if name is None else folder / name for name in (certificate, key)]
    with pytest.raises(TLSFileError, match=reason):
        tls_context(*paths)


def test_the_command_line_refuses_half_a_pair_in_one_line(folder: Path) -> None:
    reason = refused("serve", "--tls-cert", str(folder / "cert.pem"))
    assert reason == "curvserve: --tls-cert and --tls-key need each other\n"


def test_keys_allow_other_machines_with_a_warning_that_they_travel_in_the_clear(
    folder: Path,
) -> None:
    with serving("--host", "0.0.0.0", "--api-keys", str(folder / "keys.toml"), log=True) as server:
        assert "API keys travel in the clear" in server.logged("warning")


def test_keys_and_tls_beyond_loopback_need_no_warning(folder: Path) -> None:
    keys = ["--api-keys", str(folder / "keys.toml")]
    with serving("--host", "0.0.0.0", *keys, *flags(folder), log=True) as server:
        server.process.terminate()
        assert server.log is not None and server.log.read() == ""


def test_a_key_file_that_everyone_can_read_is_warned_of(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text((folder / "keys.toml").read_text())
    path.chmod(0o644)
    with serving("--api-keys", str(path), log=True) as server:
        assert "every user of this machine can read" in server.logged("warning")
