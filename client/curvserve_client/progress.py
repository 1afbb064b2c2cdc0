"""A line on the terminal for a call that takes long: what it waits for, and how far it is.

Calls only note where they are; one thread looks at them a few times a second and writes.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

ENVIRONMENT = "CURVSERVE_PROGRESS"
"""0 for never, 1 for always; otherwise where the error output is a terminal."""

_PATIENCE = 1.0  # seconds of a call before there is a line about it
_INTERVAL = 0.2


class Progress:
    """Where one call is.

    Attributes:
        phase: what it does now.
        done: bytes that it has sent or received.
        total: bytes that there are; 0 where that is not known.
        stream: where it is told of.
    """

    def __init__(self, about: str) -> None:
        """Begin.

        Args:
            about: what the call is for, and whom it asks.
        """
        self.at("waiting for the answer")
        self.stream: TextIO | None = sys.stderr
        self._about = about
        self._began = time.monotonic()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell of the call inside the block, where someone watches; leave no line behind."""
        if not _is_watched(self.stream):
            yield
            return
        _PAINTER.add(self)
        try:
            yield
        finally:
            _PAINTER.remove(self)

    def at(self, phase: str, total: int = 0) -> None:
        """Go on to something else."""
        self.phase, self.done, self.total = phase, 0, total

    def hide(self) -> None:
        """Make room for another line; this one comes back."""
        _PAINTER.hide()

    @property
    def seconds(self) -> float:
        """How long the call has taken."""
        return time.monotonic() - self._began

    def __str__(self) -> str:
        """Return the line."""
        share = ""
        if self.total:
            share = f" {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB"
        return f"{self.phase}{share}, {self.seconds:.0f} s: {self._about}"


class _Painter:
    """Writes about the oldest of the calls that take long."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, in a process that was forked: the thread and the lock stayed behind."""
        self._calls: dict[Progress, None] = {}
        self._lock = threading.Lock()
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._shown: tuple[Progress, int] | None = None

    def add(self, call: Progress) -> None:
        with self._lock:
            self._calls[call] = None
            self._begun.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._paint, daemon=True)
                self._thread.start()

    def remove(self, call: Progress) -> None:
        with self._lock:
            self._calls.pop(call, None)
            if self._shown is not None and self._shown[0] is call:
                self._erase()

    def hide(self) -> None:
        with self._lock:
            self._erase()

    def _paint(self) -> None:
        while self._begun.wait():
            time.sleep(_INTERVAL)
            with self._lock:
                self._show()

    def _show(self) -> None:
        call = next(iter(self._calls), None)
        if call is None:
            self._begun.clear()
        elif call.seconds >= _PATIENCE:
            self._erase()
            width = shutil.get_terminal_size().columns - 1
            text = str(call)[:width]
            self._shown = call, len(text)
            _write(call, text)

    def _erase(self) -> None:
        if self._shown is not None:
            call, size = self._shown
            self._shown = None
            _write(call, f"\r{' ' * size}\r")


_PAINTER = _Painter()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PAINTER.reset)


def _is_watched(stream: TextIO | None) -> bool:
    wanted = os.environ.get(ENVIRONMENT, "")
    if stream is None or wanted == "0":
        return False
    return wanted == "1" or (os.environ.get("TERM") != "dumb" and stream.isatty())


def _write(call: Progress, text: str) -> None:
    assert call.stream is not None
    try:
        call.stream.write(text)
        call.stream.flush()
    except (OSError, ValueError):
        pass  # a terminal that has gone is nothing that a step should fail by
