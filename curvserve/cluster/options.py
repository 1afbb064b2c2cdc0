"""What an operator decides about the workers of a session."""

from dataclasses import dataclass
from typing import Literal

Placement = Literal["strict_pack", "pack", "spread", "strict_spread"]


class NoCluster(Exception):
    """There is no Ray, or no cluster at the address; the text says what was tried."""


@dataclass(frozen=True)
class ClusterOptions:
    """How many workers a session has, what each occupies, and how long is waited for them.

    Attributes:
        address: `auto`, `host:port` or `ray://host:port` of a cluster; None to begin one of this
            machine, which ends with this process.
        workers: of each session; a model whose samples depend on each other has one.
        placement: on one node (`strict_pack`; `pack` if there is room), or on different ones
            (`strict_spread`; `spread` if there are as many).
        cpus: CPUs that each occupies, and computes with, rounded up to whole threads.
        shard_state: whether each worker keeps slices of what the rule reads and remembers, so that
            this takes less memory the more there are; for rules that step each coordinate apart.
        place_seconds: how long a session waits for free devices.
        worker_seconds: after which a worker that does not answer is taken for lost.
    """

    address: str | None = None
    workers: int = 1
    placement: Placement = "pack"
    cpus: float = 1.0
    shard_state: bool = False
    place_seconds: float = 60.0
    worker_seconds: float = 300.0
