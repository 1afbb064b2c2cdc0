"""Everything that docs/performance.md shows: this engine, its peers, and a server.

    make bench                                                 # all of it, into build/bench
    python -m benchmarks [PART ...] [--rounds 20] [--seconds 20] [--threads 1 2] [--device cuda]
                         [--net NAME ...] [--quantity NAME ...] [--batch 512] [--out FOLDER]

Parts: passes (gradient and a quantity, every contestant on every net), steps (a whole step, in
process and over HTTP), memory (peak of a pass), growth (time over size), training (time while a net
learns), page (a step while the page is open in a browser), scaling (a step on workers: time,
memory, constants), plots (drawn from the JSON files that are in the folder). Each part prints its
tables and writes them, and a JSON file. benchmarks.wire, benchmarks.layer_rules and
benchmarks.sizing are commands of their own.
"""

import argparse
import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.nets import CASES
from benchmarks.options import Options, Part
from curvserve.bench import INSTALL, QUANTITIES, WrongNumbers, about, missing, say
from curvserve.server.device import DeviceNotFound, find_device

PARTS = ("passes", "steps", "memory", "growth", "training", "page", "scaling")
PLOTS = "plots"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are named, or all, and draw."""
    about_it = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m benchmarks", description=about_it)
    parser.add_argument("part", nargs="*", help=f"{', '.join([*PARTS, PLOTS])}; all without one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0, help="for a net, once it has three")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu", help="auto, cpu, or a GPU as cuda:0")
    parser.add_argument("--net", nargs="+", choices={case.name for case in CASES}, default=[])
    parser.add_argument("--quantity", nargs="+", choices=QUANTITIES, default=[])
    parser.add_argument("--batch", type=int, help="in place of each net's own")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args(arguments)
    if unknown := sorted({*given.part} - {*PARTS, PLOTS}):
        parser.error(f"no part is called {unknown[0]}; there are: {', '.join([*PARTS, PLOTS])}")
    try:
        device = find_device(given.device)
    except DeviceNotFound as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    options = Options(
        given.rounds,
        given.seconds,
        tuple(given.threads),
        device,
        tuple(given.net),
        tuple(given.quantity),
        given.batch,
    )
    say(", ".join(f"{key} {value}" for key, value in about(options.device).items()))
    say(f"median of {options.rounds} rounds in turns or of {options.seconds:g} s, milliseconds\n")
    for name in given.part or PARTS:
        if name != PLOTS:
            _run(name, options, given.out)
    _draw(given.out)
    if absent := missing():
        say(f"not installed, so not timed: {', '.join(absent)}; {INSTALL}")


def _run(name: str, options: Options, folder: Path) -> None:
    # each needs packages of its own, a browser's for one
    part: Part = import_module(f"benchmarks.{name}").part
    text = ""
    try:
        for result in part(options):
            text = "\n".join(result.lines)
            (folder / f"{name}.txt").write_text(text)
            (folder / f"{name}.json").write_text(json.dumps(result.figures, indent=1))
    except WrongNumbers as error:
        raise SystemExit(f"benchmarks: {error}") from error
    say(f"## {name}\n\n{text}")


def _draw(folder: Path) -> None:
    if find_spec("matplotlib") is None:
        say(f"no plots without matplotlib: {INSTALL}")
        return
    from benchmarks import plots

    for file in plots.draw(folder):
        say(f"drawn: {file}")


if __name__ == "__main__":
    main()
