"""Where to compute, and in what precision."""

import torch

from .errors import FlowmendError

__all__ = ["default_precision", "pick_device"]


def pick_device(name: str = "auto") -> torch.device:
    """Turns a name into a device that works here; ``auto`` takes a GPU where there is one.

    Raises:
        FlowmendError: If the name is unknown or the device is not there.
    """
    if name == "auto":
        if hasattr(torch, "accelerator"):
            found = torch.accelerator.is_available()
            return torch.accelerator.current_accelerator() if found else torch.device("cpu")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps", "xpu"):
            raise NotImplementedError(device.type)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise FlowmendError(
            f"The device '{name}' cannot be used here: choose auto, cpu, or one of this machine's."
        ) from error
    return device


def default_precision(device: torch.device) -> str:
    """``bfloat16`` where the hardware multiplies it faster than float32, else ``float32``."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"
    return "float32"
