"""What the page says of import lines: every name is here, and takes what BackPACK's takes."""

import importlib
import inspect

import pytest
import torch
from backpack.custom_module.branching import Parallel, SumModule
from backpack.custom_module.pad import Pad
from backpack.custom_module.permute import Permute
from backpack.custom_module.reduce_tuple import ReduceTuple
from backpack.custom_module.scale_module import ScaleModule
from backpack.custom_module.slicing import Slicing
from torch import Tensor, nn

from curvserve.engine import backpack, evaluate, extend, extensions
from tests.documentation.tables import IMPORTS, shared_names
from tests.engine import reference
from tests.engine.test_quantities import largest_error

NAMES = [
    (theirs, ours, name) for theirs, ours in IMPORTS.items() for name in shared_names(theirs, ours)
]
INTERNAL = {  # of BackPACK's Kronecker module
    "all_tensors_of_order",
    "get_letters",
    "is_matrix",
    "is_tensor_of_order",
    "is_vector",
    "kfac_mat_prod_einsum_equation",
}


def own(module: str) -> set[str]:
    found = importlib.import_module(module)
    public = getattr(found, "__all__", None) or [
        name
        for name, value in vars(found).items()
        if getattr(value, "__module__", "") == module and not name.startswith("_")
    ]
    return set(public)


def parameters(of: object) -> list[inspect.Parameter]:
    kind = of.__init__ if inspect.isclass(of) else of
    if kind is object.__init__:
        return []
    found = list(inspect.signature(kind).parameters.values())
    return found[1:] if inspect.isclass(of) else found


@pytest.mark.parametrize(("theirs", "ours", "name"), NAMES)
def test_a_name_takes_the_arguments_of_its_namesake(theirs: str, ours: str, name: str) -> None:
    there = getattr(importlib.import_module(theirs), name)
    here = getattr(importlib.import_module(ours), name)
    if inspect.ismodule(here):
        return
    if name in ("BackpropStrategy", "Curvature", "ExpectationApproximation", "LossHessianStrategy"):
        constants = {k: v for k, v in vars(there).items() if isinstance(v, str) and k.isupper()}
        assert constants == {k: getattr(here, k) for k in constants}
        assert set(there.CHOICES) == set(here.CHOICES)
        return
    taken = parameters(here)
    for index, (mine, other) in enumerate(zip(taken, parameters(there), strict=False)):
        assert mine.kind == other.kind or other.name == "exts", (index, mine, other)
        if other.kind is not inspect.Parameter.VAR_POSITIONAL:
            assert mine.name == other.name
            assert mine.default == other.default
    assert len(taken) >= len(parameters(there))
    assert all(p.default is not p.empty for p in taken[len(parameters(there)) :])


@pytest.mark.parametrize("module", [m for m in IMPORTS if m != "backpack.extensions.curvature"])
def test_no_public_name_is_left_out(module: str) -> None:
    here = set(shared_names(module, IMPORTS[module]))
    hooks = {"hook_store_io", "hook_run_extensions", "memory_cleanup"}
    assert own(module) - here <= INTERNAL | hooks


def test_the_saved_fields_are_the_peers() -> None:
    theirs, ours = "backpack.extensions", "curvserve.engine.extensions"
    for name in shared_names(theirs, ours):
        if name != "HBP":
            there = getattr(importlib.import_module(theirs), name)()
            here = getattr(importlib.import_module(ours), name)()
            assert here.savefield == there.savefield


def test_backpacks_own_modules_are_modules_like_any_other() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        Pad((1, 1)), nn.Linear(8, 6), ScaleModule(2.0),
        Parallel(
            nn.Identity(), nn.Sequential(nn.Linear(6, 6), nn.Tanh()), merge_module=SumModule()
        ),
        nn.Unflatten(1, (2, 3)), Permute(0, 2, 1), nn.LSTM(2, 4, batch_first=True),
        ReduceTuple(0), Slicing((slice(None), -1)),
    ).double()  # fmt: skip
    x, y, loss = torch.randn(5, 6).double(), torch.randint(4, (5,)), nn.CrossEntropyLoss()
    found = evaluate(model, loss, x, y, ["grad_batch", "diag_ggn_exact"]).quantities
    assert largest_error(found["grad_batch"], reference.batch_grad(model, loss, x, y)) < 1e-12
    assert largest_error(found["diag_ggn_exact"], reference.diag_ggn(model, loss, x, y)) < 1e-12


def test_a_script_of_every_extension_at_once() -> None:
    torch.manual_seed(0)
    model = extend(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), use_converter=True)
    loss = extend(nn.CrossEntropyLoss())
    x, y = torch.rand(6, 3, 4), torch.randint(5, (6,))
    names = [n for n in shared_names("backpack.extensions", extensions.__name__) if n != "HBP"]
    chosen = [getattr(extensions, name)() for name in names]
    with backpack(*chosen, debug=True, retain_graph=True):
        loss(model(x), y).backward(retain_graph=True)
    for p in model.parameters():
        for extension in chosen:
            found = getattr(p, extension.savefield)
            if callable(found):
                assert found(torch.rand(3, *p.shape)).shape == (3, *p.shape)
            else:
                assert all(isinstance(t, Tensor) for t in found)
