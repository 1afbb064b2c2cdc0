"""What the tests of the HTTP face say to a server: plain httpx, the contract's own bytes."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from curvserve_client.wire import MEDIA_TYPE, decode, encode
from torch import Tensor

from curvserve.data import load_digits, normalise

COMPUTE = ("evaluate", "curvature", "step")


def digits(samples: int = 8) -> dict[str, Tensor]:
    """Return a batch as the model takes it: normalised float32 images and their labels."""
    images, labels = load_digits("train")
    return {"inputs": normalise(images[:samples]), "targets": labels[:samples]}


def body(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as a safetensors body."""
    return b"".join(encode(tensors))


def as_json(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as a JSON body."""
    return json.dumps({name: tensor.tolist() for name, tensor in tensors.items()}).encode()


def code(answer: httpx.Response) -> str:
    """Return the code of a problem document, having checked the document itself."""
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == answer.status_code
    assert problem["type"] == f"urn:curvserve:problem:{problem['code']}"
    assert problem["title"] and problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text and ".py" not in answer.text
    return str(problem["code"])


@dataclass(frozen=True)
class SessionApi:
    """One session, as plain HTTP calls.

    Attributes:
        http: the connection.
        name: the session's name.
    """

    http: httpx.Client
    name: str

    @property
    def path(self) -> str:
        """The session's path."""
        return f"/v1/sessions/{self.name}"

    def get(self, noun: str = "", **headers: str) -> httpx.Response:
        """Read the session or something of it."""
        return self.http.get(f"{self.path}/{noun}".rstrip("/"), headers=headers)

    def send(
        self,
        call: str,
        content: Any,
        *,
        media_type: str = MEDIA_TYPE,
        version: int | str = "*",
        key: str = "",
        query: Mapping[str, str] | None = None,
        accept: str = "*/*",
        without: str = "",
    ) -> httpx.Response:
        """Post (or put, for `parameters`) a body with every header that a change needs."""
        headers = {
            "content-type": media_type,
            "accept": accept,
            "if-match": f'"{version}"' if isinstance(version, int) else version,
            "idempotency-key": key or uuid.uuid4().hex,
        }
        headers.pop(without, None)
        method = "PUT" if call == "parameters" else "POST"
        path = f"{self.path}/{call}"
        return self.http.request(method, path, params=query, headers=headers, content=content)

    def state(self) -> tuple[str, int, bytes]:
        """Return version, steps and the parameters' bytes: what a refusal must leave alone."""
        answer = self.get("parameters")
        return answer.headers["etag"], self.get().json()["steps"], answer.content

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters."""
        return decode(bytearray(self.get("parameters").content))[0]


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Tell whether two sets of tensors have the same names and the same bits."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
