"""Who may call: every route is closed but for a written list, and each key does what it may."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from curvserve_client import Client, connect
from curvserve_client.errors import Forbidden, Unauthorized
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from curvserve.api_keys import SCOPES, KeyFileError, KeyRing, new_key
from curvserve.models import resolve
from curvserve.server import create_app
from curvserve.server.route_table import RouteTable
from tests.server.api import code
from tests.server.process import PATIENCE, Server, serving

OPEN = {"GET /livez", "GET /readyz", "GET /", "GET /docs", "GET /page/{path:path}"}
KEYS = {scope: new_key(scope, [scope]) for scope in SCOPES}


def routes(app: FastAPI) -> list[str]:
    """Every method and path of an application, as its router has them."""
    return [
        f"{method} {route.path}"
        for route in iter_route_contexts(app.routes)
        for method in sorted(route.methods or ())
    ]


ROUTES = routes(create_app([resolve("mnist_cnn")]))
CLOSED = [route for route in ROUTES if route.replace("HEAD", "GET") not in OPEN]


def needed(route: str) -> str:
    """The scope that a call needs, by what it does: look, change, end or take all."""
    method, path = route.split()
    if path == "/v1/backup":
        return "admin"
    looks = method in ("GET", "HEAD") or path.endswith(("/evaluate", "/curvature"))
    return "read" if looks else "admin" if method == "DELETE" else "train"


def write_keys(path: Path, *scopes: str) -> Path:
    path.write_text("\n".join(KEYS[scope][1].to_toml() for scope in scopes))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = write_keys(tmp_path_factory.mktemp("keys") / "keys.toml", *SCOPES)
    with serving("--api-keys", str(keys), "--log-level", "error") as server:
        yield server


@pytest.fixture(scope="module")
def caller(guarded: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.address, timeout=PATIENCE) as client:
        yield client


def call(caller: httpx.Client, route: str, authorization: str | None) -> httpx.Response:
    method, path = route.split()
    target = path.replace("{model}", "mnist_cnn").replace("{name}", "no-such-session")
    target = target.replace("{path:path}", "main.js")
    headers = {} if authorization is None else {"authorization": authorization}
    with caller.stream(method, target, headers=headers) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return answer  # which has no end
        answer.read()
    return answer


@pytest.mark.parametrize("route", CLOSED)
def test_a_closed_route_answers_401_without_a_key(caller: httpx.Client, route: str) -> None:
    answer = call(caller, route, None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="curvserve"'
    assert route.startswith("HEAD") or code(answer) == "unauthorized"


@pytest.mark.parametrize("route", CLOSED)
@pytest.mark.parametrize("wrong", ["Bearer cs_guess", "Bearer", "Basic cs_guess", "ü"])
def test_a_closed_route_answers_401_with_a_wrong_key(
    caller: httpx.Client, route: str, wrong: str
) -> None:
    answer = call(caller, route, wrong.encode("latin-1"))  # type: ignore[arg-type]  # bytes are no str, and httpx takes them
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("route", CLOSED)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_opens_what_its_scope_allows_and_nothing_more(
    caller: httpx.Client, route: str, scope: str
) -> None:
    answer = call(caller, route, f"Bearer {KEYS[scope][0]}")
    if SCOPES.index(scope) >= SCOPES.index(needed(route)):
        assert answer.status_code not in (401, 403)
        return
    assert (answer.status_code, code(answer)) == (403, "forbidden")
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert answer.json()["expected"] == f"the scope {needed(route)}"


@pytest.mark.parametrize("route", sorted(OPEN))
def test_an_open_route_asks_for_nothing(caller: httpx.Client, route: str) -> None:
    assert call(caller, route, None).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/%2flivez",
        "/page",
        "/livez/x",
        "/v1/models/",
        "/v1/%2e%2e/livez",
        "/%2e/livez",
        "/LIVEZ",
    ],
)
def test_a_path_that_does_not_exist_is_told_to_callers_with_a_key_only(
    caller: httpx.Client, path: str
) -> None:
    assert caller.get(path).status_code == 401
    known = caller.get(path, headers={"authorization": f"bearer {KEYS['read'][0]}"})
    assert (known.status_code, code(known)) == (404, "not_found")


def test_a_method_that_does_not_exist_needs_a_key_too(caller: httpx.Client) -> None:
    assert caller.patch("/v1/models").status_code == 401
    known = caller.patch("/v1/models", headers={"authorization": f"Bearer {KEYS['read'][0]}"})
    assert (known.status_code, known.headers["allow"]) == (405, "GET")


def test_a_refusal_comes_before_the_body(guarded: Server) -> None:
    url = httpx.URL(guarded.address)
    assert url.port is not None
    head = (
        "POST /v1/sessions/mnist_cnn/step HTTP/1.1\r\nhost: curvserve\r\n"
        "content-type: application/vnd.safetensors\r\ncontent-length: 1000000\r\n"
        "expect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port), timeout=PATIENCE) as connection:
        connection.sendall(head.encode())  # and not a byte of the body
        assert connection.recv(12) == b"HTTP/1.1 401"  # not 100


def test_the_client_carries_its_key(guarded: Server) -> None:
    with connect(guarded.address, model="mnist_cnn", api_key=KEYS["train"][0]) as session:
        assert session.info().model == "mnist_cnn"
    with Client(guarded.address, api_key=KEYS["train"][0]) as client:
        made = client.create_session("mnist_cnn", "trained")
        with pytest.raises(Forbidden, match="has the scope train; expected the scope admin"):
            client.delete_session(made.name)
    with Client(guarded.address, api_key=KEYS["admin"][0]) as client:
        client.delete_session("trained")
    with pytest.raises(Unauthorized, match="give connect or Client an api_key"):
        connect(guarded.address, model="mnist_cnn")


def test_a_route_that_nobody_gave_a_scope_stops_the_start() -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/v1/forgotten", lambda: None, methods=["POST"])
    with pytest.raises(LookupError, match="no scope for POST /v1/forgotten"):
        RouteTable(app)


def test_a_hangup_has_the_keys_read_again_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", "read")
    with (
        serving("--api-keys", str(path), log=True) as server,
        httpx.Client(base_url=server.address, timeout=PATIENCE) as caller,
    ):

        def status(scope: str) -> int:
            return call(caller, "GET /v1/models", f"Bearer {KEYS[scope][0]}").status_code

        assert (status("read"), status("train")) == (200, 401)
        line = server.logged("GET /v1/models 200")
        assert " key=read " in line and KEYS["read"][0] not in line
        write_keys(path, "train")
        server.process.send_signal(signal.SIGHUP)
        server.logged("read 1 API keys")
        assert (status("read"), status("train")) == (401, 200)
        path.write_text("[[keys]")
        server.process.send_signal(signal.SIGHUP)
        assert "is not TOML" in server.logged("the API keys stay as they were")
        assert (status("read"), status("train")) == (401, 200)


ENTRY = KEYS["read"][1].to_toml()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "keys: Field required"),
        ("keys = []", "at least 1 item"),
        ("keys = [", "is not TOML"),
        ("\udcff", "is not TOML"),
        (ENTRY.replace("read", "write"), "no scope is called 'write'; expected read, train, admin"),
        (ENTRY.replace('["read"]', "[]"), "keys.0.scopes: List should have at least 1 item"),
        (ENTRY.replace('sha256 = "', 'sha256 = "cs_secret'), "keys.0.sha256: String should match"),
        (ENTRY + "key = 1", "keys.0.key: Extra inputs"),
        (ENTRY + "sessions = -1", "keys.0.sessions: Input should be greater than or equal to 0"),
        (ENTRY + "requests = '1'", "keys.0.requests: Input should be a valid integer"),
        (ENTRY + ENTRY, "two keys have the name 'read'"),
        (ENTRY + ENTRY.replace('"read"', '"other"', 1), "two keys have the sha256"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(KeyFileError) as refusal:
        KeyRing.read(path)
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "cs_secret" not in str(refusal.value)


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"keys\.toml: No such file"):
        KeyRing.read(tmp_path / "keys.toml")


def test_a_key_file_that_everyone_can_write_is_refused(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", "read")
    path.chmod(0o622)
    with pytest.raises(KeyFileError, match="can be written by everyone; chmod o-w"):
        KeyRing.read(path)


@pytest.mark.parametrize("name", ["", "a b", "a\n", 'a"', "a" * 65])
def test_a_key_has_a_name_that_cannot_break_a_line(name: str) -> None:
    with pytest.raises(KeyFileError, match="name: String should match"):
        new_key(name, ["read"])


def test_a_key_is_random_and_only_its_digest_is_kept() -> None:
    (first, entry), (second, _) = new_key("loop", ["train"]), new_key("loop", ["train"])
    assert first != second and len(first) == len("cs_") + 43
    assert first not in entry.to_toml() and first not in repr(entry)
