"""Short sequences attend by products: the same numbers, in every pass that has one backward."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine import Evaluator, evaluate, memory_format
from curvserve.engine.attention import ShortAttention
from curvserve.engine.graph import nodes

FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"


def plain(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None) -> Tensor:
    """Query by query: softmax(scale q K^T) V over the keys that it may see."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    rows = []
    for i in range(q.shape[-2]):
        seen = min(i + 1, k.shape[-2]) if causal else k.shape[-2]
        scores = factor * (k[..., :seen, :] * q[..., i : i + 1, :]).sum(-1)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        rows.append((weights.unsqueeze(-1) * v[..., :seen, :]).sum(-2))
    return torch.stack(rows, -2)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
    st.booleans(),
    st.none() | st.floats(0.1, 2),
    st.booleans(),
    st.integers(0, 1000),
)
def test_it_is_attention(
    lead: tuple[int, int],
    sizes: tuple[int, int, int, int],
    causal: bool,
    scale: float | None,
    turned: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, keys, width, values = sizes
    shapes = ((queries, width), (keys, width), (keys, values))
    tensors = [torch.randn(*lead, *s, generator=generator, dtype=torch.float64) for s in shapes]
    if turned:  # heads behind positions in memory
        tensors = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    for tensor in tensors:
        tensor.requires_grad_()
    with ShortAttention():
        found = F.scaled_dot_product_attention(*tensors, is_causal=causal, scale=scale)
    wanted = plain(*tensors, causal=causal, scale=scale)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    own, reference = (torch.autograd.grad(t, tensors, cotangent) for t in (found, wanted))
    torch.testing.assert_close(own, reference, rtol=1e-10, atol=1e-12)


def made_by(output: Tensor) -> set[str]:
    assert output.grad_fn is not None
    return {node.name() for node in nodes(output.grad_fn)}


class Attending(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 24)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = F.scaled_dot_product_attention(q, k, v, **self.options)
        return mixed.sum((1, 2))


def layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, **{"dropout": 0.0, "batch_first": True, **options})


@pytest.mark.parametrize("model", [Attending(), Attending(is_causal=True), layer(), layer().eval()])
def test_short_sequences_attend_by_products(model: nn.Module) -> None:
    x = torch.randn(3, 5, 8)
    output = memory_format.run(model, x)
    assert FUSED not in made_by(output) and "BmmBackward0" in made_by(output)
    torch.testing.assert_close(output, model(x))


@pytest.mark.parametrize(
    "model, length",
    [
        (Attending(), 65),
        (Attending(attn_mask=torch.ones(5, 5).tril().bool()), 5),
        (Attending(attn_mask=torch.zeros(5, 5)), 5),
        (layer(), 65),
    ],
)
def test_what_torch_does_better_is_left_to_it(model: nn.Module, length: int) -> None:
    assert FUSED in made_by(memory_format.run(model, torch.randn(3, length, 8)))


def test_dropout_is_torchs_own() -> None:
    model, x = layer(dropout=0.5), torch.randn(3, 5, 8)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(memory_format.run(model, x), expected)


def test_without_a_pass_backward_nothing_is_changed() -> None:
    model, x = layer().eval(), torch.randn(3, 5, 8)
    with torch.no_grad():
        assert torch.equal(memory_format.run(model, x), model(x))


def test_what_torch_compiled_is_left_as_it_is() -> None:
    model = Attending()
    whole = torch.compile(model, backend="eager")
    part = nn.Sequential(torch.compile(Attending(), backend="eager"), nn.Flatten())
    for each in (whole, part):
        assert FUSED in made_by(memory_format.run(each, torch.randn(3, 5, 8)))


@pytest.fixture(params=[Attending(is_causal=True), layer()], ids=["function", "module"])
def net(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    yield nn.Sequential(request.param, nn.Flatten(), nn.LazyLinear(4))


def test_programs_attend_alike(net: nn.Module) -> None:
    x, y = torch.randn(6, 5, 8), torch.arange(6) % 4
    net(x)
    loss, asked = nn.CrossEntropyLoss(), ["grad", "diag_ggn_mc"]
    evaluator = Evaluator(net, loss, eager_calls=1)
    for seed in range(4):
        found = evaluator(x, y, asked, seed=seed)
        eager = evaluate(net, loss, x, y, asked, seed=seed)
        for name in asked:
            for parameter, tensor in eager.quantities[name].items():
                assert torch.equal(found.quantities[name][parameter], tensor)
    assert evaluator.compiled() == 1, evaluator.refusals()
