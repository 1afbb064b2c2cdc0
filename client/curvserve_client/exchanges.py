"""Calls as programs that do no I/O: each yields requests and is sent what their answers hold."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from .messages import Request

T = TypeVar("T")

Exchange = Generator[Request[Any], Any, T]
"""Yields what is to be sent, is sent what came of it or thrown why not, and returns the result."""


def run(exchange: Exchange[T], send: Callable[[Request[Any]], Any]) -> T:
    """Carry an exchange out.

    Args:
        exchange: what is to be done.
        send: sends a request and returns what its answer holds.
    """
    try:
        request = next(exchange)
        while True:
            try:
                result = send(request)
            except BaseException as error:
                request = exchange.throw(error)
            else:
                request = exchange.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def run_async(exchange: Exchange[T], send: Callable[[Request[Any]], Awaitable[Any]]) -> T:
    """Carry an exchange out without blocking the event loop; see `run`."""
    try:
        request = next(exchange)
        while True:
            try:
                result = await send(request)
            except BaseException as error:
                request = exchange.throw(error)
            else:
                request = exchange.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
