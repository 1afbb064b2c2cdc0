"""Initial parameters from a file: exact, and nothing else than the model's own."""

from pathlib import Path

import pytest
import torch
from curvserve_client.wire import encode
from torch import Tensor, nn

from curvserve.models import (
    Model,
    ModelError,
    ModelNotFound,
    ModelUnfit,
    all_with_weights,
    check,
    with_weights,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2))


def named(name: str) -> Model:
    return Model.infer(name, network, nn.CrossEntropyLoss, torch.zeros(1, 3))


MODEL = named("small")
STATE = {
    name: tensor + 1 if name.endswith("tracked") else torch.rand_like(tensor) + 1
    for name, tensor in network().state_dict().items()
}


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.write_bytes(b"".join(encode(tensors)))
    return path


def test_a_network_begins_with_the_files_parameters_and_buffers(tmp_path: Path) -> None:
    file = write(tmp_path / "w.safetensors", STATE)
    model = with_weights(MODEL, file)
    file.unlink()  # it has been read
    for _ in range(2):
        built = model.build()
        own = built.state_dict()
        assert own.keys() == STATE.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in STATE.items())
        with torch.no_grad():
            built[0].weight.zero_()  # type: ignore[operator, union-attr]  # a layer
    check(model)


def changed(name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    others = {key: value for key, value in STATE.items() if key != name}
    return others if tensor is None else others | {name: tensor}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (changed("0.bias", None), "no 0.bias$"),
        (changed("1.running_var", None), "no 1.running_var$"),
        (changed("head.weight", torch.zeros(2)), "head.weight unknown$"),
        (changed("2.bias", torch.zeros(3)), r"2.bias is float32 \[3\], expected float32 \[2\]$"),
        (changed("2.bias", torch.zeros(2).half()), r"2.bias is float16 \[2\], expected float32"),
        (changed("2.bias", torch.tensor([1, torch.nan])), "2.bias is not finite$"),
        ({}, "no 0.weight; no 0.bias; no 1.weight; no 1.bias; 5 more$"),
    ],
)
def test_other_tensors_are_told_by_name(
    tmp_path: Path, tensors: dict[str, Tensor], said: str
) -> None:
    model = with_weights(MODEL, write(tmp_path / "w.safetensors", tensors))
    with pytest.raises(ModelUnfit, match=f"are not those of 'small': {said}"):
        check(model)


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), (b"PK", "8 bytes|short")])
def test_a_file_that_holds_no_tensors_is_told(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "w.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        ModelUnfit, match=f"cannot read the weights of 'small' in {file}: .*({said})"
    ):
        with_weights(MODEL, file)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.words.weight


def test_one_name_of_tied_tensors_is_enough(tmp_path: Path) -> None:
    tied = Model("tied", Tied, nn.CrossEntropyLoss, MODEL.inputs, MODEL.targets)
    table = torch.rand(5, 3)
    model = with_weights(tied, write(tmp_path / "w.safetensors", {"words.weight": table}))
    assert torch.equal(model.build().state_dict()["head.weight"], table)


def test_files_are_for_models_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "w.safetensors", STATE)
    models = [MODEL, named("other")]
    first, second = all_with_weights(models, [f"other={file}"])
    assert first is MODEL and torch.equal(second.build().state_dict()["0.bias"], STATE["0.bias"])
    (alone,) = all_with_weights([MODEL], [str(file)])
    assert torch.equal(alone.build().state_dict()["0.bias"], STATE["0.bias"])


@pytest.mark.parametrize(
    ("choices", "kind", "said"),
    [
        (["w.safetensors"], ModelNotFound, "expected MODEL=FILE, MODEL of small, other"),
        (["third=w.safetensors"], ModelNotFound, "expected MODEL=FILE"),
        (["other=absent"], ModelUnfit, "No such file"),
    ],
)
def test_a_file_for_no_model_is_told(choices: list[str], kind: type[ModelError], said: str) -> None:
    with pytest.raises(kind, match=said):
        all_with_weights([MODEL, named("other")], choices)


def test_two_files_for_a_model_are_told(tmp_path: Path) -> None:
    file = write(tmp_path / "w.safetensors", STATE)
    with pytest.raises(ModelNotFound, match="the weights of 'small' are given twice"):
        all_with_weights([MODEL], [str(file), f"small={file}"])
