"""A wire between browser and server that can be cut."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Listens on loopback and carries bytes to a server and back.

    Attributes:
        address: where it listens.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("http://").partition(":")
        self._server = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "http://{}:{}".format(*self._listener.getsockname())
        self._connected: set[socket.socket] = set()
        self._whole = True
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every connection, and each new one at once, until `mend`."""
        with self._lock:
            self._whole = False
            for each in self._connected:
                _shut(each)

    def mend(self) -> None:
        """Carry again."""
        with self._lock:
            self._whole = True

    def close(self) -> None:
        """Carry no more."""
        _shut(self._listener)  # which ends `accept`
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(near,)))
                self._threads[-1].start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._server) as far:
            with self._lock:
                if not self._whole:
                    return
                self._connected |= {near, far}
            back = threading.Thread(target=_carry, args=(far, near))
            back.start()
            _carry(near, far)
            back.join()
            with self._lock:
                self._connected -= {near, far}


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    _shut(source)
    _shut(sink)


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(server: str) -> Iterator[Relay]:
    """Run a wire to a server for a block."""
    made = Relay(server)
    try:
        yield made
    finally:
        made.close()
