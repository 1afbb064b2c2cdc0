"""Which digits does a network learn most from? The norms of its gradients, sample by sample.

Trains a small network on the bundled digits, then lists the training digits with the largest
gradient: the ambiguous and the mislabelled ones (ten labels are changed on purpose).

    python examples/per_sample_gradient_norms.py

Takes about 4 seconds on two cores; the 10 changed labels are among the 20 largest norms.
"""

import torch
from torch import nn

from curvserve.data import load_digits, normalise
from curvserve.engine import backpack, extend
from curvserve.engine.extensions import BatchL2Grad

torch.manual_seed(0)
images, labels = load_digits()
images, labels = normalise(images), labels.clone()
changed = torch.randperm(len(labels))[:10]
labels[changed] = (labels[changed] + 1 + torch.randint(9, (10,))) % 10

model = extend(nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 64), nn.Tanh(), nn.Linear(64, 10)))
loss = extend(nn.CrossEntropyLoss())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for _ in range(10):
    for batch in torch.randperm(len(labels)).split(50):
        optimizer.zero_grad()
        loss(model(images[batch]), labels[batch]).backward()
        optimizer.step()

model.zero_grad()
with backpack(BatchL2Grad()):
    loss(model(images), labels).backward()

squared = torch.stack([p.batch_l2 for p in model.parameters()]).sum(0)  # type: ignore[attr-defined]  # an extension puts it there
norms = squared.sqrt() * len(labels)  # of the samples' own gradients, not of their shares
largest = norms.topk(20)
for norm, index in zip(largest.values.tolist(), largest.indices.tolist(), strict=True):
    note = "changed" if index in changed else ""
    print(f"digit {index:4d}, labelled {labels[index].item()}: gradient norm {norm:6.2f} {note}")
found = sum(index in changed for index in largest.indices.tolist())
print(
    f"{found} of the 10 changed labels are among the 20 largest; the median is {norms.median():.2f}"
)
