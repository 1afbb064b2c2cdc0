"""What a request may take: one record, so that every limit can be found and set."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Caps and deadlines of the HTTP face.

    Caps on tensor bodies follow from the model: the largest legal batch, or its parameters.

    Attributes:
        json_bytes: largest JSON batch; larger ones travel as safetensors.
        control_bytes: largest JSON document that is not a batch.
        header_bytes: room for a safetensors header beside the tensors.
        bodies_bytes: what all bodies that are being received or worked on may take together.
        body_seconds: time within which a body has to arrive.
        head_seconds: time within which a request's line and headers have to arrive.
        stall_seconds: time after which a caller that takes nothing of its answer is cut off.
        work_seconds: time within which the answer to a received request has to be there.
        queue: requests of one session that may wait or be computed at a time.
        sessions_per_key: live sessions that one API key may have begun; 0 for no limit.
        requests_per_key: requests of one API key that may wait or be computed at a time, over all
            sessions; 0 for no limit.
        notice_seconds: time between not being ready any more and closing the door, for a load
            balancer to notice.
        park_seconds: time after which a session that nothing was asked of lets go of devices that
            are its own.
        shutdown_seconds: time that admitted work is given when the server stops.
    """

    json_bytes: int = 8 * 1024 * 1024
    control_bytes: int = 64 * 1024
    header_bytes: int = 1024 * 1024
    bodies_bytes: int = 4 * 1024 * 1024 * 1024
    body_seconds: float = 60.0
    head_seconds: float = 20.0
    stall_seconds: float = 60.0
    work_seconds: float = 600.0
    queue: int = 32
    sessions_per_key: int = 0
    requests_per_key: int = 0
    notice_seconds: float = 0.0
    park_seconds: float = 600.0
    shutdown_seconds: int = 30
