"""What the page is made of: every file is ours or named, packed, and served under one policy."""

import fnmatch
import hashlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from curvserve import dashboard
from curvserve.server.routes.page import CONTENT_SECURITY_POLICY
from tests.server.process import PATIENCE, Server

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "curvserve" / "dashboard"
FILES = ["/", "/docs", *(f"/page/{name}" for name in dashboard.contents())]
OURS = [path for path in FOLDER.rglob("*.*") if path.suffix in (".js", ".html", ".css")]


def test_what_is_vendored_is_what_its_note_says() -> None:
    note = (FOLDER / "vendor" / "VENDORED.md").read_text()
    told = dict(re.findall(r"\| `([^`]+)` \| `([0-9a-f]{64})` \|", note))
    kept = {path.name: path for path in (FOLDER / "vendor").iterdir() if path.name != "VENDORED.md"}
    assert told.keys() == kept.keys()
    for name, path in kept.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == told[name], name


def test_every_file_is_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["curvserve.dashboard"]
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    names = [str(path.relative_to(FOLDER)) for path in files if path.suffix != ".py"]
    assert [n for n in names if not any(fnmatch.fnmatchcase(n, each) for each in patterns)] == []


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_file_makes_markup_of_text_or_asks_anybody_else(path: Path) -> None:
    text = path.read_text()
    if path.parent.name != "vendor":
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.search(r" style=| on[a-z]+=\"", text)  # the policy lets none of it through
    found = re.findall(r"(?:src|href|import|from|url)\W{0,3}(https?:)?//", text)
    assert found == []


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as client:
        yield client


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_served_with_its_policy_and_kept_until_it_changes(
    caller: httpx.Client, path: str
) -> None:
    answer = caller.get(path)
    ending = path.rpartition(".")[2] if path.startswith("/page/") else "html"
    assert answer.status_code == 200
    assert answer.headers["content-type"] == dashboard.MEDIA_TYPES[ending]
    kept = caller.get(path, headers={"if-none-match": answer.headers["etag"]})
    for headers in (answer.headers, kept.headers):
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
    assert (kept.status_code, kept.content) == (304, b"")
    assert caller.get(path, headers={"if-none-match": '"other"'}).content == answer.content


def test_the_policy_lets_nothing_in_but_the_servers_own_files() -> None:
    policy = dict(part.split(" ", 1) for part in CONTENT_SECURITY_POLICY.split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"


@pytest.mark.parametrize("path", ["/page/", "/page/__init__.py", "/page/../cli.py", "/page/vendor"])
def test_nothing_else_is_served(caller: httpx.Client, path: str) -> None:
    answer = caller.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
