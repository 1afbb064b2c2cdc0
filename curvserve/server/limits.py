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
        body_seconds: time within which a body has to arrive.
        shutdown_seconds: time that requests under way are given when the server stops.
    """

    json_bytes: int = 8 * 1024 * 1024
    control_bytes: int = 64 * 1024
    header_bytes: int = 1024 * 1024
    body_seconds: float = 60.0
    shutdown_seconds: int = 10
