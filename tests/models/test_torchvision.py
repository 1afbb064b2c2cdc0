"""torchvision's models by name and options, without a download."""

import pytest
import torch
from torch import nn
from torchvision import models

from curvserve.models import ModelNotFound, check, resolve


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_network_is_the_one_that_torchvision_draws_with_its_norms_fixed() -> None:
    model = resolve("torchvision:shufflenet_v2_x0_5,size=64,classes=5")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = model.build()
        torch.manual_seed(7)
        assert same(network, models.shufflenet_v2_x0_5(num_classes=5))
    assert network.training
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert (model.inputs.shape, model.targets.maximum) == ((3, 64, 64), 4)


@pytest.mark.parametrize(
    ("reference", "name", "shape", "classes"),
    [
        ("torchvision:resnet18", "resnet18", (3, 224, 224), 1000),
        ("torchvision:inception_v3", "inception_v3", (3, 299, 299), 1000),
        ("torchvision:vit_b_16,name=b16,size=32", "b16", (3, 32, 32), 1000),
    ],
)
def test_what_is_not_said_is_as_the_published_weights_have_it(
    reference: str, name: str, shape: tuple[int, ...], classes: int
) -> None:
    model = resolve(reference)
    assert (model.name, model.inputs.shape) == (name, shape)
    assert model.targets.maximum == classes - 1


def test_bytes_are_normalised_as_the_published_weights_have_it() -> None:
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = models.ResNet18_Weights.DEFAULT.transforms(crop_size=32, resize_size=32)(image)
    assert torch.equal(resolve("torchvision:resnet18,size=32").inputs.convert(image), expected)


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_a_network_can_be_trained_and_its_outputs_are_one_tensor(name: str) -> None:
    network, _ = check(resolve(f"torchvision:{name},size=64,classes=3"))
    assert not [part for part, _ in network.named_modules() if part.startswith("aux")]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("torchvision:resnet19", "torchvision has no model 'resnet19'"),
        ("torchvision:", "torchvision has no model ''"),
        ("torchvision:fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn is no classification"),
        ("torchvision:fcn_resnet50", "fcn_resnet50 is no classification model"),
        ("torchvision:r3d_18", "r3d_18 is no classification model"),
        ("torchvision:resnet18,pixels=3", "unknown option 'pixels=3'; there are size=PIXELS"),
        ("torchvision:resnet18,size", "unknown option 'size'"),
        ("torchvision:resnet18,size=0", "size is '0', expected a positive number"),
        ("torchvision:resnet18,classes=-1", "classes is '-1', expected a positive number"),
    ],
)
def test_another_is_refused_in_a_sentence(reference: str, said: str) -> None:
    with pytest.raises(ModelNotFound, match=said):
        resolve(reference)
