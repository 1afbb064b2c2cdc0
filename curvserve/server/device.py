"""Where to compute."""

import torch


class DeviceNotFound(Exception):
    """The device asked for is not there; the text says so in one line."""


def find_device(name: str) -> torch.device:
    """Return a device that can be computed on.

    Args:
        name: `auto` for the first GPU, or the CPU where there is none; or a torch device.

    Raises:
        DeviceNotFound: no such device here.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise DeviceNotFound(f"no device {name!r}: {reason}") from error
    return device
