"""Requests made from the server's own OpenAPI document, right and wrong, by schemathesis.

Each answer must be one that the document has: its status, its content type, its headers and its
schema, and never a failure of the server. What the document promises is in it; which numbers a
model takes is not, so a request that fits the document may still be refused.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from curvserve_client.wire import MEDIA_TYPE
from hypothesis import HealthCheck, given, settings
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from curvserve.server.route_table import SCOPES
from tests.server import tiny
from tests.server.documented import paths
from tests.server.process import PATIENCE, serving

ENDLESS = "GET /v1/events"
"""Its answer has no end; tests/server/test_events.py reads it."""

EXISTING = {"name": "tiny", "checkpoint": "kept", "model": "tiny"}
"""Path parameter -> something that there is."""

ELSEWHERE = {
    "delete /v1/sessions/{name}": {"name": "doomed"},
    "post /v1/sessions/{name}/checkpoints": {"name": "filled"},
}
"""Calls that would take away or add what others are to find."""

AIMS = {"tiny", "kept", "doomed", "filled", "nothing"}
"""What paths are aimed at; by any other name a session may have been made meanwhile."""

load_all_checks()
ACCEPTANCE, REJECTION = CHECKS.get_by_names(["positive_data_acceptance", "negative_data_rejection"])


@schemathesis.serializer(MEDIA_TYPE)
def as_bytes(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """Safetensors of a value that is none: whatever bytes there are."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def api() -> Iterator[BaseSchema]:
    """The document of a server that has a session with a checkpoint, and one to be ended."""
    with serving("--model", tiny.REFERENCE, "--log-level", "error") as server:
        with httpx.Client(base_url=server.address, timeout=PATIENCE) as http:
            http.post("/v1/sessions/tiny/checkpoints", json={"name": "kept"}).raise_for_status()
            for name in ("doomed", "filled"):
                http.post("/v1/sessions", json={"model": "tiny", "name": name}).raise_for_status()
            document = http.get("/openapi.json").json()
        aim(document)
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=server.address)
        # of what is wrong twice, the version is told before the body is read
        refusals = schema.config.checks.negative_data_rejection
        refusals.expected_statuses = [*refusals.expected_statuses, "412"]
        yield schema


def aim(document: dict[str, Any]) -> None:
    """Have paths and wishes name what there is, often enough that more than their 404 is seen."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation.pop("security", None)  # tests/server/test_access.py asks for keys
            there = EXISTING | ELSEWHERE.get(f"{method} {path}", {})
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["schema"]["enum"] = [there[parameter["name"]], "nothing"]
    create = document["paths"]["/v1/sessions"]["post"]["requestBody"]["content"]
    create["application/json"]["schema"]["properties"]["model"]["enum"] = ["tiny", "nothing"]


def wrong(call: str) -> bool:
    """Tell whether a request can be wrong at all: it has a parameter, or a body."""
    method, path = call.split()
    return bool(paths()[path][method.lower()].keys() & {"parameters", "requestBody"})


PAGES = {"GET /openapi.json", "GET /", "GET /docs", "GET /page/{path:path}"}
"""They are not in the document."""

CALLS = sorted(SCOPES.keys() - {ENDLESS} - PAGES)
RIGHT = [(call, GenerationMode.POSITIVE) for call in CALLS]
WRONG = [(call, GenerationMode.NEGATIVE) for call in CALLS if wrong(call)]


@pytest.mark.parametrize(("call", "mode"), RIGHT + WRONG)
def test_every_answer_is_one_that_the_document_has(
    api: BaseSchema, call: str, mode: GenerationMode
) -> None:
    method, path = call.split()

    @settings(
        max_examples=settings.default.max_examples // 10,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(api[path][method].as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        astray = set(case.path_parameters.values()) - AIMS
        excluded = [ACCEPTANCE, REJECTION] if astray else [ACCEPTANCE]
        case.call_and_validate(excluded_checks=excluded, timeout=PATIENCE)

    check()
