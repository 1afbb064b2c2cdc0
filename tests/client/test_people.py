"""What people see: tables in a notebook, numbers in whatever keeps them."""

from collections.abc import Mapping

import pytest
import torch
from curvserve_client import Client, DiagGGN, RemoteSession
from curvserve_client.display import html_table
from torch import Tensor

Batches = list[tuple[Tensor, Tensor]]


class Board:
    """Keeps numbers one by one, as TensorBoard does."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], float] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.kept[tag, global_step] = scalar_value


class Run:
    """Keeps the numbers of a step together, as Weights & Biases does."""

    def __init__(self) -> None:
        self.kept: list[tuple[Mapping[str, float], int]] = []

    def log(self, data: Mapping[str, float], step: int) -> None:
        self.kept.append((data, step))


def test_each_step_is_told_to_every_writer(session: RemoteSession, batches: Batches) -> None:
    board, run = Board(), Run()
    session.log_to(board, "train/")
    session.log_to(run)
    first = session.step(*batches[0])
    session.forward_backward(*batches[1])
    second = session.optim_step()
    with session.pipeline() as pipeline:
        third = pipeline.step(*batches[2]).result()
    for result, (data, step) in zip((first, second, third), run.kept, strict=True):
        assert step == result.version
        assert data["loss"] == result.loss
        assert data["accuracy"] == result.metrics["accuracy"]
        assert data["step_norm"] == result.step_norm
        assert data["update/damping"] == result.update["damping"] == 1.0
        assert board.kept["train/loss", result.version] == result.loss


def test_what_keeps_no_numbers_is_refused(session: RemoteSession) -> None:
    with pytest.raises(TypeError, match="a list has neither add_scalar nor log"):
        session.log_to([])  # type: ignore[arg-type]  # that it is refused is the claim


def test_a_notebook_shows_sessions_and_results(client: Client, batches: Batches) -> None:
    session = client.create_session("mnist_cnn", rule=DiagGGN(quantiles=True))
    shown = session._repr_html_()
    assert '<th scope="row" style="text-align:left">model</th>' in shown
    assert "431,080 in 8 tensors" in shown and "diag_ggn(lr=0.05" in shown
    result = session.step(*batches[0])
    step = result._repr_html_()
    assert "step to version 1" in step and f"{result.loss:.6g}" in step
    assert "curvature_q50" in step and "damped" in step
    found = session.curvature(*batches[0])
    norm = found.tensors["grad"]["0.bias"].norm()
    assert f"norm {norm:.3g}" in found._repr_html_()
    client.delete_session(session.name)


def test_what_is_shown_is_escaped() -> None:
    assert "<script>" not in html_table("<script>", {"<script>": "<script>"})


def test_the_share_of_damped_coordinates() -> None:
    h = {"p": torch.tensor([0.1, 0.2, 0.3, 5.0])}
    rule = DiagGGN(damping=0.25, quantiles=True)
    update = rule.update(
        {"p": torch.zeros(4)},
        {"grad": {"p": torch.ones(4)}, "diag_ggn_mc": h},
        rule.start({"p": torch.zeros(4)}),
        loss=0.0,
        loss_at=lambda _: 0.0,
    )
    assert float(update.metrics["damped"]) == 0.5
