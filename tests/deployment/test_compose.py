"""The compose files: every field as the specification has it, every file and variable there."""

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema.validators import validator_for

from curvserve import __version__
from tests.deployment.files import (
    COMPOSE,
    COMPOSE_CPU,
    COMPOSE_RAY,
    DOCKER,
    DOCKERFILE,
    OPTIONS,
    read,
    seconds,
    time_to_stop,
)
from tests.server.process import ROOT

FILES = [COMPOSE, COMPOSE_CPU, COMPOSE_RAY]
SERVICES = [
    pytest.param(path, name, id=f"{path.name}-{name}")
    for path in FILES
    for name in read(path)["services"]
]
SCHEMA = get_builtin_schema("vendor.compose-spec")
VALIDATOR = validator_for(SCHEMA)(SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_field_is_one_of_the_specification(path: Path) -> None:
    assert list(VALIDATOR.iter_errors(read(path))) == []


@pytest.mark.parametrize(
    "place",
    [("restrat",), ("healthcheck", "intervall"), ("deploy", "resources", "reservation")],
    ids="-".join,
)
def test_a_field_that_is_misspelt_would_be_found(place: tuple[str, ...]) -> None:
    document = copy.deepcopy(read(COMPOSE))
    at = document["services"]["curvserve"]
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = "1"
    assert list(VALIDATOR.iter_errors(document))


@pytest.mark.parametrize(("path", "name"), SERVICES)
def test_what_a_service_refers_to_is_there(path: Path, name: str) -> None:
    document = read(path)
    service = document["services"][name]
    if "build" in service:
        build = service["build"]
        assert (path.parent / build["context"]).resolve() == ROOT
        assert ROOT / build["dockerfile"] == DOCKERFILE
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source in document["volumes"] or (DOCKER / source).exists()
    assert set(service.get("secrets", [])) <= set(document.get("secrets", {}))
    assert set(service.get("depends_on", [])) <= set(document["services"])
    environment = service.get("environment", {})
    assert {each for each in environment if each.startswith("CURVSERVE_")} <= OPTIONS
    for value in environment.values():
        secret = value.removeprefix("/run/secrets/")
        assert value == secret or secret in service["secrets"]


@pytest.mark.parametrize(("path", "name"), SERVICES)
def test_a_service_is_bounded_and_starts_again(path: Path, name: str) -> None:
    service = read(path)["services"][name]
    assert service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    tag = service["image"].rpartition(":")[2]
    assert any(letter.isdigit() for letter in tag) and "latest" not in tag
    public = [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")]
    assert public == (["80:8080", "443:8443"] if name == "proxy" else [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_server_is_given_the_time_that_it_needs_to_stop(path: Path) -> None:
    server = read(path)["services"]["curvserve"]
    assert seconds(server["stop_grace_period"]) > time_to_stop(server["environment"])
    assert server["image"].startswith(f"curvserve:{__version__}")
    assert server["volumes"] == ["data:/data"] and server["read_only"] is True


def test_the_server_has_a_gpu_of_its_own_and_asks_for_keys() -> None:
    server = read(COMPOSE)["services"]["curvserve"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert server["environment"]["CURVSERVE_API_KEYS"] == "/run/secrets/api_keys"
    assert "CURVSERVE_INSECURE" not in server["environment"]


def test_what_is_beside_the_server_is_started_only_by_its_profile() -> None:
    services = read(COMPOSE)["services"]
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    assert profiles == {
        "curvserve": [], "proxy": ["tls"], "prometheus": ["metrics"], "grafana": ["metrics"],
    }  # fmt: skip


def test_no_secret_is_in_a_file_of_the_repository() -> None:
    secrets = read(COMPOSE)["secrets"] | read(COMPOSE_RAY)["secrets"]
    files = [secret["file"] for secret in secrets.values()]
    assert all(file.startswith("./secrets/") for file in files)
    command = ["git", "check-ignore", *(f"docker/{file}" for file in files)]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert len(ignored.stdout.splitlines()) == len(files)


def test_a_variable_that_nobody_reads_would_be_found() -> None:
    document: Any = read(COMPOSE_CPU)["services"]["curvserve"]["environment"]
    assert "CURVSERVE_DEVICES" not in OPTIONS and set(document) <= OPTIONS
