"""docs/models.md, followed by a stranger: its files, its commands, its client."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from curvserve_client.wire import decode
from typer.testing import CliRunner

from curvserve.cli import app
from curvserve.models import Model, check, resolve
from tests.documentation.pages import ROOT, blocks

PAGE = ROOT / "docs" / "models.md"
ADDRESS = "http://127.0.0.1:8000"
PYTHON = [block.text for block in blocks("python") if block.page == PAGE]
FILE, CLIENT, WRITTEN, WEIGHTS = PYTHON
COMMANDS = [b.text.removeprefix("$ ") for b in blocks("console") if b.page == PAGE]

WAYS = os.pathsep.join([str(ROOT), str(ROOT / "client")])


def commands(word: str) -> list[list[str]]:
    lines = [line.removeprefix("$ ") for text in COMMANDS for line in text.splitlines()]
    return [shlex.split(line) for line in lines if word in line]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stranger's folder, with the page's two files in it."""
    (tmp_path / "spiral.py").write_text(FILE)
    (tmp_path / "train.py").write_text(CLIENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("spiral", None)


def test_a_model_of_twenty_lines_is_served_and_trained_by_the_pages_words(folder: Path) -> None:
    assert len(FILE.splitlines()) <= 20
    environment = {**os.environ, "PYTHONPATH": WAYS}
    (serve,) = commands("serve --model spiral:model")
    (train,) = commands("train.py")
    assert serve[0] == "curvserve" and train[0] == "python"
    with subprocess.Popen(
        [sys.executable, "-m", *serve, "--port", "0", "--log-level", "error"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            assert said.startswith("curvserve: serving spiral at http://")
            # any free port instead of the page's
            (folder / "train.py").write_text(CLIENT.replace(ADDRESS, said.split()[-1]))
            printed = subprocess.check_output(
                [sys.executable, *train[1:]], text=True, env=environment
            )
        finally:
            server.terminate()
        assert server.wait(60) == 0
    found = re.fullmatch(r"loss ([\d.]+), accuracy (\d+)%, version 100\n", printed)
    assert found, printed
    assert float(found[1]) < 0.2 and int(found[2]) > 95


def test_the_command_that_checks_it_tells_what_it_takes_and_has(folder: Path) -> None:
    ((_, *arguments),) = commands("curvserve models ")
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.output
    told = dict(line.split(maxsplit=1) for line in printed.stdout.splitlines())
    assert (told["name"], told["parameters"], told["loss"]) == ("spiral", "322", "CrossEntropyLoss")
    assert (told["inputs"], told["refused"]) == ("float32 [N, 2]", "none")
    assert told["targets"] == "int64 [N], values from 0 to 1"
    assert "diag_ggn_mc" in told["quantities"]


def test_the_model_with_written_specifications_works() -> None:
    known: dict[str, object] = {}
    exec(WRITTEN, known)
    assert isinstance(known["model"], Model)
    check(known["model"])
    images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    assert torch.equal(known["model"].inputs.convert(images), torch.ones(2, 1, 8, 8))


def test_the_file_of_weights_is_one_of_a_state_dict(folder: Path) -> None:
    network = resolve("torchvision:squeezenet1_1,size=32,classes=3").build()
    exec(WEIGHTS, {"net": network})
    held, _ = decode(bytearray((folder / "weights.safetensors").read_bytes()))
    assert held.keys() == network.state_dict().keys()


def test_every_other_model_that_the_page_serves_exists() -> None:
    others = [command[command.index("--model") + 1] for command in commands("curvserve serve")]
    assert [resolve(other).name for other in others if "spiral" not in other] == ["resnet18"]
