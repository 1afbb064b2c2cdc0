"""Requests at random, one after another, each answered as the pure model of the contract says."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from curvserve_client.errors import PROBLEMS
from curvserve_client.wire import MEDIA_TYPE
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.server import tiny
from tests.server.api import as_json, body, code
from tests.server.contract import Change, Content, Contract, Expected
from tests.server.process import PATIENCE, serving

JSON = "application/json"


def batches() -> list[Content]:
    other = tiny.batch() | {"targets": torch.full((4,), tiny.CLASSES)}
    return [
        Content(body(tiny.batch())),
        Content(body(tiny.batch(7, 2.0))),
        Content(as_json(tiny.batch(2)), JSON),
        Content(body(other), flaw="invalid_batch"),
        Content(body(tiny.batch())[:-1], flaw="malformed_body"),
        Content(b"", "text/plain", early="unsupported_media_type"),
    ]


def parameters() -> list[Content]:
    weight, bias = torch.eye(tiny.CLASSES), torch.ones(tiny.CLASSES)
    return [
        Content(body({"weight": weight, "bias": bias})),
        Content(body({"weight": -weight, "bias": bias})),
        Content(body({"weight": weight}), flaw="invalid_batch"),
        Content(body({"weight": weight * torch.nan, "bias": bias}), flaw="non_finite"),
    ]


def optim_steps(pending: int) -> list[Content]:
    """Steps that take the number of pending batches to be this one, another one, or any."""

    def made(document: dict[str, Any], **more: Any) -> Content:
        text = json.dumps(document).encode()
        return Content(text, JSON, pending=document.get("pending"), **more)

    return [
        made({}),
        made({"pending": pending or 1}),
        made({"pending": pending + 1}),
        made({"scales": {"weight": 0.5}, "options": {"lr": 0.1}}),
        made({"scales": {"wait": 0.5}}, flaw="invalid_request"),
        made({"options": {"lr": -1}}, flaw="invalid_rule"),
        made({"pendng": 1}, early="invalid_request"),
    ]


QUERIES = {
    "step": [("", "", ""), ("?lr=0.1", "", ""), ("?lr=-1", "", "invalid_rule"),
             ("?lr=fast", "invalid_rule", "")],
    "forward_backward": [("", "", ""), ("?accumulate=true", "", "")],
    "parameters": [("", "", "")],
    "optim_step": [("", "", "")],
}  # fmt: skip
"""Call -> queries, each with the code for which it is refused early, or in its turn."""

CALLS = st.sampled_from(["step", "step", "forward_backward", "optim_step", "parameters"])
VERSIONS = st.sampled_from(["current", "current", "*", "stale", "absent"])
KEYS = st.sampled_from(["new", "new", "new", "absent"])
NAMES = st.sampled_from(["a", "b", "c"])
CHECKPOINTS = st.sampled_from(["first", "second"])

_runs = itertools.count()


class ContractMachine(RuleBasedStateMachine):
    """Sends requests and compares."""

    http: httpx.Client

    def __init__(self) -> None:
        super().__init__()
        self.run = next(_runs)
        self.contract = Contract()
        self.keys = itertools.count()
        self.sent: list[Change] = []
        self.read_before: dict[tuple[str, int], bytes] = {}
        self.touched: set[str] = set()

    def name(self, letter: str) -> str:
        """A session's name in this run: runs share the server."""
        return f"{letter}-{self.run}"

    def path(self, name: str) -> str:
        self.touched.add(name)
        return f"/v1/sessions/{name}"

    @initialize()
    def begin(self) -> None:
        self.create("a", "tiny", 0)

    @rule(letter=NAMES, model=st.sampled_from(["tiny", "tiny", "huge"]), seed=st.integers(0, 1))
    def create(self, letter: str, model: str, seed: int) -> None:
        name = self.name(letter)
        expected = self.contract.create(name, model, "tiny")
        document = {"model": model, "name": name, "seed": seed}
        self.check(self.http.post("/v1/sessions", json=document), expected, 201)
        self.touched.add(name)

    @rule(letter=NAMES, source=NAMES, checkpoint=CHECKPOINTS)
    def create_from_a_checkpoint(self, letter: str, source: str, checkpoint: str) -> None:
        name, origin = self.name(letter), self.name(source)
        expected = self.contract.create_from(name, origin, checkpoint)
        document = {"model": "tiny", "name": name, "from_checkpoint": f"{origin}/{checkpoint}"}
        self.check(self.http.post("/v1/sessions", json=document), expected, 201)
        if not expected.code:
            kept = self.read_before[origin, self.contract.sessions[name].version]
            self.read_before[name, self.contract.sessions[name].version] = kept
        self.touched.add(name)

    @rule(letter=NAMES, call=CALLS, version=VERSIONS, key=KEYS, data=st.data())
    def change(self, letter: str, call: Any, version: str, key: str, data: st.DataObject) -> None:
        name = self.name(letter)
        current = self.current(name)
        given = {"current": current, "*": "*", "stale": current + 1, "absent": None}[version]
        idempotency_key = None if key == "absent" else f"key-{next(self.keys)}"
        request = Change(name, call, self.content(name, call, data), idempotency_key, given)
        self.send(request)
        if request.key is not None:
            self.sent.append(request)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """What was made is answered again, what was refused is looked at anew."""
        self.send(data.draw(st.sampled_from(self.sent), "request"))

    @precondition(lambda self: self.sent)
    @rule(call=CALLS, data=st.data())
    def reuse_a_key(self, call: Any, data: st.DataObject) -> None:
        before = data.draw(st.sampled_from(self.sent), "request")
        content = self.content(before.session, call, data)
        self.send(Change(before.session, call, content, before.key, "*"))

    @rule(letter=NAMES, call=st.sampled_from(["evaluate", "curvature"]), version=VERSIONS)
    def read(self, letter: str, call: str, version: str) -> None:
        name = self.name(letter)
        current = self.current(name)
        given = {"current": current, "stale": current + 1}.get(version)
        headers = {"content-type": MEDIA_TYPE}
        if given is not None and call == "curvature":
            headers["if-match"] = f'"{given}"'
        expected = self.contract.read(name, given if call == "curvature" else None)
        content = body(tiny.batch())
        answer = self.http.post(f"{self.path(name)}/{call}", content=content, headers=headers)
        self.check(answer, expected)

    @rule(letter=NAMES, checkpoint=CHECKPOINTS, rule_state=st.booleans())
    def checkpoint(self, letter: str, checkpoint: str, rule_state: bool) -> None:
        name = self.name(letter)
        expected = self.contract.checkpoint(name, checkpoint, rule_state)
        document = {"name": checkpoint, "rule_state": rule_state}
        answer = self.http.post(f"{self.path(name)}/checkpoints", json=document)
        self.check(answer, expected, 201)
        if not expected.code:
            again = self.http.get(answer.headers["location"])
            assert len(again.content) == answer.json()["size"]

    @rule(letter=NAMES)
    def list_checkpoints(self, letter: str) -> None:
        name = self.name(letter)
        answer = self.http.get(f"{self.path(name)}/checkpoints")
        self.check(answer, self.contract.read(name))
        if answer.is_success:
            told = {each["name"]: each["version"] for each in answer.json()["checkpoints"]}
            kept = self.contract.sessions[name].checkpoints
            assert told == {each: found.version for each, found in kept.items()}

    @rule(letter=NAMES, after=st.integers(-1, 3))
    def history(self, letter: str, after: int) -> None:
        name = self.name(letter)
        answer = self.http.get(f"{self.path(name)}/history?after={after}")
        self.check(answer, self.contract.read(name))
        if answer.is_success:
            told = [step["version"] for step in answer.json()["steps"]]
            assert told == [each for each in self.contract.sessions[name].history if each > after]

    @rule(letter=st.sampled_from(["b", "c"]))
    def delete(self, letter: str) -> None:
        name = self.name(letter)
        expected = self.contract.delete(name)
        self.check(self.http.delete(self.path(name)), expected, 204)
        self.read_before = {
            place: found for place, found in self.read_before.items() if place[0] != name
        }
        self.sent = [request for request in self.sent if request.session != name]

    @invariant()
    def every_session_is_as_the_contract_has_it(self) -> None:
        listed = self.http.get("/v1/sessions").json()["sessions"]
        told = {each["name"]: each for each in listed if each["name"].endswith(f"-{self.run}")}
        assert told.keys() == self.contract.sessions.keys()
        for name, session in self.contract.sessions.items():
            found = told[name]
            assert found["version"] == found["durable_version"] == session.version
            assert (found["steps"], found["pending"]) == (session.steps, session.pending)

    @invariant()
    def a_version_always_has_the_same_parameters(self) -> None:
        for name in self.touched & self.contract.sessions.keys():
            version = self.contract.sessions[name].version
            answer = self.http.get(f"/v1/sessions/{name}/parameters")
            self.check(answer, Expected("", version))
            assert answer.content == self.read_before.setdefault((name, version), answer.content)
            seen = self.http.get(answer.url, headers={"if-none-match": answer.headers["etag"]})
            assert (seen.status_code, seen.content) == (304, b"")
        self.touched.clear()

    def teardown(self) -> None:
        for name in self.contract.sessions:
            self.http.delete(f"/v1/sessions/{name}")

    def current(self, name: str) -> int:
        session = self.contract.sessions.get(name)
        return session.version if session else 0

    def content(self, name: str, call: str, data: st.DataObject) -> Content:
        session = self.contract.sessions.get(name)
        kinds = {
            "parameters": parameters,
            "optim_step": lambda: optim_steps(session.pending if session else 0),
        }
        chosen = data.draw(st.sampled_from(kinds.get(call, batches)()), "content")
        query, early, flaw = data.draw(st.sampled_from(QUERIES[call]), "query")
        return Content(
            chosen.body,
            chosen.media_type,
            query,
            early=early or chosen.early,
            flaw=flaw or chosen.flaw,
            pending=chosen.pending,
        )

    def send(self, request: Change) -> None:
        """Send a change, and check its answer, the first or a repeated one."""
        expected = self.contract.change(request)
        method = "PUT" if request.call == "parameters" else "POST"
        url = f"{self.path(request.session)}/{request.call}{request.content.query}"
        headers = {"content-type": request.content.media_type}
        if request.key is not None:
            headers["idempotency-key"] = request.key
        if request.version is not None:
            headers["if-match"] = "*" if request.version == "*" else f'"{request.version}"'
        answer = self.http.request(method, url, content=request.content.body, headers=headers)
        self.check(answer, expected)
        if expected.code:
            return
        told = {name: value for name, value in answer.json().items() if name != "durable_version"}
        assert request.key is not None
        if expected.before is None:
            self.contract.sessions[request.session].answered[request.key].told = told
        else:
            assert told == expected.before.told
        assert answer.json()["durable_version"] == self.current(request.session)

    def check(self, answer: httpx.Response, expected: Expected, status: int = 200) -> None:
        """Compare an answer's status, code and ETag."""
        told = "" if answer.is_success else code(answer)
        assert told == expected.code, answer.text
        assert answer.status_code == (PROBLEMS[told].status if told else status)
        tag = None if expected.version is None else f'"{expected.version}"'
        assert answer.headers.get("etag") == tag


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server that keeps every step and takes a snapshot at every third."""
    folder: Path = tmp_path_factory.mktemp("contract")
    options = ("--data-dir", str(folder), "--durability", "process", "--snapshot-every", "3")
    with (
        serving("--model", tiny.REFERENCE, "--log-level", "error", *options) as server,
        httpx.Client(base_url=server.address, timeout=PATIENCE) as client,
    ):
        yield client


def test_the_server_keeps_the_contract(http: httpx.Client) -> None:
    class Machine(ContractMachine):
        pass

    Machine.http = http
    examples = settings.default.max_examples // 4
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None)
    )
