"""The definitions of the quantities, by brute force: plain autograd loops, no code of the engine.

Everything is computed from the Jacobian of all outputs with respect to all parameters and the
Hessian of the loss with respect to the outputs, both by ``torch.autograd.grad`` one row at a time.
"""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


class Plain(TorchFunctionMode):
    """Writes out weight norm and bags, whose second derivatives torch has wrong or not at all."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.embedding_bag:
            return bags(*args, **kwargs)
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        direction, length, axis = args
        others = [i for i in range(direction.dim()) if i != axis]
        return length * direction / direction.square().sum(others, keepdim=True).sqrt()


def bags(input, weight, offsets, mode, padding_idx, per_sample_weights, **options) -> Tensor:
    """One bag after the other, one line of the table after the other."""
    starts = offsets.tolist() if offsets is not None else []
    if offsets is None:
        starts = list(range(0, input.numel(), input.shape[1]))
    elif options["include_last_offset"]:
        starts = starts[:-1]
    lines = input.flatten().tolist()
    counts = [1.0] * len(lines) if per_sample_weights is None else per_sample_weights.flatten()
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        inside = [i for i in range(start, end) if lines[i] != padding_idx]
        rows = [counts[i] * weight[lines[i]] for i in inside] or [torch.zeros_like(weight[0])]
        bag = torch.stack(rows)
        found.append({"sum": bag.sum(0), "mean": bag.mean(0), "max": bag.amax(0)}[mode])
    return torch.stack(found)


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    result = model(inputs)
    return result[0] if isinstance(result, tuple) else result


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def jacobian(outputs: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """For each parameter ``[outputs.numel(), *p.shape]``."""
    rows: list[list[Tensor]] = [[] for _ in parameters]
    for unit in outputs.flatten():
        gradients = torch.autograd.grad(unit, parameters, retain_graph=True, allow_unused=True)
        for row, p, g in zip(rows, parameters, gradients, strict=True):
            row.append(torch.zeros_like(p) if g is None else g.detach())
    return [torch.stack(row) for row in rows]


def loss_gradient(loss: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
    f = outputs.detach().requires_grad_()
    return torch.autograd.grad(loss(f, targets), f)[0]


def loss_hessian(loss: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
    f = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(f, targets), f, create_graph=True)
    rows = []
    for unit in gradient.flatten():
        (row,) = torch.autograd.grad(unit, f, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(f).flatten() if row is None else row.flatten())
    return torch.stack(rows)


def batch_grad(
    model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor, samples: int | None = None
) -> dict[str, Tensor]:
    """Each sample's share of the gradient, ``[N, *p.shape]``; lines of the output in order."""
    outputs = outputs_of(model, inputs)
    parameters = trained(model)
    samples = len(outputs) if samples is None else samples
    lines = len(outputs) // samples
    gradient = loss_gradient(loss, outputs, targets)
    found: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for n in range(samples):
        seed = torch.zeros_like(gradient)
        seed[n * lines : (n + 1) * lines] = gradient[n * lines : (n + 1) * lines]
        shares = torch.autograd.grad(
            outputs, list(parameters.values()), seed, retain_graph=True, allow_unused=True
        )
        for (name, p), g in zip(parameters.items(), shares, strict=True):
            found[name].append(torch.zeros_like(p) if g is None else g)
    return {name: torch.stack(rows) for name, rows in found.items()}


def diag_ggn(
    model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """``diag(J^T H J)`` over all outputs at once."""
    outputs = outputs_of(model, inputs)
    parameters = trained(model)
    hessian = loss_hessian(loss, outputs, targets)
    rows = jacobian(outputs, list(parameters.values()))
    return {
        name: (row * torch.tensordot(hessian, row, 1)).sum(0)
        for name, row in zip(parameters, rows, strict=True)
    }


def ggn_blocks(
    model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """``J^T H J`` for each parameter alone, ``[p.numel(), p.numel()]``."""
    outputs = outputs_of(model, inputs)
    parameters = trained(model)
    hessian = loss_hessian(loss, outputs, targets)
    rows = jacobian(outputs, list(parameters.values()))
    flat = {name: row.flatten(1) for name, row in zip(parameters, rows, strict=True)}
    return {name: row.T @ hessian @ row for name, row in flat.items()}


def hessian_blocks(
    model: nn.Module, loss: nn.Module, inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The Hessian of the loss for each parameter alone, ``[p.numel(), p.numel()]``."""
    with sdpa_kernel(SDPBackend.MATH), Plain():
        value = loss(outputs_of(model, inputs), targets)
        parameters = trained(model)
        found = {}
        for name, p in parameters.items():
            (gradient,) = torch.autograd.grad(value, p, create_graph=True, allow_unused=True)
            rows = []
            for unit in [] if gradient is None else gradient.flatten():
                row = None
                if unit.requires_grad:
                    (row,) = torch.autograd.grad(unit, p, retain_graph=True, allow_unused=True)
                rows.append(torch.zeros(p.numel()).to(p) if row is None else row.flatten())
            found[name] = torch.stack(rows) if rows else torch.zeros(p.numel(), p.numel()).to(p)
    return found
