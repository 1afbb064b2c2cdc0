"""Lightning trains a model that lives on a server: its trainer, clipping, accumulation, scheduler.

    pip install lightning
    curvserve serve --model mnist_cnn
    python examples/lightning_remote.py [--url http://127.0.0.1:8000]

Three epochs of 1,500 bundled handwritten digits in a new session. Takes some seconds on two CPU
cores, most of them to import Lightning; above 80% of 297 other digits are right at the end.
"""

import argparse
from typing import Any

import lightning
import torch
from curvserve_client import Client, RemoteDiagGGNOptimizer, RemoteSession
from torch import Tensor
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from curvserve.data import load_digits

EPOCHS = 3
BATCH_SIZE = 32


class Digits(lightning.LightningModule):  # type: ignore[misc] # read as untyped
    """A session's parameters and losses, as Lightning wants them."""

    def __init__(self, session: RemoteSession) -> None:
        super().__init__()
        self.model = session.module()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss; gradient and curvature stay on the server."""
        loss: Tensor = self.model(*batch)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer and a scheduler that halves the step after each epoch."""
        optimizer = RemoteDiagGGNOptimizer(self.model.parameters(), lr=0.1, damping=1.0)
        return {"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, 1, gamma=0.5)}


parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (%(default)s)")
arguments = parser.parse_args()

torch.manual_seed(0)
loader = DataLoader(TensorDataset(*load_digits("train")), batch_size=BATCH_SIZE, shuffle=True)

with Client(arguments.url) as client:
    session = client.create_session("mnist_cnn", seed=0)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        gradient_clip_val=2.0,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Digits(session), loader)
    found = session.evaluate(*load_digits("test"))
    print(f"held-out accuracy {found.metrics['accuracy']:.1%} at version {found.version}")
    client.delete_session(session.name)
