"""Whatever is not finite is found, wherever it is, and named."""

import pytest
import torch
from curvserve_client.errors import NonFinite
from torch import Tensor

from curvserve.sessions.finite import check_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_value_is_enough(dtype: torch.dtype, value: float, place: int) -> None:
    tensor = torch.randn(1000).to(dtype)
    tensor[place] = value
    with pytest.raises(NonFinite, match="second is not finite") as caught:
        check_finite({"first": torch.ones(3), "second": tensor.reshape(10, 100)})
    assert caught.value.tensor == "second"
    with pytest.raises(NonFinite, match="factors"):
        check_finite({"factors": [torch.ones(2, 2), tensor]})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((3,), torch.finfo(torch.float32).max),
        torch.zeros(0, 4),
        torch.tensor(7),
        torch.tensor(-1e300, dtype=torch.float64),
        torch.randn(4, 5).T,
    ],
    ids=["largest", "empty", "whole number", "0-dim", "strided"],
)
def test_what_is_finite_passes(tensor: Tensor) -> None:
    check_finite({"tensor": tensor, "several": [tensor, tensor]})
