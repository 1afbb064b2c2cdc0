"""Writes every attack to its file: python -m tests.attacks.make.

The files are for other readers of the same formats too; a test holds that they are what this says.
"""

from pathlib import Path

from tests.attacks import hostile_bodies, hostile_requests

HERE = Path(__file__).parent


def files() -> dict[Path, bytes]:
    """Return path -> content of every file."""
    found = {HERE / "bodies" / f"{name}.bin": a.body for name, a in hostile_bodies.ATTACKS.items()}
    return found | {
        HERE / "requests" / f"{n}.http": a.sent for n, a in hostile_requests.ATTACKS.items()
    }


def write() -> None:
    """Write them all; what lies there and is no attack any more goes."""
    wanted = files()
    for path, content in wanted.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    for path in present() - wanted.keys():
        path.unlink()


def present() -> set[Path]:
    """Return the files that are there."""
    return {path for path in HERE.glob("*/*") if path.suffix in (".bin", ".http")}


if __name__ == "__main__":
    write()
