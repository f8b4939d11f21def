"""Where a result came from: code, machine and command, kept with every results file."""

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["device_name", "package_version", "provenance", "told"]


def package_version(name: str = "flowmend") -> str:
    """The installed version of a package, or 'not installed'."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def device_name(device: str | torch.device = "cpu") -> str:
    """A readable name of the device, for example the GPU's or the CPU's with its thread count."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {torch.get_num_threads()} threads"


def _commit() -> str:
    """The commit of the checkout this package runs from, marked when it has changes."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return "installed package"
    try:
        run = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def told(made_with: dict[str, str]) -> str:
    """What :func:`provenance` gave, as a line of a page."""
    place = f"torch {made_with['torch']}, {made_with['device']}"
    return f"Commit {made_with['commit']}, {place}: `{made_with['command']}`"


def provenance(device: str | torch.device = "cpu", command: str | None = None) -> dict[str, str]:
    """Facts to keep with a result: versions, commit, device and the command.

    Args:
        device: The device the result was computed on.
        command: The command; None takes the one this process was started with.
    """
    if command is None:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "commit": _commit(),
        "flowmend": package_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(device),
        "command": command,
    }
