"""`curvserve demo`: a server process, a remote loop, real handwritten digits."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from curvserve.data import load_digits
from tests.documentation.pages import shape, shown
from tests.models.idx import write_mnist
from tests.server.process import PATIENCE, ROOT, forked, python

DEMO = [sys.executable, "-m", "curvserve", "demo"]
LINE = re.compile(r"Iteration +(\d+)/(\d+)   Minibatch Loss \d+\.\d{3}  Accuracy \d+%")


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def held_out(line: str) -> tuple[float, int]:
    found = re.fullmatch(r"held-out accuracy (.*)% on (\d+) digits .*", line)
    assert found, line
    return float(found[1]), int(found[2])


def test_a_hundred_steps_reach_85_percent_and_print_what_the_readme_shows() -> None:
    printed = lines_of(subprocess.run(DEMO, capture_output=True, text=True, cwd=ROOT))
    lines, expected = shape("\n".join(printed)), shape("\n".join(shown("make demo")))
    gap = expected.index("...")
    assert lines[:gap] == expected[:gap]
    assert lines[-len(expected) + gap + 1 :] == expected[gap + 1 :]
    first, *log, accuracy, speed, server = printed
    address = first.removeprefix("curvserve: serving mnist_cnn at ")
    numbers = [tuple(map(int, found.groups())) for line in log if (found := LINE.fullmatch(line))]
    assert numbers == [(number, 100) for number in range(1, 101)]
    assert held_out(accuracy)[0] > 85 and held_out(accuracy)[1] == 297
    assert re.fullmatch(r"100 steps over HTTP in [\d.]+ s: [\d.]+ steps/s", speed)
    assert server == f"server and page: {address}"


def test_real_mnist_is_trained_from_where_a_folder_holds_it(tmp_path: Path) -> None:
    parts = {}
    for part, samples in (("train", 200), ("test", 40)):
        images, labels = load_digits("train")
        parts[part] = (images[:samples, 0].numpy(), labels[:samples].byte().numpy())
    write_mnist(tmp_path, **parts)
    options = ("--data-dir", str(tmp_path), "--steps", "5", "--json")
    told = json.loads("\n".join(lines_of(python("-m", "curvserve", "demo", *options))))
    assert list(told) == ["server", "steps", "seconds", "accuracy", "held_out"]
    assert (told["steps"], told["held_out"]) == (5, 40) and 0 <= told["accuracy"] <= 1


def test_the_server_stays_up_if_asked_until_ctrl_c() -> None:
    with forked(["demo", "--keep", "--steps", "1"], {}, log=False) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next(line for line in lines if line.startswith("server and page: ")).split()[-1]
        assert "Ctrl-C" in next(lines)
        assert httpx.get(f"{address}/v1/sessions/mnist_cnn").json()["version"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert not answers(address)


def answers(address: str) -> bool:
    try:
        httpx.get(f"{address}/livez")
    except httpx.ConnectError:
        return False
    return True
