"""BackPACK's small example on this engine: gradient over the diagonal of the Gauss-Newton matrix.

    python examples/diag_ggn_mnist.py [--data-dir FOLDER]

Trains on real MNIST where FOLDER/MNIST/raw holds it (nothing is downloaded), on 1,500 bundled
handwritten digits otherwise. Takes a few seconds on two CPU cores; starts near 10% and ends above
85% on the last ten batches. Two things differ from the original: gradients are fresh in every
iteration, and the step size is 0.05.
"""

import argparse
from itertools import chain, repeat

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curvserve.data import load_digits, load_mnist, normalise
from curvserve.engine import backpack, extend
from curvserve.engine.extensions import DiagGGNMC
from curvserve.engine.layers import Flatten
from curvserve.optim import DiagGGNOptimizer

BATCH_SIZE = 64
LR = 0.05
DAMPING = 1.0
MAX_ITER = 100


def get_accuracy(output: Tensor, targets: Tensor) -> float:
    """Return the share of samples whose largest logit is the target's."""
    return output.argmax(dim=1).eq(targets).float().mean().item()


parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("--data-dir", default="./data", help="holds MNIST/raw/*-ubyte (%(default)s)")
arguments = parser.parse_args()

try:
    images, labels = load_mnist(arguments.data_dir, "train")
except FileNotFoundError as missing:
    print(f"{missing}; training on the bundled digits")
    images, labels = load_digits("train")

torch.manual_seed(0)
loader = DataLoader(
    TensorDataset(normalise(images), labels), batch_size=BATCH_SIZE, shuffle=True, drop_last=True
)

model = nn.Sequential(
    nn.Conv2d(1, 20, 5, 1),
    nn.ReLU(),
    nn.MaxPool2d(2, 2),
    nn.Conv2d(20, 50, 5, 1),
    nn.ReLU(),
    nn.MaxPool2d(2, 2),
    Flatten(),
    nn.Linear(4 * 4 * 50, 500),
    nn.ReLU(),
    nn.Linear(500, 10),
)
loss_function = nn.CrossEntropyLoss()

extend(model)
extend(loss_function)

optimizer = DiagGGNOptimizer(model.parameters(), lr=LR, damping=DAMPING)

accuracies = []
for batch_idx, (x, y) in enumerate(chain.from_iterable(repeat(loader))):
    optimizer.zero_grad()
    output = model(x)
    accuracy = get_accuracy(output, y)

    with backpack(DiagGGNMC()):
        loss = loss_function(output, y)
        loss.backward()
    optimizer.step()

    accuracies.append(accuracy)
    print(
        f"Iteration {batch_idx:3d}/{MAX_ITER}   "
        f"Minibatch Loss {loss.item():.3f}  Accuracy {accuracy * 100:.0f}%"
    )
    if batch_idx >= MAX_ITER:
        break

last = accuracies[-10:]
print(f"mean accuracy of the last {len(last)} minibatches: {sum(last) / len(last):.1%}")
