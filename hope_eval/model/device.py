"""The device that a command computes on: `--device`."""

import torch

from hope_eval.errors import OptionError


def device_named(name: str, index: int | None = None) -> torch.device:
    """The device of that name; `auto`: the best of this machine.

    index: number of the GPU, if each of several processes has its own.

    Raises OptionError if it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and index is not None:
            device = torch.device("cuda", index)
        if device.type == "meta":
            raise OptionError("the device `meta` holds no numbers", "--device auto")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise OptionError(
            f"the device `{name}` cannot be used: {str(error).splitlines()[0]}", "--device auto"
        ) from error
    return device


def planned_device(name: str) -> torch.device:
    """The device of that name, which this machine may lack; `auto`: the best of this machine.

    Raises OptionError for a name that torch does not know.
    """
    if name == "auto":
        return device_named(name)
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"there is no device `{name}`: {str(error).splitlines()[0]}", "--device cuda") from error
