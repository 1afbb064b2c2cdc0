"""Lightning's automatic optimization: clipping, accumulation, a scheduler, a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from curvserve_client import RemoteSession
from torch import Tensor

from tests.client.ways import Way, Weights
from tests.frameworks.loops import (
    MAX_NORM,
    ROUNDING,
    WAYS,
    check_same,
    loader,
    model_of,
    plain_loop,
    scheduled,
)

# Lightning's own use of torch's tree specifications, and its advice where there is more to use
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning"),
]


def module_of(way: Way) -> Any:
    """The way as Lightning wants it."""
    import lightning  # takes seconds, for which no other test shall wait

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of(way)

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss: Tensor = self.model(*batch)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = way.optimizer()
            scheduler = {"scheduler": scheduled(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return Module()


def trainer(**options: Any) -> Any:
    import lightning

    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    options = {"max_epochs": 1, **quiet, **options}
    return lightning.Trainer(accelerator="cpu", devices=1, **options)


def trained(way: Way, accumulated: int, max_norm: float | None) -> Weights:
    options = {"accumulate_grad_batches": accumulated, "gradient_clip_val": max_norm}
    trainer(**options).fit(module_of(way), loader())
    return way.weights()


@pytest.mark.parametrize(("accumulated", "max_norm"), [(1, None), (2, MAX_NORM)])
@pytest.mark.parametrize("way", WAYS)
def test_lightning_trains_to_the_parameters_of_a_plain_loop(
    way: str, accumulated: int, max_norm: float | None, session: RemoteSession, twin: RemoteSession
) -> None:
    found = trained(WAYS[way](session), accumulated, max_norm)
    expected = plain_loop(WAYS[way](twin), accumulated, max_norm)
    check_same(found, expected, within=ROUNDING if max_norm else 0)


@pytest.mark.parametrize("way", WAYS)
def test_lightning_goes_on_from_its_checkpoint(
    way: str, session: RemoteSession, twin: RemoteSession, tmp_path: Path
) -> None:
    half, data = WAYS[way](session), loader()
    first = trainer(max_epochs=1, default_root_dir=tmp_path)
    first.fit(module_of(half), data)
    first.save_checkpoint(tmp_path / "one")
    second = trainer(max_epochs=2, default_root_dir=tmp_path)
    second.fit(module_of(half), data, ckpt_path=tmp_path / "one", weights_only=True)
    check_same(half.weights(), plain_loop(WAYS[way](twin), epochs=2), within=0)
