"""Real architectures, small enough to be differentiated by brute force; no conversion of any."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torchvision import models
from torchvision.models import convnext, swin_transformer

CLASSES, SAMPLES = 3, 2

Built = tuple[nn.Module, Tensor]
QUICK: dict[str, Callable[[], Built]] = {}
SLOW: dict[str, Callable[[], Built]] = {}


def quick(build: Callable[[], Built]) -> Callable[[], Built]:
    QUICK[build.__name__] = build
    return build


def slow(build: Callable[[], Built]) -> Callable[[], Built]:
    SLOW[build.__name__] = build
    return build


def images(size: int) -> Tensor:
    return torch.randn(SAMPLES, 3, size, size)


def of_torchvision(name: str, size: int, **options: object) -> Built:
    model = getattr(models, name)(weights=None, num_classes=CLASSES, **options)
    return model.eval(), images(size)


for name, size in {
    "resnet18": 32,
    "mobilenet_v3_small": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "regnet_y_400mf": 32,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "resnext50_32x4d": 32,
    "mobilenet_v3_large": 32,
    "convnext_tiny": 32,
    "swin_t": 32,
}.items():
    SLOW[name] = partial(of_torchvision, name, size)
SLOW["googlenet"] = partial(of_torchvision, "googlenet", 32, aux_logits=False, init_weights=True)


@slow
def vit_b_32() -> Built:
    model, x = of_torchvision("vit_b_32", 32, image_size=32)
    nn.init.normal_(model.heads[-1].weight)  # zero at first: nothing would come back
    return model, x


@quick
def small_densenet() -> Built:
    model = models.DenseNet(4, (2, 2), 8, num_classes=CLASSES)
    return model.eval(), images(16)


@quick
def vision_transformer() -> Built:
    model = models.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=CLASSES)
    nn.init.normal_(model.heads[-1].weight)  # zero at first: nothing would come back
    return model.eval(), images(16)


@quick
def swin() -> Built:
    model = swin_transformer.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=CLASSES)
    return model.eval(), images(16)


@quick
def swin_v2() -> Built:
    model = swin_transformer.SwinTransformer(
        [2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=CLASSES,
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    )  # fmt: skip
    return model.eval(), images(16)


@quick
def convnext_of_two_stages() -> Built:
    stages = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    model = convnext.ConvNeXt(stages, num_classes=CLASSES)
    return model.eval(), images(16)


def encoder(train: bool) -> Built:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).mean(1))

    return Model().train(train), torch.randn(SAMPLES, 5, 8)


QUICK["encoder_in_training_mode"] = partial(encoder, True)
QUICK["encoder_in_evaluation_mode"] = partial(encoder, False)


class Block(nn.Module):
    """A transformer block that calls its projections itself, as language models do."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in self.qkv(self.first(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


@quick
def language_model_with_tied_weights() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(6, 8))
            self.blocks = nn.Sequential(Block(8, 2), Block(8, 2))
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            h = self.blocks(self.words(x) + self.places[: x.shape[1]])
            return self.head(h).movedim(-1, 1)

    return Model(), torch.randint(11, (SAMPLES, 5))


class Sequence(nn.Module):
    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0].mean(1))


def recurrent(kind: type[nn.Module], width: int, **options: object) -> Built:
    body = kind(5, 4, batch_first=True, **options)
    return Sequence(body, width), torch.randn(SAMPLES, 6, 5)


QUICK["lstm"] = partial(recurrent, nn.LSTM, 8, num_layers=2, bidirectional=True)
QUICK["gru"] = partial(recurrent, nn.GRU, 8, num_layers=2, bidirectional=True)
QUICK["lstm_with_projection"] = partial(recurrent, nn.LSTM, 3, proj_size=3, num_layers=2)


@quick
def weight_norm() -> Built:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(inplace=True), nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(144, CLASSES)),
    )  # fmt: skip
    return model, images(8)


@quick
def low_rank_adapters() -> Built:
    class LowRank(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(2, layer.in_features))
            self.b = nn.Parameter(torch.randn(layer.out_features, 2))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.b @ self.a

    model, x = encoder(True)
    model.requires_grad_(False)
    for layer in model.modules():
        if type(layer) is nn.Linear:
            parametrize.register_parametrization(layer, "weight", LowRank(layer))
    return model, x
