"""Where to compute."""

from collections.abc import Sequence

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
        return torch.empty(0, device=torch.device(name)).device  # cuda is cuda:0, mostly
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise DeviceNotFound(f"no device {name!r}: {reason}") from error


def find_devices(choices: Sequence[str], models: Sequence[str]) -> dict[str, torch.device]:
    """Return where each model is computed.

    Args:
        choices: see `chosen_devices`; a device as `find_device` takes it.
        models: names of the models.

    Raises:
        DeviceNotFound: no such device here, no such model, or two devices for the same.
    """
    return {name: find_device(device) for name, device in chosen_devices(choices, models).items()}


def chosen_devices(choices: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """Return the device that is chosen for each model, `auto` where none is.

    Args:
        choices: `DEVICE` for all models, `MODEL=DEVICE` for one, which goes before.
        models: names of the models.

    Raises:
        DeviceNotFound: no such model, or two devices for the same.
    """
    chosen: dict[str, str] = {}
    for choice in choices:
        name, equals, device = choice.rpartition("=")
        if equals and name not in models:
            known = ", ".join(models)
            raise DeviceNotFound(f"device {choice!r}: no model is called {name!r}; served: {known}")
        if name in chosen:
            raise DeviceNotFound(
                f"two devices for {name or 'all models'}: {chosen[name]}, {device}"
            )
        chosen[name] = device
    rest = chosen.get("", "auto")
    return {name: chosen.get(name, rest) for name in models}
