"""Folders of measurements in, folders of restorations out: what ``flowmend restore`` does."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch
from torch import Tensor

from .errors import FlowmendError
from .files import PICTURES, atomic_path, find_pictures, read_image, save_image, writing
from .metrics import psnr, ssim
from .originals import Original, save_like
from .prior import Prior
from .report import Row, mean_or_none, panel, save_panel
from .restoration import restore
from .solution import Solution
from .tasks import Task

__all__ = [
    "Item",
    "as_picture",
    "conform",
    "find_items",
    "finish",
    "read_reference",
    "restore_items",
    "results",
    "save_report",
]

Progress = Callable[[int, int, str], None]
WHITE_STD = 0.2
"""Standard deviation, on the [0, 1] scale, that std.png shows as white."""


@dataclass
class Item:
    """One measurement on its way from file to file."""

    input: Path
    output: Path
    reference_path: Path | None = None
    measurement: Tensor | None = None
    picture: Tensor | None = None
    original: Original | None = None
    reference: Tensor | None = None
    restored: Tensor | None = None
    psnr: float | None = None
    ssim: float | None = None
    input_psnr: float | None = None
    std: Tensor | None = None
    mean_error: float | None = None
    sigma: float | None = None
    steps: int | None = None
    tile: int | None = None
    status: str = "not reached"
    warnings: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether it was restored and nothing went wrong on the way."""
        return self.status == "restored" and not self.warnings

    def record(self) -> dict:
        """Its entry in the results file."""
        return {
            "input": str(self.input),
            "output": str(self.output) if self.restored is not None else None,
            "psnr": self.psnr,
            "ssim": self.ssim,
            "input_psnr": self.input_psnr,
            "mean_error": self.mean_error,
            "sigma": self.sigma,
            "steps": self.steps,
            "tile": self.tile,
            "status": "; ".join([self.status, *self.warnings]),
        }


def find_items(
    inputs: list[str], out: Path, reference: Path | None = None, arrays: bool = True
) -> list[Item]:
    """Pairs every measurement with its output and its reference.

    Files inside a folder keep their place in it; the ending becomes ``.png``.

    Args:
        inputs: Files and folders.
        out: Folder of the outputs.
        reference: The truth, a file or a folder.
        arrays: Whether ``.npy`` files in folders count.

    Raises:
        FlowmendError: If something does not exist, or two outputs would have the same name, or an
            output would replace an input.
    """
    if reference is not None and not reference.exists():
        raise FlowmendError(f"The reference '{reference}' does not exist.")
    items = []
    seen: set[Path] = set()
    for given in map(Path, inputs):
        for path in find_pictures([given], arrays=arrays):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            inside = path.relative_to(given) if given.is_dir() else Path(path.name)
            output = out / inside.with_suffix(".png")
            items.append(Item(path, output, _find_reference(reference, inside)))
    taken: dict[Path, Path] = {}
    originals = {item.input.resolve() for item in items}
    for item in items:
        other = taken.setdefault(item.output, item.input)
        if other != item.input:
            raise FlowmendError(
                f"'{other}' and '{item.input}' would both be written to '{item.output}': restore "
                "them into different folders."
            )
        if item.output.resolve() in originals:
            raise FlowmendError(
                f"'{item.output}' is one of the inputs: choose another folder for --out."
            )
    if reference is not None and reference.is_file() and len(items) != 1:
        raise FlowmendError("One reference file fits one input: give a folder of references.")
    return items


def _find_reference(reference: Path | None, inside: Path) -> Path | None:
    if reference is None or reference.is_file():
        return reference
    for name in (inside, Path(inside.name)):
        for ending in (*PICTURES, inside.suffix, ".npy"):
            if (reference / name).with_suffix(ending).is_file():
                return (reference / name).with_suffix(ending)
    return reference / inside


