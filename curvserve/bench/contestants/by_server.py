"""This engine as a server computes: in a process whose malloc keeps what is freed."""

from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from ...memory import keep_freed
from ..case import Task
from .base import Contestant, Found
from .by_engine import Compiled


class Served(Contestant):
    """The compiled evaluation in a server's process, without the network.

    One process for all of them, over a pipe: 0.1 ms of each pass. Draws go on from this process's
    generator, as those of the others do.
    """

    name = "served"
    own = True

    def __init__(self, task: Task) -> None:
        """Have the process take the task."""
        super().__init__(task)
        _ask("begin", id(self), task, torch.get_num_threads(), torch.get_default_dtype())

    def run(self) -> None:
        """Do one pass."""
        _ask("run", id(self), torch.get_rng_state())

    def found(self) -> Found:
        """Return what the last pass computed."""
        found: Found = _ask("found", id(self))
        return found

    def drop(self) -> None:
        """Let go of it there."""
        _ask("drop", id(self))

    def __del__(self) -> None:
        """Let go of the task there."""
        _ask("end", id(self))


def _ask(*command: Any) -> Any:
    line = _process()
    line.send(command)
    answer = line.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


@cache
def _process() -> Connection:
    here, there = get_context("spawn").Pipe()
    get_context("spawn").Process(target=_serve, args=(there,), daemon=True).start()
    return here


def _serve(line: Connection) -> None:
    keep_freed()
    tasks: dict[int, Compiled] = {}
    while True:
        try:
            command, number, *arguments = line.recv()
        except EOFError:
            return
        try:
            line.send(_done(tasks, command, number, arguments))
        except Exception as error:
            line.send(error)


def _done(tasks: dict[int, Compiled], command: str, number: int, arguments: list[Any]) -> Any:
    if command == "begin":
        task, threads, dtype = arguments
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        tasks[number] = Compiled(task)
    elif command == "run":
        torch.set_rng_state(arguments[0])
        tasks[number].run()
    elif command == "found":
        return tasks[number].found()
    elif command == "drop":
        tasks[number].drop()
    else:
        tasks.pop(number, None)
    return None
