"""KFAC, KFLR and EKFAC: factors from plain loops over samples and positions, and the peer's."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine import backpack, evaluate, extend
from curvserve.engine.errors import UncoveredParameterError
from curvserve.engine.extensions import EKFAC, KFAC, KFLR, SqrtGGNExact, SqrtGGNMC
from tests.engine import reference
from tests.engine.test_quantities import collected, run
from tests.engine.zoo import Case, Wrapped, classes, make


def tokens() -> Case:
    """A linear layer that a sample's five tokens share, and one without."""
    torch.manual_seed(0)
    model = Wrapped(
        lambda m, x: m.head(m.body(x).tanh().mean(1)), body=nn.Linear(6, 3), head=nn.Linear(3, 4)
    ).double()
    return Case(model, torch.randn(4, 5, 6).double(), classes(4), nn.CrossEntropyLoss())


def inputs_and_cotangents(case: Case) -> list[tuple[Tensor, Tensor]]:
    """For each column of the loss's factor, of ``body``: ``[N, T, K]`` and ``[N, T, O]``."""
    seen: list[Tensor] = []
    handle = case.model.body.register_forward_hook(lambda m, a, y: seen.extend((a[0], y)))
    outputs = case.model(case.inputs)
    handle.remove()
    probabilities = outputs.detach().softmax(1)
    found = []
    for v in range(outputs.shape[1]):
        unit = F.one_hot(torch.tensor(v), outputs.shape[1])
        column = probabilities[:, v : v + 1].sqrt() * (unit - probabilities) / len(outputs) ** 0.5
        (s,) = torch.autograd.grad(outputs, seen[1], column, retain_graph=True)
        found.append((seen[0], s))
    return found


