"""Folders of measurements in, folders of restorations out: what ``flowmend restore`` does."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor

from .errors import FlowmendError
from .files import atomic_path, read_image, save_image, writing
from .items import Item, conform, read_reference
from .metrics import psnr, ssim
from .originals import save_like
from .prior import Prior
from .report import Row, mean_or_none, panel, save_panel
from .restoration import restore
from .solution import Solution
from .tasks import Task

__all__ = ["finish", "restore_items", "results", "save_report"]

Progress = Callable[[int, int, str], None]
WHITE_STD = 0.2
"""Standard deviation, on the [0, 1] scale, that std.png shows as white."""


def _read(item: Item, task: Task) -> None:
    try:
        image = read_image(item.input)
        item.measurement = conform(image, task.measurement_shape, item.input)
    except FlowmendError as error:
        item.status = str(error)
        return
    read_reference(item, task.operator.shape)


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
