"""A cluster's files: one image, one version of Ray, one secret, and a server that is no worker."""

import copy
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import validator_for
from kubernetes_validate import validate
from ray.scripts.scripts import healthcheck, start

from curvserve import __version__
from tests.deployment.files import (
    COMPOSE_RAY,
    DOCKER,
    DOCKERFILE,
    OPTIONS,
    read,
    time_to_stop,
)

FILE = DOCKER / "kuberay" / "raycluster.yaml"
ALL: list[Any] = list(yaml.safe_load_all(FILE.read_text()))
NEWEST = "1.37"
(CLUSTER,) = [each for each in ALL if each["kind"] == "RayCluster"]
OTHERS = [each for each in ALL if each is not CLUSTER]
(FRONT,) = [each for each in OTHERS if each["kind"] == "Deployment"]
HEAD = CLUSTER["spec"]["headGroupSpec"]
(WORKERS,) = CLUSTER["spec"]["workerGroupSpecs"]
GROUPS = {"head": HEAD, "workers": WORKERS}
PODS = {
    "front": FRONT["spec"]["template"],
    **{name: group["template"] for name, group in GROUPS.items()},
}
CONTAINERS = {name: pod["spec"]["containers"][0] for name, pod in PODS.items()}
SERVICES = read(COMPOSE_RAY)["services"]
IMAGE = f"curvserve:{__version__}-ray"
SCHEMA = json.loads(Path(__file__).with_name("raycluster.schema.json").read_text())
VALIDATOR = validator_for(SCHEMA)(SCHEMA)
DRAINING = 30
"""Seconds in which a node of Ray that is told to stop lets go of its work."""


def version() -> str:
    """The version of Ray that the compose file builds with."""
    found = SERVICES["head"]["build"]["args"]["RAY"]
    assert isinstance(found, str)
    return found


