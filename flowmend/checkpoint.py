"""The whole state of a training run in one safetensors file: nothing is pickled."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .errors import FlowmendError
from .files import atomic_path, writing

__all__ = ["CHECKPOINT", "open_folder", "read_checkpoint", "write_checkpoint"]

CHECKPOINT = "checkpoint.safetensors"
"""The file's name in the folder of a run."""


def open_folder(out: str | Path, resume: bool) -> Path:
    """Makes the folder of a run.

    Raises:
        FlowmendError: If it holds a run already and ``resume`` is False, or cannot be made.
    """
    out = Path(out)
    if resume:
        return out
    if (out / CHECKPOINT).exists():
        raise FlowmendError(
            f"'{out}' already holds a training run: add --resume to continue it, or choose "
            "another folder."
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def write_checkpoint(
    path: Path,
    modules: dict[str, nn.Module | None],
    optimiser: torch.optim.Optimizer,
    values: dict,
) -> None:
    """Writes modules, optimiser state and plain values, replacing an older file in one move."""
    tensors = {}
    for name, module in modules.items():
        if module is not None:
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": value for key, value in state.items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with writing(path), atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"values": json.dumps(values)})


def read_checkpoint(
    path: Path, modules: dict[str, nn.Module | None], optimiser: torch.optim.Optimizer
) -> dict:
    """Fills modules and optimiser from a file and returns the plain values.

    Raises:
        FlowmendError: If there is no checkpoint or it does not fit these modules.
    """
    if not path.is_file():
        raise FlowmendError(f"There is no run to resume in '{path.parent}'.")
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})["values"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        for name, module in modules.items():
            if module is not None:
                prefix = f"{name}."
                module.load_state_dict(
                    {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                )
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, index, field = key.split(".", 2)
                state.setdefault(int(index), {})[field] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise FlowmendError(
            f"The checkpoint '{path}' is damaged or belongs to another configuration."
        ) from error
    return values
