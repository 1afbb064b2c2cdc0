"""A batch that does not fit its model is refused, and the refusal names what is wrong."""

import pytest
import torch
from curvserve_client.errors import InvalidBatch
from torch import Tensor

from curvserve.models import resolve
from curvserve.models.batch import check_layout, check_values

MODEL = resolve("mnist_cnn")
LABELS = torch.arange(4) + 3


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape or (4, 1, 28, 28), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_right_batch_passes(dtype: torch.dtype) -> None:
    batch = {"inputs": images(dtype=dtype), "targets": LABELS}
    assert check_layout(MODEL, batch) == 4
    check_values(MODEL, batch)


@pytest.mark.parametrize(
    ("inputs", "targets", "at_fault", "expected"),
    [
        (images(dtype=torch.float64), LABELS, "inputs", "float32 or uint8"),
        (images(4, 28, 28), LABELS, "inputs", "[N, 1, 28, 28]"),
        (images(4, 1, 28, 27), LABELS, "inputs", "[N, 1, 28, 28]"),
        (torch.tensor(1.0), LABELS, "inputs", "[N, 1, 28, 28]"),
        (images(), LABELS.int(), "targets", "int64"),
        (images(), LABELS[:, None], "targets", "[N]"),
        (images(), LABELS[:3], "targets", "one target for each input"),
        (images(0, 1, 28, 28), LABELS[:0], "inputs", "1 to 4096"),
        (images(1).expand(4097, 1, 28, 28), LABELS[:1].expand(4097), "inputs", "1 to 4096"),
    ],
)
def test_a_wrong_layout_is_refused(
    inputs: Tensor, targets: Tensor, at_fault: str, expected: str
) -> None:
    with pytest.raises(InvalidBatch) as caught:
        check_layout(MODEL, {"inputs": inputs, "targets": targets})
    assert caught.value.tensor == at_fault
    assert expected in str(caught.value.expected)


@pytest.mark.parametrize(
    ("names", "stray"),
    [(["inputs"], "targets"), (["inputs", "labels", "targets"], "labels"), ([], "inputs")],
)
def test_a_wrong_set_of_names_is_refused(names: list[str], stray: str) -> None:
    with pytest.raises(InvalidBatch) as caught:
        check_layout(MODEL, {name: images() for name in names})
    assert caught.value.tensor == stray


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_input_that_is_not_finite_is_refused_by_sample(value: float) -> None:
    inputs = images()
    inputs[2, 0, 5, 5] = value
    with pytest.raises(InvalidBatch, match="inputs of sample 2"):
        check_values(MODEL, {"inputs": inputs, "targets": LABELS})


@pytest.mark.parametrize("label", [-1, 10, 2**62, -100])
def test_a_label_out_of_range_is_refused_by_sample(label: int) -> None:
    targets = LABELS.clone()
    targets[1] = label
    with pytest.raises(InvalidBatch, match="targets of sample 1") as caught:
        check_values(MODEL, {"inputs": images(), "targets": targets})
    assert "values from 0 to 9" in str(caught.value.expected)
