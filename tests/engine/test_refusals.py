"""What cannot be right raises, by name, and leaves nothing behind."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvserve.engine import backpack, disable, evaluate, extend
from curvserve.engine.errors import (
    IncompleteBackwardError,
    MixedSamplesError,
    NonFiniteError,
    NotRecordedError,
    ScaledLossWarning,
    UncoveredParameterError,
    UnsupportedLossError,
)
from curvserve.engine.extensions import BatchGrad, DiagGGNExact, DiagGGNMC
from tests.engine.zoo import Wrapped, classes


def fields(model: nn.Module) -> set[str]:
    names = ("grad_batch", "diag_ggn_mc", "diag_ggn_exact")
    return {name for p in model.parameters() for name in names if hasattr(p, name)}


def test_a_class_where_an_instance_is_due() -> None:
    with pytest.raises(ValueError, match=r"instantiate it, as in backpack\(DiagGGNMC\(\)\)"):
        backpack(DiagGGNMC)  # type: ignore[arg-type]  # that it is refused is the claim


def test_something_that_is_no_extension() -> None:
    with pytest.raises(ValueError, match="is not an extension"):
        backpack("diag_ggn_mc")  # type: ignore[arg-type]  # that it is refused is the claim


def test_two_extensions_for_one_attribute() -> None:
    with pytest.raises(ValueError, match="both save to 'diag_ggn_mc'"):
        backpack(DiagGGNMC(1), DiagGGNMC(2))


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_number_of_draws_that_is_none(count: object) -> None:
    with pytest.raises(ValueError, match="mc_samples must be a positive integer"):
        DiagGGNMC(count)  # type: ignore[arg-type]  # that it is refused is the claim


@pytest.mark.parametrize("samples", [[], [1, 1], [-1], [0.5], 3])
def test_a_subsampling_that_is_none(samples: list[int]) -> None:
    with pytest.raises(ValueError, match="subsampling must be"):
        BatchGrad(subsampling=samples)


def test_a_subsampling_beyond_the_batch() -> None:
    model, loss = extend(nn.Linear(3, 2)), extend(nn.CrossEntropyLoss())
    with (
        pytest.raises(IndexError, match="on a batch of 4 samples"),
        backpack(BatchGrad(subsampling=[5])),
    ):
        loss(model(torch.randn(4, 3)), classes(4, 2)).backward()
    assert not fields(model)


def test_extend_takes_modules_only() -> None:
    with pytest.raises(TypeError, match="takes a torch.nn.Module, got function"):
        extend(lambda x: x)  # type: ignore[type-var]  # that it is refused is the claim


def test_a_loss_without_a_rule() -> None:
    with pytest.raises(UnsupportedLossError, match="TripletMarginLoss has no curvature rule"):
        extend(nn.TripletMarginLoss())


def test_a_loss_that_was_not_extended() -> None:
    model = extend(nn.Linear(3, 2))
    with (
        pytest.raises(UnsupportedLossError, match=r"call extend\(loss_function\)"),
        backpack(DiagGGNMC()),
    ):
        nn.CrossEntropyLoss()(model(torch.randn(4, 3)), classes(4, 2)).backward()
    assert not fields(model)


def test_neither_model_nor_loss_extended() -> None:
    model = nn.Linear(3, 2)
    with (
        pytest.warns(UserWarning, match=r"call extend\(loss_function\)"),
        backpack(DiagGGNMC()),
    ):
        nn.CrossEntropyLoss()(model(torch.randn(4, 3)), classes(4, 2)).backward()


def test_the_note_on_an_error_that_follows_from_it() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(AttributeError) as caught, backpack(DiagGGNMC()):
        nn.CrossEntropyLoss()(model(torch.randn(4, 3)), classes(4, 2)).backward()
        _ = model.weight.diag_ggn_mc
    assert any("call extend(loss_function)" in note for note in caught.value.__notes__)


def test_a_model_that_was_not_extended() -> None:
    model, loss = nn.Linear(3, 2), extend(nn.CrossEntropyLoss())
    with (
        pytest.raises(NotRecordedError, match=r"call extend\(model\) before"),
        backpack(DiagGGNMC()),
    ):
        loss(model(torch.randn(4, 3)), classes(4, 2)).backward()


def test_a_forward_pass_while_disabled() -> None:
    model, loss = extend(nn.Linear(3, 2)), extend(nn.CrossEntropyLoss())
    with disable():
        output = model(torch.randn(4, 3))
    with pytest.raises(NotRecordedError), backpack(DiagGGNMC()):
        loss(output, classes(4, 2)).backward()


def test_a_loss_that_is_not_reduced() -> None:
    model, loss = extend(nn.Linear(3, 2)), extend(nn.CrossEntropyLoss(reduction="none"))
    with (
        pytest.raises(UnsupportedLossError, match="reduction='none'"),
        backpack(DiagGGNExact()),
    ):
        loss(model(torch.randn(4, 3)), classes(4, 2)).sum().backward()
    assert not fields(model)


def test_a_rescaled_loss_warns_and_scales() -> None:
    model, loss = extend(nn.Linear(3, 2).double()), extend(nn.CrossEntropyLoss())
    x, y = torch.randn(4, 3).double(), classes(4, 2)
    with backpack(DiagGGNExact(), BatchGrad()):
        loss(model(x), y).backward()
    plain = model.weight.diag_ggn_exact, model.weight.grad_batch
    with (
        pytest.warns(ScaledLossWarning, match="with the factor 3"),
        backpack(DiagGGNExact(), BatchGrad()),
    ):
        (3 * loss(model(x), y)).backward()
    torch.testing.assert_close(model.weight.diag_ggn_exact, 3 * plain[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(model.weight.grad_batch, 3 * plain[1], rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore::curvserve.engine.errors.ScaledLossWarning")
def test_a_negated_loss() -> None:
    model, loss = extend(nn.Linear(3, 2)), extend(nn.CrossEntropyLoss())
    with (
        pytest.raises(UnsupportedLossError, match="multiplied by -1"),
        backpack(DiagGGNExact()),
    ):
        (-loss(model(torch.randn(4, 3)), classes(4, 2))).backward()


def test_targets_that_would_be_broadcast() -> None:
    model, loss = extend(nn.Linear(3, 2)), extend(nn.MSELoss())
    with (
        pytest.raises(UnsupportedLossError, match=r"output's shape \(4, 2\), got \(4, 1\)"),
        pytest.warns(UserWarning, match="target size"),
        backpack(DiagGGNExact()),
    ):
        loss(model(torch.randn(4, 3)), torch.randn(4, 1)).backward()


@pytest.mark.parametrize("extension", [BatchGrad(), DiagGGNMC(), DiagGGNExact()])
def test_batch_norm_in_training_mode(extension: object) -> None:
    model = extend(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    loss = extend(nn.CrossEntropyLoss())
    statistics = [b.clone() for b in model.buffers()]
    output = model(torch.randn(6, 3))
    updated = [b.clone() for b in model.buffers()]
    assert not torch.equal(statistics[0], updated[0])
    with (
        pytest.raises(MixedSamplesError, match=r"BatchNorm1d is in training mode: call eval\(\)"),
        backpack(extension),
    ):
        loss(output, classes(6, 2)).backward()
    assert not fields(model)
    assert all(torch.equal(a, b) for a, b in zip(updated, model.buffers(), strict=True))


def test_samples_mixed_by_attention_over_the_wrong_axis() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.before(x)
        return m.head(m.attend(x, x, x, need_weights=False)[0].mean(1))

    model = Wrapped(
        forward,
        before=nn.Linear(8, 8),
        attend=nn.MultiheadAttention(8, 2, batch_first=False),  # samples come first here
        head=nn.Linear(8, 4),
    )
    loss = extend(nn.CrossEntropyLoss())
    with (
        pytest.raises(MixedSamplesError, match="before.bias.* samples of the batch influence"),
        backpack(BatchGrad()),
    ):
        loss(extend(model)(torch.randn(3, 5, 8)), classes(3)).backward()
    assert not fields(model)


def test_dropout_inside_a_replayed_module() -> None:
    model = Wrapped(
        lambda m, x: m.head(nn.functional.dropout(x * m.scale).mean(1)),
        scale=nn.Parameter(torch.randn(8)),
        head=nn.Linear(8, 4),
    )
    loss = extend(nn.CrossEntropyLoss())
    with (
        pytest.raises(UncoveredParameterError, match="scale.* draws random numbers"),
        backpack(DiagGGNMC()),
    ):
        loss(extend(model)(torch.randn(3, 5, 8)), classes(3)).backward()
    assert not fields(model)


def test_dropout_between_layers_is_no_trouble() -> None:
    model = extend(nn.Sequential(nn.Linear(3, 64), nn.Dropout(), nn.Linear(64, 2)).double())
    loss = extend(nn.CrossEntropyLoss())
    with backpack(BatchGrad()):
        loss(model(torch.randn(4, 3).double()), classes(4, 2)).backward()
    for p in model.parameters():
        torch.testing.assert_close(p.grad_batch.sum(0), p.grad, rtol=1e-12, atol=1e-14)


def test_a_parameter_used_outside_every_call() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    model, loss = extend(Model()), extend(nn.CrossEntropyLoss())
    with pytest.raises(UncoveredParameterError, match="'scale' is used"), backpack(BatchGrad()):
        loss(model.body(torch.randn(4, 3)) * model.scale, classes(4, 2)).backward()
    assert not fields(model)


def test_frequency_scaled_embeddings_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, scale_grad_by_freq=True), nn.Flatten())
    loss = extend(nn.CrossEntropyLoss())
    with pytest.raises(UncoveredParameterError), backpack(BatchGrad()):
        loss(extend(model)(torch.randint(5, (3, 1))), classes(3)).backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite(value: float) -> None:
    model, loss = extend(nn.Linear(3, 2)), extend(nn.CrossEntropyLoss())
    with pytest.raises(NonFiniteError, match="nothing was stored"), backpack(DiagGGNMC()):
        loss(model(torch.full((4, 3), value)), classes(4, 2)).backward()
    assert not fields(model)


def test_a_backward_pass_that_stops_early() -> None:
    model = extend(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    loss = extend(nn.CrossEntropyLoss())
    with (
        pytest.raises(IncompleteBackwardError, match="before it reached every layer"),
        backpack(BatchGrad(), DiagGGNMC()),
    ):
        value = loss(model(torch.randn(4, 3)), classes(4, 2))
        value.backward(inputs=list(model[2].parameters()))
    assert not fields(model)


def test_a_single_sample_without_a_batch_axis() -> None:
    model, loss = extend(nn.Linear(3, 2)), extend(nn.CrossEntropyLoss())
    with pytest.raises(UnsupportedLossError, match="batch axis"), backpack(DiagGGNMC()):
        loss(model(torch.randn(3)), torch.tensor(1)).backward()


class TestEvaluate:
    model, x, y = nn.Linear(3, 2), torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)

    def test_an_unknown_quantity(self) -> None:
        with pytest.raises(ValueError, match="unknown quantity 'hessian'; there are: grad, "):
            evaluate(self.model, nn.CrossEntropyLoss(), self.x, self.y, ["hessian"])

    def test_a_quantity_twice(self) -> None:
        with pytest.raises(ValueError, match="'grad' is asked for twice"):
            evaluate(self.model, nn.CrossEntropyLoss(), self.x, self.y, ["grad", "grad"])

    def test_a_chunk_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="chunk must be a positive number"):
            evaluate(self.model, nn.CrossEntropyLoss(), self.x, self.y, chunk=0)

    def test_a_loss_without_a_rule(self) -> None:
        with pytest.raises(UnsupportedLossError, match="TripletMarginLoss has no curvature rule"):
            evaluate(self.model, nn.TripletMarginLoss(), self.x, self.y)

    def test_samples_of_an_unextended_batch_norm(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        with pytest.raises(MixedSamplesError):
            evaluate(model, nn.CrossEntropyLoss(), torch.randn(4, 3), self.y)
        assert not model[0]._forward_hooks


def test_functional_losses_have_no_curvature() -> None:
    model = extend(nn.Linear(3, 2))
    with pytest.raises(UnsupportedLossError, match="DiagGGNMC"), backpack(DiagGGNMC()):
        F.cross_entropy(model(torch.randn(4, 3)), classes(4, 2)).backward()
    assert not fields(model)


def test_results_of_an_earlier_pass_do_not_survive_a_refused_one() -> None:
    model = extend(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    loss, x, y = extend(nn.CrossEntropyLoss()), torch.randn(6, 3), classes(6, 2)
    for extension in (BatchGrad(), DiagGGNExact()):
        model.eval()
        with backpack(extension):
            loss(model(x), y).backward()
        assert fields(model)
        model.train()
        with pytest.raises(MixedSamplesError), backpack(extension):
            loss(model(x), y).backward()
        assert not fields(model)


def test_a_model_without_trained_parameters_has_nothing_to_compute() -> None:
    model, loss = extend(nn.Linear(3, 2).requires_grad_(False)), extend(nn.CrossEntropyLoss())
    x = torch.randn(4, 3, requires_grad=True)
    with backpack(BatchGrad(), DiagGGNExact()):
        loss(model(x), classes(4, 2)).backward()
    assert x.grad is not None and not fields(model)


@pytest.mark.parametrize("loss", [
    nn.BCEWithLogitsLoss(weight=-torch.ones(4)),
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, -1.0, 1.0, 1.0])),
])  # fmt: skip
@pytest.mark.parametrize("extension", [DiagGGNExact(), DiagGGNMC()])
def test_weights_that_make_a_loss_concave(loss: nn.Module, extension: object) -> None:
    model, loss = extend(nn.Linear(3, 4)), extend(loss)
    y = torch.rand(2, 4) if isinstance(loss, nn.BCEWithLogitsLoss) else torch.tensor([1, 2])
    with pytest.raises(UnsupportedLossError, match="negative weight"), backpack(extension):
        loss(model(torch.randn(2, 3)), y).backward()
    assert not fields(model)


@pytest.mark.parametrize("shape", [(6, 3), (3, 4, 3)])
@pytest.mark.parametrize("extension", [BatchGrad(), DiagGGNMC()])
def test_a_loss_that_reads_some_samples_only(shape: tuple[int, ...], extension: object) -> None:
    """Four lines of six can be read as two groups, but no sample of the model is one."""
    model, loss = extend(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))), nn.MSELoss()
    kept = torch.zeros(shape[:-1], dtype=torch.bool)
    kept.view(-1)[[0, 2, 3, 5]] = True
    with pytest.raises(MixedSamplesError, match="by ignore_index"), backpack(extension):
        extend(loss)(model(torch.randn(shape))[kept], torch.zeros(4, 2)).backward()
    assert not fields(model)
