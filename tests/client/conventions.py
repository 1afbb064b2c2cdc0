"""What people put around an optimizer: training loops that know nothing of where it steps."""

import copy
import io
import pickle  # noqa: TID251 # as multiprocessing and trainers do with optimizers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR, AveragedModel

from .ways import STEPS, Way, Weights, batches, goes_on

Loop = Callable[[Way], Weights]

OWN_GRADIENT = r"step_on\(inputs, targets\) computes its own: call step\(\) instead of it"
ELEMENTS = r"its elements are on the server.*session\.mirror\(net\)"
ROUNDING = 2e-5  # a factor that is exact to 1e-6, and weights of 24 bits that move by a hundredth
HALF = STEPS // 2


@dataclass(frozen=True)
class Convention:
    """One training loop.

    Attributes:
        run: trains, and returns the parameters that come of it.
        within: way -> how far they may be from those of the local loop, as a share of how far the
            loop went; the same bits where nothing is said.
        like_plain: whether they are those of the plain loop.
        refused: way -> what is said where the convention has no meaning in it.
    """

    run: Loop
    within: Mapping[str, float] = field(default_factory=dict)
    like_plain: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


CONVENTIONS: dict[str, Convention] = {}


def convention(**known: Any) -> Callable[[Loop], Loop]:
    """Enter a loop under its name."""

    def enter(run: Loop) -> Loop:
        CONVENTIONS[run.__name__] = Convention(run, **known)
        return run

    return enter


def scheduled(way: Way, optimizer: Optimizer, scheduler: Any) -> Weights:
    for batch in batches():
        way.step(optimizer, batch)
        scheduler.step()
    return way.weights()


def trained(way: Way, optimizer: Optimizer) -> Weights:
    for batch in batches():
        way.step(optimizer, batch)
    return way.weights()


@convention(like_plain=True)
def plain(way: Way) -> Weights:
    return trained(way, way.optimizer())


@convention()
def step_lr(way: Way) -> Weights:
    optimizer = way.optimizer()
    return scheduled(way, optimizer, StepLR(optimizer, step_size=2, gamma=0.3))


@convention()
def cosine_annealing_warm_restarts(way: Way) -> Weights:
    optimizer = way.optimizer()
    return scheduled(way, optimizer, CosineAnnealingWarmRestarts(optimizer, T_0=3, eta_min=0.01))


@convention()
def sequential_lr(way: Way) -> Weights:
    optimizer = way.optimizer()
    parts = [LinearLR(optimizer, 0.5, total_iters=2), ExponentialLR(optimizer, 0.8)]
    return scheduled(way, optimizer, SequentialLR(optimizer, parts, milestones=[3]))


@convention()
def reduce_lr_on_plateau(way: Way) -> Weights:
    optimizer = way.optimizer()
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
    for batch in batches():
        scheduler.step(way.step(optimizer, batch))
    return way.weights()


@convention()
def one_cycle_lr_with_momentum(way: Way) -> Weights:
    optimizer = way.optimizer(momentum=0.9)
    return scheduled(way, optimizer, OneCycleLR(optimizer, max_lr=0.05, total_steps=STEPS + 1))


@convention()
def cyclic_lr_with_momentum(way: Way) -> Weights:
    optimizer = way.optimizer(momentum=0.9)
    return scheduled(way, optimizer, CyclicLR(optimizer, 0.01, 0.05, step_size_up=2))


@convention()
def swa_lr(way: Way) -> Weights:
    optimizer = way.optimizer()
    return scheduled(way, optimizer, SWALR(optimizer, swa_lr=0.01, anneal_epochs=3))


@convention()
def lambda_lr_and_a_damping_of_ones_own(way: Way) -> Weights:
    optimizer = way.optimizer()
    scheduler = LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    for batch in batches():
        way.step(optimizer, batch)
        scheduler.step()
        for group in optimizer.param_groups:
            group["damping"] *= 0.7
    return way.weights()


@convention(like_plain=True, refused={"fused": r"nothing is pending: .* or step_on\("})
def closures(way: Way) -> Weights:
    optimizer = way.optimizer()
    for batch in batches():
        assert optimizer.step(partial(way.compute, optimizer, batch)) > 0
    return way.weights()


