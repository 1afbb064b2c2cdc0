"""An ordinary loop around a model that lives on a server: scheduler, clipping, a checkpoint.

    curvserve serve --model mnist_cnn
    python examples/remote_loop.py [--url http://127.0.0.1:8000]

Two epochs of 1,500 bundled handwritten digits in a new session. Takes some seconds on two CPU
cores, server included; the loss starts near 2.3, and above 85% of 297 other digits are right at the
end.
"""

import argparse

import torch
from curvserve_client import Client, RemoteDiagGGNOptimizer
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from curvserve.data import load_digits

EPOCHS = 2
BATCH_SIZE = 32

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (%(default)s)")
arguments = parser.parse_args()

torch.manual_seed(0)
loader = DataLoader(  # images as bytes: a quarter of what travels, normalised on the server
    TensorDataset(*load_digits("train")), batch_size=BATCH_SIZE, shuffle=True, drop_last=True
)

with Client(arguments.url) as client:
    session = client.create_session("mnist_cnn", seed=0)
    optimizer = RemoteDiagGGNOptimizer(session.parameters(), lr=0.05, damping=1.0)
    scheduler = CosineAnnealingLR(optimizer, EPOCHS * len(loader), eta_min=0.01)
    for epoch in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            loss = session.loss(x, y)
            loss.backward()
            norm = clip_grad_norm_(session.parameters(), 2.0)
            optimizer.step()
            scheduler.step()
            if session.version % 10 == 1:
                lr = scheduler.get_last_lr()[0]
                print(
                    f"step {session.version:3d}   loss {loss:.3f}   norm {norm:.2f}   lr {lr:.3f}"
                )
        session.checkpoint(f"epoch-{epoch + 1}")
    found = session.evaluate(*load_digits("test"))
    print(f"held-out accuracy {found.metrics['accuracy']:.1%} at version {found.version}")
    client.delete_session(session.name)
