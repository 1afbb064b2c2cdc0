"""What the pages say is so: their Python runs, their commands exist and print what is shown."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import curvserve_client
import pytest
from curvserve_client import connect
from torch import Tensor
from torch.utils.data import DataLoader

from curvserve.data import load_digits, normalise
from curvserve.models.mnist_cnn import network
from tests.documentation.pages import PAGES, ROOT, Block, blocks, shown
from tests.documentation.tables import PAGE, filled
from tests.models.idx import write_mnist
from tests.server.process import python, serving

ADDRESS = "http://127.0.0.1:8000"
LINK = re.compile(r"\[[^]]*\]\(([^)#:]+)\)")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving("--model", "mnist_cnn") as server:
        yield server.address


CLIENT = ROOT / "docs" / "client.md"
MODELS = ROOT / "docs" / "models.md"  # followed in test_models_page.py
WHOLE = (PAGE, CLIENT, MODELS)  # their blocks stand on those before
SHELL = [CLIENT.with_name(name) for name in ("getting-started.md", "wire.md")]


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    images, labels = load_digits("train")
    return [(normalise(images[i : i + 8]), labels[i : i + 8]) for i in range(0, 8 * count, 8)]


@pytest.mark.parametrize("block", [b for b in blocks("python") if b.page not in WHOLE], ids=str)
def test_a_python_block_runs(block: Block, address: str) -> None:
    known: dict[str, object] = {"loader": batches(2), "net": network()}
    exec(compile(block.text.replace(ADDRESS, address), str(block), "exec"), known)
    for name in ("session", "remote"):
        if name in known:
            session = getattr(known[name], "session", known[name])
            assert session.version >= 2  # two batches, two steps or pushes
            session.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages use curl, and there is none")
@pytest.mark.parametrize("page", SHELL, ids=lambda page: page.name)
def test_the_shell_of_a_page_runs_from_top_to_bottom(
    page: Path, address: str, tmp_path: Path
) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks("bash"):
        if block.page == page:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text.replace(ADDRESS, address)],
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"


def test_the_engines_page_runs_from_top_to_bottom() -> None:
    known: dict[str, object] = {}
    for block in blocks("python"):
        if block.page == PAGE:
            exec(compile(block.text, str(block), "exec"), known)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # Lightning's use
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # BackPACK's hooks
def test_the_clients_page_runs_from_top_to_bottom(address: str) -> None:
    """Against a live server; each block that trains makes as many versions as it says."""
    known: dict[str, Any] = {"loader": DataLoader(batches(4), batch_size=None), "net": network()}
    for block in blocks("python"):
        if block.page == CLIENT:
            exec(compile(block.text.replace(ADDRESS, address), str(block), "exec"), known)
    with connect(address, session=known["again"].name) as session:
        # A, B and clipping 4 each, accumulation 1 and 1, groups 4, pipeline 4, again 1, Lightning 2
        assert session.version == 25
    assert known["session"].version == 4


def test_what_the_clients_page_says_is_raised_is_what_the_client_says() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", CLIENT.read_text(), re.MULTILINE)
    said = [words for _, words, _ in rows[rows.index(("what", "says", "instead")) + 2 :]]
    assert len(said) > 10
    package = Path(curvserve_client.__file__).parent
    source = "".join(path.read_text() for path in package.rglob("*.py"))
    sentences = re.sub(r'"\s*\n\s*f?"', "", source)
    assert [words for words in said if words.strip("`") not in sentences] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_pages_tables_are_those_of_the_registries(page: Path) -> None:
    assert filled(page.read_text()) == page.read_text(), (
        "write them anew: python -m tests.documentation.tables"
    )


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("per_sample_gradient_norms", r"(\d+) of the 10 changed labels"),
        ("resnet18_curvature", r"fc       mean curvature (\d.*)"),
        ("tied_language_model", r"step  99: loss (\d.*)"),
        ("laplace_posterior", r"accuracy held out: (0\.9\d+)"),
    ],
)
def test_an_example_runs_to_its_end(name: str, last: str) -> None:
    printed = python(f"examples/{name}.py")
    found = re.search(last, printed.stdout + printed.stderr)
    assert found, printed.stdout + printed.stderr
    if name == "per_sample_gradient_norms":
        assert int(found[1]) >= 8
    if name == "tied_language_model":
        assert float(found[1]) < 2


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("remote_loop", r"held-out accuracy ([\d.]+)% at version 92"),
        ("remote_async", r"damping  0\.3: ([\d.]+)% of the digits held out\n\Z"),  # best last
        ("lightning_remote", r"held-out accuracy ([\d.]+)% at version 72"),
        ("data_parallel", r"held-out accuracy ([\d.]+)% at version 60"),
    ],
)
def test_an_example_trains_through_a_server(name: str, last: str, address: str) -> None:
    printed = python(f"examples/{name}.py", "--url", address)
    found = re.search(last, printed.stdout)
    assert found, printed.stdout + printed.stderr
    assert float(found[1]) > 80


def make(*arguments: str) -> list[str]:
    """Return what make prints, whether or not a make of its own runs these tests."""
    command = ["make", "--no-print-directory", *arguments]
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.check_output(command, cwd=ROOT, text=True, env=environment).splitlines()


def test_make_demo_is_the_command_that_the_readme_shows_the_output_of() -> None:
    """Which is compared where the demo is run."""
    assert make("--dry-run", "demo")[-1].endswith("/curvserve demo")
    assert shown("make demo")


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)`", page.read_text())}
    named |= {b.text.split()[2] for b in blocks("console") if b.text.startswith("$ make ")}
    assert {"demo", "test"} <= named <= targets


def test_make_lists_every_target() -> None:
    listed = "\n".join(make())
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert re.findall(r"make (\S+)", listed) == phony[1].split()


def test_continuous_integration_runs_the_readmes_command_and_nothing_more() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[-1] == "exec make test"
    assert shown("make test")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_links_to_what_exists(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert broken == []


def test_the_example_ends_above_85_percent() -> None:
    done = python("examples/diag_ggn_mnist.py", "--data-dir", "no-such-folder")
    assert done.returncode == 0, done.stderr
    first, *log, last = done.stdout.splitlines()
    assert first.endswith("training on the bundled digits")
    line = re.compile(r"Iteration +(\d+)/100   Minibatch Loss \d+\.\d{3}  Accuracy (\d+)%")
    found = [line.fullmatch(text) for text in log]
    assert [int(match[1]) for match in found if match] == list(range(101))
    accuracies = [int(match[2]) for match in found if match]
    assert sum(accuracies[-10:]) / 10 > 85
    assert last.startswith("mean accuracy of the last 10 minibatches: ")


def test_the_example_trains_from_real_mnist_files(tmp_path: Path) -> None:
    images, labels = load_digits("train")
    part = (images[:128, 0].numpy(), labels[:128].byte().numpy())
    write_mnist(tmp_path, train=part, test=part)
    done = python("examples/diag_ggn_mnist.py", "--data-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("Iteration   0/100   Minibatch Loss ")


def test_every_test_that_a_page_names_exists() -> None:
    named = {
        (page, file, name)
        for page in PAGES
        for file, name in re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", page.read_text())
    }
    assert named
    everywhere = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page, file, name in named:
        text = (ROOT / file).read_text() if file else everywhere
        assert f"def {name}(" in text, f"{page.name} names {file}::{name}"
    files = {f for page in PAGES for f in re.findall(r"`(tests/[\w/.]+)`", page.read_text())}
    assert [file for file in files if not (ROOT / file).exists()] == []
