"""The reverse proxy: its configuration as nginx's own tables have it, and nginx before a server.

Where there is no nginx, the second half is skipped.
"""

import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import crossplane
import httpx
import pytest
import torch
import trustme
from curvserve_client import Client

from curvserve.server.limits import Limits
from tests.client.servers import closed_port
from tests.deployment.files import DOCKER, seconds
from tests.server.api import digits

CONFIG = DOCKER / "nginx" / "nginx.conf"
NGINX = shutil.which("nginx")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx here")


def directives(text: str, folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """What is wrong with a configuration, and its directives that stand alone."""
    file = folder / "nginx.conf"
    file.write_text(text)
    parsed = crossplane.parse(str(file), strict=True, single=True)
    found: dict[str, list[str]] = {}

    def walk(block: list[dict[str, list[str]]]) -> None:
        for each in block:
            found[str(each["directive"])] = each["args"]
            walk(each.get("block", []))  # type: ignore[arg-type]  # a block is a list of such

    walk(parsed["config"][0]["parsed"])
    return [error["error"] for error in parsed["errors"]], found


def test_every_directive_is_one_of_nginxs_in_its_place(tmp_path: Path) -> None:
    wrong, _ = directives(CONFIG.read_text(), tmp_path)
    assert wrong == []


@pytest.mark.parametrize("name", ["proxy_bufering off;", "proxy_pass http://x;"])
def test_a_directive_that_is_misspelt_or_misplaced_would_be_found(
    name: str, tmp_path: Path
) -> None:
    text = CONFIG.read_text().replace("server_tokens off;", name)
    assert directives(text, tmp_path)[0]


def test_the_proxys_times_fit_the_servers(tmp_path: Path) -> None:
    _, found = directives(CONFIG.read_text(), tmp_path)
    assert seconds(found["proxy_read_timeout"][0]) > Limits.work_seconds
    assert seconds(found["client_header_timeout"][0]) <= Limits.head_seconds
    assert found["proxy_request_buffering"] == found["proxy_buffering"] == ["off"]
    assert found["client_max_body_size"] == [f"{Limits.bodies_bytes // 2**30}g"]


@pytest.fixture(scope="module")
def proxy(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An nginx with the configuration as it is, but for ports, names and files."""
    folder = tmp_path_factory.mktemp("nginx")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    plain, tls = closed_port(), closed_port()
    text = CONFIG.read_text()
    for written, here in {
        "/tmp/": f"{folder}/",
        "/run/secrets/tls_cert": f"{folder}/cert.pem",
        "/run/secrets/tls_key": f"{folder}/key.pem",
        "curvserve:8000": server_url.removeprefix("http://"),
        "listen 8080": f"listen 127.0.0.1:{plain}",
        "listen 8443": f"listen 127.0.0.1:{tls}",
    }.items():
        assert written in text
        text = text.replace(written, here)
    config = folder / "nginx.conf"
    config.write_text("daemon off;\nmaster_process off;\n" + text)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    command = ["nginx", "-c", str(config), "-p", str(folder), "-e", "stderr"]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    with subprocess.Popen(command) as process:
        url, retries = f"https://127.0.0.1:{tls}", httpx.HTTPTransport(retries=10, verify=context)
        with httpx.Client(base_url=url, transport=retries, timeout=60) as client:
            client.headers["x-test-plain"] = str(plain)
            client.get("/livez").raise_for_status()
            yield client
        process.terminate()


@needs_nginx
def test_a_client_trains_through_the_proxy(proxy: httpx.Client, server_url: str) -> None:
    batch = digits()
    with Client(str(proxy.base_url).rstrip("/"), http=proxy) as client, Client(server_url) as near:
        session = client.create_session("mnist_cnn")
        session.step(batch["inputs"], batch["targets"])
        pulled, right = session.pull(), near.session(session.name).pull()
        assert all(torch.equal(pulled[name], right[name]) for name in right)
        client.delete_session(session.name)


@needs_nginx
def test_events_arrive_when_they_happen(proxy: httpx.Client) -> None:
    batch = digits()
    with Client(str(proxy.base_url).rstrip("/"), http=proxy) as client:
        session = client.create_session("mnist_cnn")
        with proxy.stream("GET", "/v1/events") as events:
            lines = (line for line in events.iter_lines() if line.startswith("data:"))
            session.step(batch["inputs"], batch["targets"])
            told = (json.loads(line[5:]) for line in lines)
            step = next(each for each in told if each.get("session") == session.name)
        assert step["version"] == 1
        client.delete_session(session.name)


@needs_nginx
def test_the_servers_metrics_are_not_for_everybody(proxy: httpx.Client) -> None:
    assert proxy.get("/metrics").status_code == 404


@needs_nginx
def test_plain_http_is_sent_to_tls(proxy: httpx.Client) -> None:
    plain = f"http://127.0.0.1:{proxy.headers['x-test-plain']}"
    answer = httpx.get(f"{plain}/v1/models")
    assert (answer.status_code, answer.headers["location"]) == (308, "https://127.0.0.1/v1/models")
    assert httpx.get(f"{plain}/livez").json() == {"status": "alive"}
