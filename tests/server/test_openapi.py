"""The OpenAPI document: every problem of every call, and the key that it needs."""

import json
import re

import httpx
import pytest
from curvserve_client.errors import PROBLEMS

from curvserve.server.openapi import problems
from curvserve.server.route_table import OPEN, SCOPES
from tests.server.documented import check_documented, codes, paths

OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, operations in paths().items()
    for method, operation in operations.items()
}
CALLS = pytest.mark.parametrize("call", OPERATIONS)


@CALLS
def test_a_call_names_every_status_with_its_codes(call: str) -> None:
    for status, response in OPERATIONS[call]["responses"].items():
        assert response["description"]
        if int(status) >= 400:
            assert codes(response) and {PROBLEMS[each].status for each in codes(response)} == {
                int(status)
            }


@CALLS
def test_a_call_says_which_key_it_needs(call: str) -> None:
    operation, scope = OPERATIONS[call], SCOPES[call]
    if scope is OPEN:
        assert "security" not in operation and "401" not in operation["responses"]
    else:
        assert operation["security"] == [{"api_key": [str(scope)]}]
        assert codes(operation["responses"]["401"]) == ["unauthorized"]
        assert codes(operation["responses"]["403"]) == ["forbidden"]


def test_what_is_served_is_whole(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in json.dumps(document)

    found = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert "components/schemas/Problem" in found
    for reference in found:
        place = document
        for name in reference.split("/"):
            place = place[name]


def test_a_problem_has_the_members_that_are_documented(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()["components"]["schemas"]["Problem"]
    problem = http.get("/v1/sessions/nobody").json()
    assert set(schema["required"]) <= problem.keys() <= schema["properties"].keys()
    assert schema["properties"]["code"]["enum"] == list(PROBLEMS)


def test_a_code_that_is_not_in_the_table_cannot_be_documented() -> None:
    with pytest.raises(KeyError):
        problems("teapot")


def test_an_answer_that_is_not_documented_fails_the_test_that_got_it() -> None:
    request = httpx.Request("GET", "http://curvserve/v1/models/x")
    stray = httpx.Response(404, json={"code": "unknown_session"}, request=request)
    stray.headers["content-type"] = "application/problem+json"
    with pytest.raises(AssertionError, match="does not document unknown_session"):
        check_documented(stray)
