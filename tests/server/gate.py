"""A served model that stops in the middle of its work until a test lets it go on.

Its forward pass connects to a port of the test's, and goes on when that connection is closed: so a
test knows that a computation is under way, for as long as it likes, without a clock.
"""

import os
import socket

import torch
from torch import Tensor, nn

from curvserve.models import Model, SampleSpec
from curvserve.models.dry_run import SAMPLES

PORT = "CURVSERVE_TEST_GATE"


class Gate(nn.Module):
    """Passes its input on after the test has opened it; what the server makes up goes through."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Say that the computation is under way, and wait."""
        if len(inputs) == SAMPLES:
            return inputs
        with socket.create_connection(("127.0.0.1", int(os.environ[PORT]))) as connection:
            connection.recv(1)
        return inputs


def model() -> Model:
    """Return the recipe: two inputs, one output, a gate before them."""
    return Model(
        name="gated",
        build=lambda: nn.Sequential(Gate(), nn.Linear(2, 1)),
        loss=nn.MSELoss,
        inputs=SampleSpec(shape=(2,), dtype=torch.float32),
        targets=SampleSpec(shape=(1,), dtype=torch.float32),
    )
