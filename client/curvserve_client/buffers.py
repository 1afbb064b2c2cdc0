"""Receive buffers that are used again once nothing looks at them any more."""

import threading

_STEP = 1024 * 1024
_KEPT = 2


class BufferPool:
    """Hands out memory for answers, and takes it back by itself.

    A fresh buffer costs a page fault per 4 KiB, about half a millisecond per MB, at every answer.
    A `bytearray` refuses to change its length while a memoryview of it lives, and every tensor that
    `wire.decode` makes holds such a view: so the buffer itself says whether it is free.
    """

    def __init__(self) -> None:
        """Start with no memory."""
        self._buffers: list[bytearray] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> memoryview:
        """Return a writable view of `size` bytes, whose content is arbitrary.

        Args:
            size: how many bytes.

        Returns:
            A view that owns its memory until it and all views of it are gone.
        """
        with self._lock:
            for buffer in self._buffers:
                if len(buffer) >= size and _is_free(buffer):
                    return memoryview(buffer)[:size]
            return memoryview(self._new(size))[:size]

    def _new(self, size: int) -> bytearray:
        buffer = bytearray(max(_STEP, -(-size // _STEP) * _STEP))
        self._buffers = [buffer, *self._buffers][:_KEPT]
        return buffer


def _is_free(buffer: bytearray) -> bool:
    try:
        # one byte less and one more: neither moves the memory, and both need it unobserved
        buffer.append(buffer.pop())
    except BufferError:
        return False
    return True
