"""The Trainer of transformers: clipping, accumulation, a scheduler."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from curvserve_client import RemoteSession
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.client.ways import Way, Weights, batches
from tests.frameworks.loops import (
    MAX_NORM,
    ROUNDING,
    WAYS,
    check_same,
    model_of,
    plain_loop,
    scheduled,
)


class Trainer(transformers.Trainer):
    """Takes the model's result for the loss, and the batches in their order."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], **_: Any) -> Tensor:
        loss: Tensor = model(**inputs)
        return loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        named = [{"inputs": inputs, "targets": targets} for inputs, targets in batches()]
        return DataLoader(named, batch_size=None)  # type: ignore[arg-type]


def trained(way: Way, accumulated: int, max_norm: float | None, folder: Path) -> Weights:
    optimizer = way.optimizer()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        gradient_accumulation_steps=accumulated,
        max_grad_norm=max_norm or 0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    both = (optimizer, scheduled(optimizer))
    Trainer(model_of(way), arguments, optimizers=both).train()
    return way.weights()


@pytest.mark.parametrize(("accumulated", "max_norm"), [(1, None), (2, MAX_NORM)])
@pytest.mark.parametrize("way", WAYS)
def test_the_trainer_comes_to_the_parameters_of_a_plain_loop(
    way: str,
    accumulated: int,
    max_norm: float | None,
    session: RemoteSession,
    twin: RemoteSession,
    tmp_path: Path,
) -> None:
    found = trained(WAYS[way](session), accumulated, max_norm, tmp_path)
    expected = plain_loop(WAYS[way](twin), accumulated, max_norm)
    check_same(found, expected, within=ROUNDING if max_norm else 0)