@convention()
def hooks_of_step_that_change_options(way: Way) -> Weights:
    optimizer = way.optimizer()

    def scale(key: str, factor: float) -> Callable[..., None]:
        def hook(optimizer: Optimizer, *_: object) -> None:
            for group in optimizer.param_groups:
                group[key] *= factor

        return hook

    optimizer.register_step_pre_hook(scale("lr", 0.8))
    optimizer.register_step_post_hook(scale("damping", 1.1))
    return trained(way, optimizer)


@convention()
def state_dict_saved_and_loaded_half_way(way: Way) -> Weights:
    optimizer = way.optimizer(lr=0.02, momentum=0.9)
    for batch in batches()[:HALF]:
        way.step(optimizer, batch)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)  # noqa: TID251  # as trainers do
    file.seek(0)
    optimizer = way.optimizer()
    optimizer.load_state_dict(torch.load(file, weights_only=True))  # noqa: TID251 # runs no code
    for batch in batches()[HALF:]:
        way.step(optimizer, batch)
    return way.weights()


@convention()
def a_pickled_optimizer_goes_on(way: Way) -> Weights:
    optimizer = way.optimizer(lr=0.02, momentum=0.9)
    for batch in batches()[:HALF]:
        way.step(optimizer, batch)
    return goes_on(way, optimizer, lambda one: pickle.loads(pickle.dumps(one)), batches()[HALF:])  # noqa: S301  # as trainers do


@convention()
def a_deep_copy_of_an_optimizer_goes_on(way: Way) -> Weights:
    optimizer = way.optimizer(lr=0.02, momentum=0.9)
    for batch in batches()[:HALF]:
        way.step(optimizer, batch)
    return goes_on(way, optimizer, copy.deepcopy, batches()[HALF:])


@convention(like_plain=True)
def named_parameters(way: Way) -> Weights:
    optimizer = way.optimizer(way.named_parameters())
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"
    return trained(way, optimizer)


@convention(like_plain=True)
def zeros_instead_of_none(way: Way) -> Weights:
    optimizer = way.optimizer()
    for batch in batches():
        way.step(optimizer, batch)
        optimizer.zero_grad(set_to_none=False)
    return way.weights()


@convention(like_plain=True, refused={"fused": OWN_GRADIENT})
def zero_grad_after_the_loss(way: Way) -> Weights:
    optimizer = way.optimizer()
    for batch in batches():
        loss = way.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        way.finish(optimizer, batch)
    return way.weights()


@convention(like_plain=True, refused={"fused": OWN_GRADIENT})
def grad_scaler(way: Way) -> Weights:
    optimizer = way.optimizer()
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    for batch in batches():
        optimizer.zero_grad()
        scaler.scale(way.loss(batch)).backward()
        way.finish(optimizer, batch, lambda: scaler.step(optimizer))
        scaler.update()
    return way.weights()


@convention(within={"loop": ROUNDING}, refused={"fused": OWN_GRADIENT})
def clip_grad_norm(way: Way) -> Weights:
    optimizer = way.optimizer()
    parameters = [parameter for _, parameter in way.named_parameters()]
    for batch in batches():
        optimizer.zero_grad()
        way.loss(batch).backward()
        assert clip_grad_norm_(parameters, max_norm=0.5) > 0.5
        way.finish(optimizer, batch)
    return way.weights()


@convention(within={"loop": ROUNDING}, refused={"fused": OWN_GRADIENT})
def grad_scaler_and_clipping(way: Way) -> Weights:
    optimizer = way.optimizer()
    scaler = torch.amp.GradScaler("cpu")
    parameters = [parameter for _, parameter in way.named_parameters()]
    for batch in batches():
        optimizer.zero_grad()
        scaler.scale(way.loss(batch)).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(parameters, max_norm=0.5)
        way.finish(optimizer, batch, lambda: scaler.step(optimizer))
        scaler.update()
    return way.weights()


@convention(refused={"fused": OWN_GRADIENT})
def accumulation_over_two_batches(way: Way) -> Weights:
    optimizer = way.optimizer()
    every = batches(2 * STEPS)
    for pair in zip(every[::2], every[1::2], strict=True):
        optimizer.zero_grad()
        for batch in pair:
            (way.loss(batch) / 2).backward()
        way.finish(optimizer, pair[1])
    return way.weights()


