"""What ``degrade`` leaves, and whether ``restore`` was told the same of it."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import FlowmendError
from ..items import Item
from ..noise import GaussianMap, Noise
from ..task_table import TASKS, TaskOptions

__all__ = ["MEASURED", "NOTE", "TRUE", "check_folders", "differences"]

MEASURED, TRUE, NOTE = "measurement", "reference", "degrade.json"
"""Folders of the measurements and of the clean pictures, and the file that tells how."""
CLOSE = 0.01
"""Two levels of noise that differ by a smaller share are the same, written differently."""


def check_folders(inputs: Iterable[str]) -> None:
    """Refuses what ``degrade`` made as a whole: the clean pictures are no measurements."""
    for folder in map(Path, inputs):
        if (folder / NOTE).is_file() and (folder / MEASURED).is_dir():
            raise FlowmendError(
                f"'{folder}' holds the clean pictures too: restore '{folder / MEASURED}', with "
                f"--reference '{folder / TRUE}'."
            )


def differences(
    items: Iterable[Item], task: str, noise: Noise | None, described: dict[str, object]
) -> Iterator[tuple[Path, str]]:
    """Of each folder of measurements that ``degrade`` made otherwise: where it is, and how.

    Args:
        items: The measurements.
        task: The task that they are said to be of.
        noise: Its noise; None where it is unknown.
        described: Its options, by name, as :class:`~flowmend.task_table.TaskOptions` takes them.
    """
    folders = (parent for item in items for parent in item.input.absolute().parents)
    told = _told(task, noise, described)
    for folder in dict.fromkeys(folder for folder in folders if folder.name == MEASURED):
        noted = _noted(folder.parent / NOTE)
        if not noted:
            continue
        if noted["task"] != task:
            names = ["task"]
        elif noise is not None and noted.get("noise", noise.name) != noise.name:
            names = ["noise", *TASKS[task].options]
        else:
            names = list(told)
        others = [
            f"{_said(name, noted[name])} (here: {'none' if told[name] is None else told[name]})"
            for name in names
            if name in told and name in noted and not _same(noted[name], told[name])
        ]
        if others:
            yield folder, f"made with {', '.join(others)}, says the {NOTE} beside it"


def _told(task: str, noise: Noise | None, described: dict[str, object]) -> dict[str, object]:
    """What a task and its noise come to, by the names of the options, defaults included."""
    spec = TASKS[task]
    options = spec.with_defaults(TaskOptions(**described))
    # a wrong number of measurements is found by counting
    told = {name: getattr(options, name) for name in spec.options if name != "measurements"}
    told["task"] = task
    if noise is not None and not isinstance(noise, GaussianMap):
        told["noise"] = noise.name
        own = [name for name in ("peak", "share") if hasattr(noise, name)] or ["sigma"]
        told |= {name: getattr(noise, name) for name in own}
    return told


def _noted(path: Path) -> dict[str, object]:
    """What the file tells of a task, defaults included; nothing where it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict) or values.get("task") not in list(TASKS):
        return {}
    known = {name: value for name, value in values.items() if _readable(value)}
    return TASKS[values["task"]].options | known


def _readable(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value.isprintable())


def _said(name: str, value: object) -> str:
    return f"no --{name}" if value is None else f"--{name} {value}"


def _same(made: object, told: object) -> bool:
    """Whether two values of an option mean the same; of files the names are compared."""
    if isinstance(made, int | float) and isinstance(told, int | float):
        return math.isclose(made, told, rel_tol=CLOSE)
    return Path(str(made)).name == Path(str(told)).name
