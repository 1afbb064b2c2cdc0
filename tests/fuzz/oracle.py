"""What a body is worth: by our reader, by the safetensors package, and by the model's own rules.

The package is the oracle for what is well-formed; where our reader refuses more, it is for one of
the reasons of `STRICTER`. Whether a well-formed body is a legal batch is decided here once more,
without any code of the server's.
"""

from dataclasses import dataclass

import numpy as np
import safetensors
import torch
from curvserve_client import wire
from curvserve_client.errors import MalformedBody

from tests.client.bodies import STRICTER
from tests.server.tiny import CLASSES, FEATURES, MAX_BATCH

Contents = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Name -> dtype, shape and bytes of a tensor."""

_NAMES = {dtype: name for name, dtype in wire.DTYPES.items()}


@dataclass(frozen=True)
class Verdict:
    """What a body is worth.

    Attributes:
        ours: what our reader finds in it; None where it refuses.
        reason: why it refuses.
        theirs: what the safetensors package finds in it; None where it refuses.
    """

    ours: Contents | None
    reason: str
    theirs: Contents | None

    def difference(self) -> str:
        """Return how the readers differ where they must not; empty where they do not."""
        if self.theirs is None:
            return "" if self.ours is None else "we take what safetensors refuses"
        if self.ours is None:
            allowed = any(known in self.reason for known in STRICTER)
            return "" if allowed else f"we refuse what safetensors takes: {self.reason}"
        return "" if self.ours == self.theirs else "we read other tensors than safetensors"

    @property
    def code(self) -> str:
        """The problem that a batch call must answer; empty for a legal batch."""
        if self.ours is None:
            return "malformed_body"
        return "" if is_legal(self.ours) else "invalid_batch"


def judge(body: bytes) -> Verdict:
    """Return what a body is worth."""
    theirs = _theirs(body)
    try:
        tensors, _ = wire.decode(bytearray(body))
    except MalformedBody as error:
        return Verdict(None, error.detail, theirs)
    ours = {name: _described(tensor) for name, tensor in tensors.items()}
    return Verdict(ours, "", theirs)


def is_legal(contents: Contents) -> bool:
    """Tell whether tensors are a batch that the model `tiny` must take."""
    if contents.keys() != {"inputs", "targets"}:
        return False
    (kind, shape, data), (label_kind, label_shape, labels) = contents["inputs"], contents["targets"]
    samples = shape[0] if shape else 0
    return (
        (kind, label_kind) == ("F32", "I64")
        and (shape, label_shape) == ((samples, FEATURES), (samples,))
        and 1 <= samples <= MAX_BATCH
        and bool(np.isfinite(np.frombuffer(data, "<f4")).all())
        and set(np.frombuffer(labels, "<i8").tolist()) <= set(range(CLASSES))
    )


def is_parameters(contents: Contents) -> bool:
    """Tell whether tensors are, by name, dtype and shape, the parameters of the model `tiny`."""
    found = {name: (dtype, shape) for name, (dtype, shape, _) in contents.items()}
    return found == {"weight": ("F32", (CLASSES, FEATURES)), "bias": ("F32", (CLASSES,))}


def _theirs(body: bytes) -> Contents | None:
    try:
        found = safetensors.deserialize(body)
    except safetensors.SafetensorError:
        return None
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in found}


def _described(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    data = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return _NAMES[tensor.dtype], tuple(tensor.shape), data
