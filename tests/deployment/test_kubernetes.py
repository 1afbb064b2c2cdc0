"""The Kubernetes example: every field as its schema has it, and fit for the server."""

import copy
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, validate

from curvserve import __version__
from tests.deployment.files import DOCKER, OPTIONS, time_to_stop

FILE = DOCKER / "kubernetes" / "curvserve.yaml"
OBJECTS: dict[str, Any] = {each["kind"]: each for each in yaml.safe_load_all(FILE.read_text())}
POD = OBJECTS["StatefulSet"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {each["name"]: each["value"] for each in CONTAINER["env"]}
NEWEST = "1.37"


@pytest.mark.parametrize("version", ["1.30", NEWEST])
@pytest.mark.parametrize("kind", OBJECTS)
def test_every_field_is_one_of_the_schema(kind: str, version: str) -> None:
    validate(OBJECTS[kind], version, strict=True)


def test_a_field_that_is_misspelt_would_be_found() -> None:
    wrong = copy.deepcopy(OBJECTS["StatefulSet"])
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(ValidationError, match="terminationGracePeriod"):
        validate(wrong, NEWEST, strict=True)


def test_the_pod_is_given_the_time_that_it_needs_to_stop() -> None:
    assert POD["terminationGracePeriodSeconds"] > time_to_stop(ENVIRONMENT)
    probe = CONTAINER["readinessProbe"]
    notice = float(ENVIRONMENT["CURVSERVE_NOTICE_SECONDS"])
    assert notice >= probe["periodSeconds"] * probe["failureThreshold"]


def test_the_variables_are_options_and_the_services_own_are_kept_away() -> None:
    assert {name for name in ENVIRONMENT if name.startswith("CURVSERVE_")} <= OPTIONS
    assert POD["enableServiceLinks"] is False
    assert ENVIRONMENT["OMP_NUM_THREADS"] == CONTAINER["resources"]["limits"]["cpu"]


def test_names_and_labels_fit_each_other() -> None:
    labels = OBJECTS["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    assert OBJECTS["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["StatefulSet"]["spec"]["serviceName"] == OBJECTS["Service"]["metadata"]["name"]
    claims = OBJECTS["StatefulSet"]["spec"]["volumeClaimTemplates"]
    volumes = {each["name"] for each in POD["volumes"]} | {c["metadata"]["name"] for c in claims}
    mounts = {each["name"]: each["mountPath"] for each in CONTAINER["volumeMounts"]}
    assert set(mounts) == volumes and mounts["data"] == "/data"
    assert ENVIRONMENT["CURVSERVE_API_KEYS"].startswith(f"{mounts['keys']}/")
    assert CONTAINER["image"] == f"curvserve:{__version__}"


def test_it_runs_as_nobody_with_nothing_to_write_but_its_data() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["automountServiceAccountToken"] is False
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_one_server_owns_the_data() -> None:
    assert OBJECTS["StatefulSet"]["spec"]["replicas"] == 1
    (claim,) = OBJECTS["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert OBJECTS["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