def conform(image: Tensor, shape: tuple[int, ...], path: Path) -> Tensor:
    """Brings what a file holds to the shape of one measurement.

    Grey is repeated for a colour measurement; colours are averaged for a grey one.

    Raises:
        FlowmendError: If the size differs.
    """
    if len(shape) == 1:
        if image.ndim != 1:
            raise FlowmendError(
                f"'{path}' is not a vector: measurements of this task are .npy files of "
                f"{shape[0]} values."
            )
        if tuple(image.shape) != shape:
            raise FlowmendError(f"'{path}' holds {len(image)} measurements instead of {shape[0]}.")
        return image
    image = as_picture(image, path)
    channels, height, width = shape
    if tuple(image.shape[1:]) != (height, width):
        raise FlowmendError(
            f"'{path}' has {image.shape[2]} x {image.shape[1]} pixels; this prior and task need "
            f"{width} x {height}. 'flowmend degrade' resizes clean pictures."
        )
    if image.shape[0] < channels:
        return image.expand(channels, -1, -1)
    return image.mean(0, keepdim=True) if image.shape[0] > channels else image


def as_picture(image: Tensor, path: Path) -> Tensor:
    """What a file holds as an image (C, H, W), C 1 or 3; :class:`FlowmendError` if it is none."""
    if image.ndim == 2:
        image = image[None]
    if image.ndim == 3 and image.shape[0] not in (1, 3) and image.shape[-1] in (1, 3):
        image = image.permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise FlowmendError(f"'{path}' is an array of shape {tuple(image.shape)}, not an image.")
    return image


def _read(item: Item, task: Task) -> None:
    try:
        image = read_image(item.input)
        item.measurement = conform(image, task.measurement_shape, item.input)
    except FlowmendError as error:
        item.status = str(error)
        return
    read_reference(item, task.operator.shape)


def read_reference(item: Item, shape: tuple[int, ...]) -> None:
    """Reads the truth of an item; what is wrong with it becomes one of the item's warnings."""
    if item.reference_path is None:
        return
    try:
        if not item.reference_path.exists():
            raise FlowmendError(f"no reference for it ('{item.reference_path}')")
        image = read_image(item.reference_path)
        item.reference = conform(image, shape, item.reference_path)
    except FlowmendError as error:
        item.warnings.append(str(error))


def restore_items(
    items: list[Item],
    task: Task,
    prior: Prior,
    method: str | None = None,
    *,
    weight: float | None = None,
    steps: int | None = None,
    start: str | None = None,
    precision: str = "float32",
    memory: str = "autograd",
    seed: int = 0,
    samples: int = 8,
    device: str | torch.device = "cpu",
    batch: int = 32,
    progress: Progress | None = None,
) -> float:
    """Restores items in place, saving every batch as it is done; a bad file harms no other.

    Args:
        items: From :func:`find_items`.
        task: What was done to them.
        prior: The prior, on ``device``.
        method: A name of :data:`~flowmend.methods.METHODS`; None takes the prior's default.
        weight: Weight of the regulariser.
        steps: Steps of the latent optimisation.
        start: Where it starts.
        precision: See :func:`~flowmend.solver.solve`.
        memory: Likewise.
        seed: Seed of the starts; an image's start depends on its place in the list only.
        samples: Draws from the posterior to save, where the method makes them.
        device: Where to compute.
        batch: Images at a time.
        progress: Called with (done, total, what), in steps of the whole list.

    Returns:
        Seconds spent restoring.
    """
    for item in items:
        _read(item, task)
    ready = [item for item in items if item.measurement is not None]
    seconds = 0.0
    count = -(-len(ready) // batch)
    for index in range(count):
        part = ready[index * batch : (index + 1) * batch]
        y = torch.stack([item.measurement for item in part]).to(device)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)

        def move(done: int, total: int, what: str, index: int = index) -> None:
            if progress is not None:
                progress(index * total + done, count * total, "restoring")

        begun = time.monotonic()
        solution = restore(
            y,
            task,
            prior,
            method,
            weight=weight,
            steps=steps,
            start=start,
            precision=precision,
            memory=memory,
            generator=generator,
            samples=samples,
            progress=move,
        )
        seconds += time.monotonic() - begun
        pictures = task.picture(y).cpu()
        for place, (item, picture) in enumerate(zip(part, pictures, strict=True)):
            finish(item, solution, place, picture)
    return seconds


