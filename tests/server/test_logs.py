"""Logs: one line a request, failures in full, and nothing that a caller could forge."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curvserve.server.logs import Console, JsonLines
from tests.server.api import SessionApi, body, code, digits
from tests.server.process import Server, serving

BATCH = {"inputs": torch.ones(3, 2), "targets": torch.zeros(3, 1)}
STEP = "/v1/sessions/{name}/step"


@pytest.fixture(scope="module")
def json_log() -> Iterator[Server]:
    with logging_server("json") as server:
        yield server


@pytest.fixture(scope="module")
def console_log() -> Iterator[Server]:
    with logging_server("console") as server:
        yield server


def logging_server(kind: str) -> AbstractContextManager[Server]:
    """A server of a model that works and one that fails, whose log is read."""
    models = ["--model", "mnist_cnn", "--model", "tests.server.broken:model"]
    return serving(*models, "--log-format", kind, log=True)


def lines_until(server: Server, request_id: str) -> list[str]:
    """The lines of log up to the first of a request."""
    assert server.log is not None
    lines = [""]
    while request_id not in lines[-1]:
        lines.append(server.log.readline().rstrip("\n"))
    return lines


@pytest.mark.parametrize("kind", ["json", "console"])
def test_a_failure_is_told_in_full_in_the_log_and_not_to_the_caller(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(f"{kind}_log")
    with httpx.Client(base_url=server.address) as http:
        answer = SessionApi(http, "broken").send("step", body(BATCH))
        http.get("/v1/models", headers={"x-request-id": "afterwards"})  # on another connection
    assert (answer.status_code, code(answer)) == (500, "internal")
    assert "total;dur=" in answer.headers["server-timing"]
    assert "wires" not in answer.text
    lines = lines_until(server, "afterwards")
    records = [line for line in lines if answer.headers["x-request-id"] in line]
    assert len(records) == 2  # the request, and why it failed
    access = next(line for line in records if "curvserve.access" in line)
    assert f"POST {STEP} 500" in access and "internal" in access and "error" in access
    text = "\n".join(lines)
    assert "Traceback" in text and "wires crossed" in text
    assert not [line for line in lines if line.startswith("2026-01-01")]
    assert "\x1b" not in text


def test_a_json_line_has_what_the_request_was(json_log: Server) -> None:
    with httpx.Client(base_url=json_log.address) as http:
        content = body(digits())
        answer = SessionApi(http, "mnist_cnn").send("step", content)
    request_id = answer.headers["x-request-id"]
    line = json.loads(json_log.logged(request_id))
    assert line["time"].endswith("+00:00")
    assert (line["level"], line["logger"]) == ("info", "curvserve.access")
    assert line["request_id"] == request_id
    assert (line["method"], line["route"], line["status"]) == ("POST", STEP, 200)
    assert (line["session"], line["received_bytes"]) == ("mnist_cnn", len(content))
    assert line["sent_bytes"] == len(answer.content)
    assert line["total_ms"] >= line["decode_ms"] > 0
    assert "key" not in line and "code" not in line


def test_probes_are_no_news_and_a_strange_path_is_one_line(console_log: Server) -> None:
    with httpx.Client(base_url=console_log.address) as http:
        http.get("/livez", headers={"x-request-id": "probe"})
        path = "/nowhere%0A2026-01-01T00:00:00%20error%20forged"
        http.get(path, headers={"x-request-id": "strange"})
    lines = lines_until(console_log, "strange")
    assert "GET unmatched 404" in lines[-1] and "code=not_found" in lines[-1]
    assert r'path="/nowhere\n2026-01-01T00:00:00 error forged"' in lines[-1]
    assert not [line for line in lines if "probe" in line]


def test_at_level_warning_a_server_is_silent() -> None:
    with serving("--log-level", "warning", log=True) as server:
        httpx.get(f"{server.address}/v1/models")
        server.process.terminate()
        assert server.log is not None and server.log.read() == ""


def formatted(formatter: logging.Formatter, message: str, fields: dict[str, str]) -> str:
    record = logging.LogRecord("curvserve.x", logging.INFO, __file__, 1, message, (), None)
    record.fields = fields
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.handle(record)
    return stream.getvalue()


@given(message=st.text(), value=st.text())
def test_no_text_makes_two_lines(message: str, value: str) -> None:
    line = formatted(Console(), message, {"path": value})
    assert line.endswith("\n") and len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", line)
    line = formatted(JsonLines(), message, {"path": value})
    assert line.isascii() and len(line.splitlines()) == 1
    assert json.loads(line)["message"] == message.strip()
    assert json.loads(line)["path"] == value


def test_importing_configures_no_logging() -> None:
    program = (
        "import logging, curvserve.cli, curvserve.server.run, curvserve.server.logs\n"
        "print(logging.root.handlers, logging.getLogger('curvserve').handlers)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[] []\n"
