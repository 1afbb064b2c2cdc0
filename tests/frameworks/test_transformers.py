"""The Trainer of transformers: clipping, accumulation, a scheduler."""

from pathlib import Path
from typing import Any

import pytest
from curvserve_client import RemoteSession
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.client.ways import Way, batches
from tests.frameworks.loops import (
    MAX_NORM,
    ROUNDING,
    WAYS,
    check_same,
    model_of,
    plain_loop,
    scheduled,
)


def trainer(way: Way, folder: Path, **options: Any) -> Any:
    """A trainer that takes the model's result for the loss, and the batches in their order."""
    import transformers  # takes seconds, for which no other test shall wait

    class Trainer(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], **_: Any) -> Tensor:
            loss: Tensor = model(**inputs)
            return loss

        def get_train_dataloader(self) -> DataLoader[Any]:
            named = [{"inputs": inputs, "targets": targets} for inputs, targets in batches()]
            return DataLoader(named, batch_size=None)  # type: ignore[arg-type]  # batches are ready made

    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    quiet |= {"num_train_epochs": 1, "max_grad_norm": 0.0}
    arguments = transformers.TrainingArguments(output_dir=str(folder), **(quiet | options))
    optimizer = way.optimizer()
    return Trainer(model_of(way), arguments, optimizers=(optimizer, scheduled(optimizer)))


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
    ours = WAYS[way](session)
    options = {"gradient_accumulation_steps": accumulated, "max_grad_norm": max_norm or 0.0}
    trainer(ours, tmp_path, **options).train()
    expected = plain_loop(WAYS[way](twin), accumulated, max_norm)
    check_same(ours.weights(), expected, within=ROUNDING if max_norm else 0)


@pytest.mark.parametrize("way", WAYS)
def test_the_trainer_goes_on_from_its_checkpoint(
    way: str, session: RemoteSession, twin: RemoteSession, tmp_path: Path
) -> None:
    half = WAYS[way](session)
    trainer(half, tmp_path, save_strategy="epoch").train()
    trainer(half, tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)
    check_same(half.weights(), plain_loop(WAYS[way](twin), epochs=2), within=0)
