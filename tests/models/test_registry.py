"""Where models are found, and how a reference that leads nowhere is refused."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from curvserve.cli import app
from curvserve.models import (
    Model,
    ModelNotFound,
    ModelUnfit,
    SampleSpec,
    available,
    resolve,
    resolve_all,
)

ONE = SampleSpec(shape=(1,), dtype=torch.float32)

HERE = Model("here", lambda: nn.Linear(1, 1), nn.MSELoss, inputs=ONE, targets=ONE)

NOT_A_MODEL = 3

PACKAGE = """
from tests.models.test_registry import ONE
from curvserve.models import Model
from torch import nn

def {name}():
    return Model("{name}", lambda: nn.Linear(1, 1), nn.MSELoss, inputs=ONE, targets=ONE)
"""


def make() -> Model:
    return HERE


def fail() -> Model:
    raise KeyError("no such size")


def test_the_built_in_model_is_registered() -> None:
    assert "mnist_cnn" in available()
    assert resolve("mnist_cnn").name == "mnist_cnn"


@pytest.mark.parametrize("attribute", ["HERE", "make"])
def test_a_model_is_found_by_module_and_attribute(attribute: str) -> None:
    assert resolve(f"tests.models.test_registry:{attribute}").name == "here"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("mnist_cmm", "no model is called 'mnist_cmm'; known: .*mnist_cnn"),
        ("no.such.module:model", "cannot be imported"),
        ("tests.models.test_registry:absent", "cannot be imported"),
        (":model", "cannot be imported"),
        ("tests.models.test_registry:NOT_A_MODEL", "is a int, not a curvserve Model"),
        ("tests.server.process:ROOT.parent", "cannot be imported"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused_with_the_reason(
    reference: str, reason: str
) -> None:
    with pytest.raises(ModelNotFound, match=reason):
        resolve(reference)


def test_mnist_cnn_is_the_network_of_the_example() -> None:
    network = resolve("mnist_cnn").build()
    kinds = [type(layer).__name__ for layer in network.children()]
    convolution = ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds == [*convolution, *convolution, "Flatten", "Linear", "ReLU", "Linear"]
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert shapes[0::2] == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_accuracy_is_the_share_of_right_answers() -> None:
    accuracy = resolve("mnist_cnn").metrics["accuracy"]
    outputs = torch.eye(10)[[3, 4, 5, 6]]
    assert accuracy(outputs, torch.tensor([3, 4, 5, 0])).item() == 0.75


def test_a_factory_that_fails_is_told_with_its_reason() -> None:
    with pytest.raises(ModelUnfit, match="test_registry:fail' failed: KeyError: 'no such size'"):
        resolve("tests.models.test_registry:fail")


def test_a_module_that_is_no_python_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_written.py").write_text("def model(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelNotFound, match="cannot be imported: SyntaxError: .*half_written.py"):
        resolve("half_written:model")


def test_two_models_of_one_name_are_refused_together() -> None:
    both = ["tests.models.test_registry:HERE", "tests.models.test_registry:make"]
    assert [model.name for model in resolve_all([both[0], "mnist_cnn"])] == ["here", "mnist_cnn"]
    with pytest.raises(
        ModelNotFound, match=f"two models are called 'here': {both[0]} and {both[1]}"
    ):
        resolve_all(both)


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution that registers models into a folder on the path, as pip does."""

    def install(distribution: str, **entry_points: str) -> None:
        site = tmp_path / distribution
        metadata = site / f"{distribution}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[curvserve.models]", *lines]))
        monkeypatch.syspath_prepend(site)
        importlib.invalidate_caches()

    return install


def test_a_model_of_an_installed_package_is_found_by_name(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("theirs", installed="theirs_models:installed")
    (tmp_path / "theirs" / "theirs_models.py").write_text(PACKAGE.format(name="installed"))
    assert "installed" in available()
    assert "theirs_models" not in sys.modules  # a list imports nobody's code
    assert resolve("installed").name == "installed"
    monkeypatch.delitem(sys.modules, "theirs_models")


@pytest.mark.parametrize(
    ("entry_points", "name", "said"),
    [
        (
            {"mnist_cnn": "tests.models.test_registry:make"},
            "mnist_cnn",
            "several .*theirs, this process",
        ),
        (
            {"other": "tests.models.test_registry:make"},
            "other",
            "theirs registers 'other', .*'here'",
        ),
        ({"gone": "no.such.module:model"}, "gone", "'no.such.module:model' cannot be imported"),
    ],
)
def test_a_package_that_misleads_is_told_of(
    install: Install, entry_points: dict[str, str], name: str, said: str
) -> None:
    install("theirs", **entry_points)
    with pytest.raises(ModelNotFound, match=said):
        resolve(name)


def test_two_packages_with_one_name_are_told_together(install: Install) -> None:
    install("ours", here="tests.models.test_registry:make")
    install("theirs", here="tests.models.test_registry:make")
    with pytest.raises(ModelNotFound, match="several models are called 'here': of theirs, ours"):
        resolve("here")


def test_a_package_that_misleads_does_not_hide_the_other_models(install: Install) -> None:
    install("theirs", gone="no.such.module:model")
    done = CliRunner().invoke(app, ["models"])
    assert "gone: 'no.such.module:model' cannot be" in done.stderr
    assert "\nmnist_cnn " in done.stdout
    found = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert {"gone", "mnist_cnn"} <= {each["name"] for each in found}