@pytest.mark.parametrize("sharing", [None, "expand", "reduce"])
def test_factors_of_a_layer_with_extra_axes(sharing: str | None) -> None:
    case = tokens()
    run(case, KFLR(sharing))
    found = case.model.body.weight.kflr
    b, a = torch.zeros(3, 3).double(), torch.zeros(6, 6).double()
    for v, (inputs, cotangents) in enumerate(inputs_and_cotangents(case)):
        for x, s in zip(inputs, cotangents, strict=True):
            positions = range(len(s))
            if sharing == "expand":
                b += sum(torch.outer(s[t], s[t]) for t in positions)
            else:
                b += torch.outer(s.sum(0), s.sum(0))
            if v == 0 and sharing == "reduce":
                a += torch.outer(x.mean(0), x.mean(0)) / len(inputs)
            elif v == 0:
                share = len(x) if sharing == "expand" else 1
                a += sum(torch.outer(x[t], x[t]) for t in positions) / len(inputs) / share
    torch.testing.assert_close(found[0], b, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[1], a, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sharing", [None, "expand", "reduce"])
def test_without_extra_axes_all_ways_agree(sharing: str | None) -> None:
    case = make("mlp")
    run(case, KFLR())
    plain = {k: [f.clone() for f in v] for k, v in collected(case, "kflr").items()}
    run(case, KFLR(sharing))
    for key, factors in collected(case, "kflr").items():
        for found, expected in zip(factors, plain[key], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_vectors_have_their_whole_block() -> None:
    case = make("seed_cnn")
    run(case, KFLR())
    blocks = reference.ggn_blocks(case.model, case.loss, case.inputs, case.targets)
    for key, factors in collected(case, "kflr").items():
        if len(factors) == 1:
            torch.testing.assert_close(factors[0], blocks[key], rtol=1e-11, atol=1e-14)


def test_one_sample_without_extra_axes_has_an_exact_block() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    case = Case(model, torch.randn(1, 5).double(), classes(1, 3), nn.CrossEntropyLoss())
    run(case, KFLR())
    blocks = reference.ggn_blocks(case.model, case.loss, case.inputs, case.targets)
    for key in ("0.weight", "2.weight"):
        b, a = collected(case, "kflr")[key]
        torch.testing.assert_close(torch.kron(b, a), blocks[key], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("make_case", [tokens, lambda: make("seed_cnn")])
def test_the_eigenbasis_carries_the_diagonal_of_the_sampled_matrix(make_case: object) -> None:
    case = make_case()
    torch.manual_seed(3)
    run(case, EKFAC(2))
    torch.manual_seed(3)
    run(case, SqrtGGNMC(2))
    torch.manual_seed(3)
    run(case, KFAC(2))
    for key, p in reference.trained(case.model).items():
        root = collected(case, "sqrt_ggn_mc")[key].flatten(0, 1).flatten(1)
        block, found = root.T @ root, p.ekfac
        basis = found[0] if len(found) == 2 else torch.kron(found[0], found[1])
        values = (basis.T @ block @ basis).diagonal()
        torch.testing.assert_close(found[-1].flatten(), values, rtol=1e-9, atol=1e-13)
        identity = torch.eye(len(basis), dtype=torch.float64)
        torch.testing.assert_close(basis.T @ basis, identity, rtol=1e-10, atol=1e-10)
        kfac = p.kfac[0] if len(p.kfac) == 1 else torch.kron(*p.kfac)
        ekfac = basis @ found[-1].flatten().diag() @ basis.T
        assert float((ekfac - block).norm()) <= float((kfac - block).norm()) + 1e-12


def test_many_draws_tend_to_the_exact_factors() -> None:
    case = make("mlp")
    run(case, KFLR())
    torch.manual_seed(0)
    run(case, KFAC(4000))
    for key, exact in collected(case, "kflr").items():
        sampled = collected(case, "kfac")[key]
        assert float((sampled[0] - exact[0]).norm() / exact[0].norm()) < 0.1


@pytest.mark.parametrize("name", ["kfac", "kflr", "ekfac"])
def test_parts_of_a_batch_make_the_whole(name: str) -> None:
    case = make("seed_cnn")
    arguments = (case.model, case.loss, case.inputs, case.targets, [name])
    whole = evaluate(*arguments, seed=2, mc_samples=2).quantities[name]
    parts = evaluate(*arguments, seed=2, mc_samples=2, chunk=3).quantities[name]
    for key, factors in whole.items():
        found = parts[key]
        if name == "ekfac":  # eigenvectors have no sign
            factors, found = [factors[-1]], [found[-1]]
        for first, second in zip(found, factors, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-12)


def test_a_weight_used_twice_has_more_positions() -> None:
    case = make("same_linear_twice")
    run(case, KFLR("expand"))
    shared = case.model[0].weight
    assert [tuple(f.shape) for f in shared.kflr] == [(6, 6), (6, 6)]


@pytest.mark.parametrize("name", ["recurrent", "language_model", "embedding_with_padding"])
def test_a_weight_that_is_no_matrix_of_a_layer(name: str) -> None:
    case = make(name)
    with pytest.raises(UncoveredParameterError, match="KFAC has no Kronecker factors"):
        run(case, KFAC())
    assert all(not hasattr(p, "kfac") for p in case.model.parameters())


@pytest.mark.parametrize("kind", [KFAC, KFLR, EKFAC])
def test_a_way_of_sharing_that_is_none(kind: type) -> None:
    with pytest.raises(ValueError, match="sharing must be one of"):
        kind(sharing="both")


def test_factors_are_of_one_loss() -> None:
    model, loss = extend(nn.Linear(3, 2)), extend(nn.CrossEntropyLoss())
    x, y = torch.randn(4, 3), classes(4, 2)
    with pytest.raises(RuntimeError, match="KFAC is not defined for a sum"), backpack(KFAC()):
        (loss(model(x), y) + loss(model(x), y)).backward()
    assert not hasattr(model.weight, "kfac")


def test_the_root_is_of_the_same_matrix() -> None:
    case = make("mlp")
    run(case, KFLR(), SqrtGGNExact())
    for key, factors in collected(case, "kflr").items():
        if len(factors) == 1:
            root = collected(case, "sqrt_ggn_exact")[key].flatten(0, 1).flatten(1)
            torch.testing.assert_close(factors[0], root.T @ root, rtol=1e-11, atol=1e-14)
