"""Real MNIST, read from a folder that holds its idx files."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor


def load_mnist(folder: str | Path, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Return one part of MNIST from `FOLDER/MNIST/raw`.

    The folder is laid out as `torchvision.datasets.MNIST` does it. Nothing is downloaded.

    Args:
        folder: the folder that holds `MNIST/raw/train-images-idx3-ubyte` and its siblings,
            gunzipped.
        split: `"train"` or `"test"`.

    Returns:
        images: uint8 [N, 1, 28, 28].
        labels: int64 [N].

    Raises:
        FileNotFoundError: the folder does not hold the set; the message says what is expected.
    """
    # slow to import, and only needed here
    from torchvision.datasets import MNIST  # type: ignore[import-untyped]  # it has none

    try:
        dataset = MNIST(str(folder), train=split == "train", download=False)
    except RuntimeError as error:
        raw = Path(folder, "MNIST", "raw")
        message = f"no MNIST in {folder}: expected the four gunzipped idx files in {raw}"
        raise FileNotFoundError(message) from error
    return torch.as_tensor(dataset.data).unsqueeze(1), torch.as_tensor(dataset.targets)