def variables(container: dict[str, Any]) -> dict[str, Any]:
    """A container's variables: name -> value, or where it comes from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def flags(words: list[str]) -> dict[str, str]:
    """The flags among words: name -> value, which may be the next word."""
    found: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else "" if after.startswith("-") else after
    return found


def commands() -> Iterator[Any]:
    """Every command of the files that is given in words: program, flags."""
    scripts = {"compose": SERVICES["curvserve"]["command"], "kuberay": CONTAINERS["front"]["args"]}
    for place, (script,) in scripts.items():
        for part in script.split("&&"):
            yield pytest.param(shlex.split(part.replace("exec ", "")), id=f"{place}-{part[:15]}")
    for name in ("head", "worker", "worker-gpu"):
        words = [*SERVICES[name]["entrypoint"], *SERVICES[name]["command"]]
        yield pytest.param(words, id=f"compose-{name}")
    yield pytest.param(SERVICES["head"]["healthcheck"]["test"][1:], id="compose-health")


@pytest.mark.parametrize("words", list(commands()))
def test_every_flag_is_one_of_its_program(words: list[str]) -> None:
    known = {
        "ray start": {option for each in start.params for option in each.opts},
        "ray health-check": {option for each in healthcheck.params for option in each.opts},
        "curvserve serve": {
            f"--{each.removeprefix('CURVSERVE_').lower().replace('_', '-')}" for each in OPTIONS
        },
    }
    assert flags(words) and flags(words).keys() <= known[" ".join(words[:2])]


@pytest.mark.parametrize("group", GROUPS)
def test_every_parameter_of_a_node_is_a_flag_of_ray(group: str) -> None:
    given = {f"--{name}" for name in GROUPS[group]["rayStartParams"]}
    assert given <= {option for each in start.params for option in each.opts}


def test_a_cluster_has_the_fields_that_kuberay_declares() -> None:
    assert list(VALIDATOR.iter_errors(CLUSTER)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("rayversion",), "2.60.0"),
        (("headGroupSpec", "replicas"), 1),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("workerGroupSpecs", 0, "replicas"), "4"),
    ],
    ids=str,
)
def test_a_field_that_is_wrong_would_be_found(place: tuple[str | int, ...], value: Any) -> None:
    wrong = copy.deepcopy(CLUSTER)
    at = wrong["spec"]
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    assert list(VALIDATOR.iter_errors(wrong))


@pytest.mark.parametrize("kubernetes", ["1.30", NEWEST])
@pytest.mark.parametrize("group", GROUPS)
def test_a_node_is_a_pod_of_kubernetes(group: str, kubernetes: str) -> None:
    head = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": group}}
    validate({**head, "template": GROUPS[group]["template"]}, kubernetes, strict=True)


@pytest.mark.parametrize("kubernetes", ["1.30", NEWEST])
@pytest.mark.parametrize("thing", OTHERS, ids=lambda each: each["kind"])
def test_the_rest_is_of_kubernetes_too(thing: dict[str, Any], kubernetes: str) -> None:
    validate(thing, kubernetes, strict=True)


def test_every_node_has_one_image_and_one_version_of_ray() -> None:
    assert {each["image"] for each in [*CONTAINERS.values(), *SERVICES.values()]} == {IMAGE}
    assert CLUSTER["spec"]["rayVersion"] == version()
    assert re.findall(r"--build-arg RAY=(\d+\.\d+\.\d+)", FILE.read_text()) == [version()]
    assert re.findall(r"--build-arg RAY=(\d+\.\d+\.\d+)", DOCKERFILE.read_text()) == [version()]
    assert '${RAY:+"ray==${RAY}"}' in DOCKERFILE.read_text()


def test_only_who_has_the_secret_can_join() -> None:
    for name, container in CONTAINERS.items():
        found = variables(container)
        assert found["RAY_AUTH_MODE"] == "token", name
        secret = found["RAY_AUTH_TOKEN"]["secretKeyRef"]
        made = f"secret generic {secret['name']} --from-literal={secret['key']}="
        assert made in FILE.read_text()
    for name, service in SERVICES.items():
        assert service["environment"]["RAY_AUTH_MODE"] == "token", name
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert service["secrets"] == ["ray_token"]


def test_only_nodes_reach_nodes_and_anybody_the_server() -> None:
    policies = [each["spec"] for each in OTHERS if each["kind"] == "NetworkPolicy"]
    ours, front = (policy["podSelector"]["matchLabels"] for policy in policies)
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}
    assert all(ours.items() <= each.items() for each in labels.values())
    assert [name for name, each in labels.items() if front.items() <= each.items()] == ["front"]
    (inside,), (outside,) = (policy["ingress"] for policy in policies)
    assert inside == {"from": [{"podSelector": {"matchLabels": ours}}]}
    (port,) = CONTAINERS["front"]["ports"]
    assert outside == {"ports": [{"protocol": "TCP", "port": port["name"]}]}


def test_the_server_joins_the_cluster_as_a_node_that_computes_nothing() -> None:
    (gcs,) = CONTAINERS["head"]["ports"]
    head = f"{CLUSTER['metadata']['name']}-head-svc:{gcs['containerPort']}"
    scripts = {
        head: CONTAINERS["front"]["args"],
        "head:6379": SERVICES["curvserve"]["command"],
    }
    for address, (script,) in scripts.items():
        join, serve = map(flags, map(shlex.split, script.split("&&")))
        assert join == {"--address": address, "--num-cpus": "0", "--num-gpus": "0"}
        assert serve["--ray-address"] == "auto"
    assert flags(SERVICES["head"]["entrypoint"])["--port"] == "6379"
    assert flags(SERVICES["worker"]["entrypoint"])["--address"] == "head:6379"
    assert HEAD["rayStartParams"]["num-cpus"] == flags(SERVICES["head"]["command"])["--num-cpus"]
    workers = SERVICES["worker"]
    limit = workers["deploy"]["resources"]["limits"]["cpus"]
    assert flags(workers["command"])["--num-cpus"] == limit
    services = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert services == {"head": [], "worker": [], "worker-gpu": ["gpu"], "curvserve": []}


def test_a_node_is_asked_for_its_health_where_it_answers() -> None:
    for name, group in GROUPS.items():
        port = int(group["rayStartParams"]["node-manager-port"])
        for probe in ("livenessProbe", "readinessProbe"):
            assert CONTAINERS[name][probe]["grpc"] == {"port": port}


def test_everything_is_given_the_time_that_it_needs_to_stop() -> None:
    assert PODS["front"]["spec"]["terminationGracePeriodSeconds"] > time_to_stop(
        {name: each for name, each in variables(CONTAINERS["front"]).items() if "RAY" not in name}
    )
    assert all(
        group["template"]["spec"]["terminationGracePeriodSeconds"] > DRAINING
        for group in GROUPS.values()
    )


@pytest.mark.parametrize("name", PODS)
def test_a_pod_runs_as_nobody_with_nothing_to_write_but_its_own(name: str) -> None:
    pod, container = PODS[name]["spec"], CONTAINERS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounts.keys() == {each["name"] for each in pod["volumes"]} and mounts["tmp"] == "/tmp"


def test_the_servers_variables_are_options_and_one_server_owns_the_data() -> None:
    given = variables(CONTAINERS["front"])
    assert {name for name in given if name.startswith("CURVSERVE_")} <= OPTIONS
    mounts = {each["name"]: each["mountPath"] for each in CONTAINERS["front"]["volumeMounts"]}
    assert given["CURVSERVE_API_KEYS"].startswith(f"{mounts['keys']}/")
    assert (FRONT["spec"]["replicas"], FRONT["spec"]["strategy"]) == (1, {"type": "Recreate"})
    (claim,) = [each for each in OTHERS if each["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    used = {each["name"]: each for each in PODS["front"]["spec"]["volumes"]}["data"]
    assert used["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (service,) = [each for each in OTHERS if each["kind"] == "Service"]
    labels = PODS["front"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert FRONT["spec"]["selector"]["matchLabels"].items() <= labels.items()
