"""Curvature of a torchvision ResNet-18 as it is: no conversion, residuals and in-place ReLUs kept.

    python examples/resnet18_curvature.py

Takes about 5 seconds on two cores and prints the mean curvature of each stage. The weights are
random, so the loss is about ln 10 = 2.3.
"""

import torch
from torch import nn
from torchvision.models import resnet18  # type: ignore[import-untyped]  # torchvision has no types

from curvserve.engine import backpack, extend
from curvserve.engine.extensions import DiagGGNMC

torch.manual_seed(0)
model = extend(resnet18(num_classes=10).eval())  # norms in training mode would mix the samples
loss = extend(nn.CrossEntropyLoss())
images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))

with backpack(DiagGGNMC()):
    value = loss(model(images), labels)
    value.backward()

print(f"loss {value.item():.3f}, {sum(p.numel() for p in model.parameters()):,} parameters")
for name, stage in model.named_children():
    curvature = [p.diag_ggn_mc.flatten() for p in stage.parameters()]
    if curvature:
        print(f"{name:8s} mean curvature {torch.cat(curvature).mean().item():.2e}")