@convention(refused={"loop": ELEMENTS, "fused": ELEMENTS})
def clip_grad_value(way: Way) -> Weights:
    optimizer = way.optimizer()
    parameters = [parameter for _, parameter in way.named_parameters()]
    for batch in batches():
        optimizer.zero_grad()
        way.loss(batch).backward()
        clip_grad_value_(parameters, 0.01)
        way.finish(optimizer, batch)
    return way.weights()


@convention(refused={"loop": ELEMENTS, "fused": ELEMENTS})
def edits_of_gradients_elements(way: Way) -> Weights:
    optimizer = way.optimizer()
    parameters = [parameter for _, parameter in way.named_parameters()]
    for batch in batches():
        optimizer.zero_grad()
        way.loss(batch).backward()
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.data.clamp_(-0.01, 0.01)
        way.finish(optimizer, batch)
    return way.weights()


@convention(within={"loop": ROUNDING}, refused={"fused": OWN_GRADIENT})
def gradients_replaced_by_multiples(way: Way) -> Weights:
    optimizer = way.optimizer()
    for batch in batches():
        optimizer.zero_grad()
        way.loss(batch).backward()
        for _, parameter in way.named_parameters():
            assert parameter.grad is not None
            parameter.grad = parameter.grad * 0.3
        way.finish(optimizer, batch)
    return way.weights()


REPLACED = r"the gradient of 0\.weight was replaced by another tensor"


@convention(refused={"loop": REPLACED, "fused": OWN_GRADIENT})
def noise_on_gradients(way: Way) -> Weights:
    optimizer = way.optimizer()
    for batch in batches():
        optimizer.zero_grad()
        way.loss(batch).backward()
        for _, parameter in way.named_parameters():
            assert parameter.grad is not None
            parameter.grad = parameter.grad + 0.001
        way.finish(optimizer, batch)
    return way.weights()


@convention()
def groups_of_their_own_options(way: Way) -> Weights:
    named = dict(way.named_parameters())
    biases = [parameter for name, parameter in named.items() if name.endswith("bias")]
    rest = [parameter for name, parameter in named.items() if not name.endswith("bias")]
    groups = [{"params": biases, "lr": 0.1, "damping": 0.5}, {"params": rest}]
    return trained(way, way.optimizer(groups, momentum=0.5))


@convention()
def a_frozen_parameter(way: Way) -> Weights:
    optimizer = way.optimizer()
    for batch in batches()[:HALF]:
        way.step(optimizer, batch)
    dict(way.named_parameters())["7.weight"].requires_grad_(False)
    before = way.weights()
    for batch in batches()[HALF:]:
        way.step(optimizer, batch)
    after = way.weights()
    assert [name for name in after if torch.equal(after[name], before[name])] == ["7.weight"]
    return after


@convention()
def a_parameter_left_out(way: Way) -> Weights:
    named = dict(way.named_parameters())
    left_out = named.pop("7.weight")
    weights = trained(way, way.optimizer(list(named.values())))
    assert left_out.requires_grad
    return weights


@convention()
def a_group_added_half_way(way: Way) -> Weights:
    named = dict(way.named_parameters())
    head = [named.pop(name) for name in ("9.weight", "9.bias")]
    optimizer = way.optimizer(head)
    for batch in batches()[:HALF]:
        way.step(optimizer, batch)
    optimizer.add_param_group({"params": list(named.values()), "lr": 0.02})
    for batch in batches()[HALF:]:
        way.step(optimizer, batch)
    return way.weights()


COPY = r"this is a copy of a remote module.*session\.mirror\(net\)"


@convention(refused={"loop": COPY, "fused": COPY})
def averaged_model(way: Way) -> Weights:
    optimizer, module = way.optimizer(), way.module()
    average = AveragedModel(module)
    for batch in batches():
        way.step(optimizer, batch)
        average.update_parameters(module)
    way.call(average, batches()[0])
    return {name: p.detach() for name, p in average.module.named_parameters()}


WEIGHTS = r"its values are on the server\. session\.pull\(\) and session\.push"


@convention(refused={"loop": WEIGHTS, "fused": WEIGHTS})
def weights_clamped_after_each_step(way: Way) -> Weights:
    optimizer = way.optimizer()
    for batch in batches():
        way.step(optimizer, batch)
        with torch.no_grad():
            for _, parameter in way.named_parameters():
                parameter.clamp_(-0.1, 0.1)
    return way.weights()