def finish(item: Item, solution: Solution, place: int, picture: Tensor) -> None:
    """Saves what became of an item and compares it with its reference.

    Args:
        item: The item.
        solution: That of its batch.
        place: Its place in the batch.
        picture: Its measurement as an image (C, H, W).
    """
    x, status = solution.x[place].cpu(), solution.status[place]
    if item.original is None:
        save_image(item.output, x)
    else:
        save_like(item.output, x, item.original)
    item.restored, item.status, item.picture = x, "restored", picture
    item.sigma, item.steps = _sigma_of(solution, place), solution.settings.get("steps", 0)
    item.tile = solution.settings.get("tile")
    if not status.startswith(("finished", "settled")):
        item.warnings.append(status)
    if solution.std is not None:
        item.std = solution.std[place].cpu()
        item.mean_error = float(solution.mean_error[place])
        draws = solution.samples[:, place].cpu()
        _save_posterior(item.output.with_suffix(""), item.std, draws)
    if item.reference is not None:
        item.psnr = psnr(x[None], item.reference[None])[0]
        item.ssim = ssim(x[None], item.reference[None])[0]
        item.input_psnr = psnr(picture[None], item.reference[None])[0]


def _sigma_of(solution: Solution, place: int) -> float | None:
    """The noise level one image of a batch was restored with."""
    sigma = solution.settings.get("sigma")
    return sigma[place] if isinstance(sigma, list) else sigma


def _save_posterior(folder: Path, std: Tensor, draws: Tensor) -> None:
    """Writes ``std.npy``, ``std.png`` (white is :data:`WHITE_STD`) and the draws."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_image(folder / "std.png", (std / WHITE_STD).clamp(0.0, 1.0))
    path = folder / "std.npy"
    with writing(path), atomic_path(path) as temporary, temporary.open("wb") as file:
        numpy.save(file, std.numpy())
    for index, draw in enumerate(draws, start=1):
        save_image(folder / f"sample-{index}.png", draw)


def results(items: list[Item]) -> dict:
    """The ``images`` and ``mean`` of a results file."""
    return {
        "images": [item.record() for item in items],
        "mean": {
            name: mean_or_none([getattr(item, name) for item in items])
            for name in ("psnr", "ssim", "input_psnr")
        },
    }


def _caption(psnr_value: float | None, ssim_value: float | None = None) -> str:
    if psnr_value is None:
        return ""
    text = f"{psnr_value:.2f} dB"
    return text if ssim_value is None else f"{text} / {ssim_value:.3f}"


def save_report(path: Path, items: list[Item], note: str) -> None:
    """Draws input | restored | std | reference, with PSNR / SSIM, for the restored items."""
    done = [item for item in items if item.restored is not None]
    with_reference = any(item.reference is not None for item in done)
    with_std = any(item.std is not None for item in done)
    heads = ["input", "restored"] + (["std"] if with_std else [])
    heads += ["reference"] if with_reference else []
    rows = []
    for item in done:
        images: list[Tensor | None] = [item.picture, item.restored]
        captions = [_caption(item.input_psnr), _caption(item.psnr, item.ssim)]
        if with_std:
            images.append(None if item.std is None else (item.std / WHITE_STD).clamp(0.0, 1.0))
            captions.append("" if item.std is None else f"mean {float(item.std.mean()):.3f}")
        if with_reference:
            images.append(item.reference)
            captions.append("")
        rows.append(Row(item.output.stem, images, captions))
    if rows:
        save_panel(path, panel(heads, rows, note))
