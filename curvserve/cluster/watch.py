"""Whether this process's own node of the cluster is still there."""

import logging
import os
import socket
import threading

import ray

log = logging.getLogger("curvserve.cluster")

INTERVAL = 1.0
MISSED = 3
"""So many looks in a row that find nobody are believed."""


class NodeWatch:
    """Ends this process where the raylet that it talks through is gone.

    Ray does not come back to a process whose raylet has died. What was acknowledged is in the
    journal, so the process is ended at once, with status 1, for its supervisor to start another.
    """

    def __init__(self) -> None:
        """Begin to watch the node that this process has joined."""
        own = ray.get_runtime_context().get_node_id()
        nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own has no types
        node = next(node for node in nodes if node["NodeID"] == own)
        self._address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="curvserve-node-watch").start()

    def end(self) -> None:
        """Watch no more."""
        self._ended.set()

    def _watch(self) -> None:
        missed = 0
        while not self._ended.wait(INTERVAL):
            missed = 0 if _answers(self._address) else missed + 1
            if missed == MISSED and not self._ended.is_set():
                log.critical("the Ray node of this server is gone; it ends, to be started again")
                logging.shutdown()
                os._exit(1)


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, INTERVAL).close()
    except OSError:
        return False
    return True
