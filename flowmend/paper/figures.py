"""The paper's figures: samples, the architecture, and every method's restorations side by side."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import FlowmendError
from ..files import read_picture
from ..flow import FlowConfig, MultiscaleFlow
from ..pixels import grid
from ..prior import FlowPrior
from ..report import save_panel, sheet_of
from ..weights import parameter_count
from .plan import ENTRIES

__all__ = ["FIGURE_TASKS", "figure1", "figure2", "restorations"]

FIGURE_TASKS = {3: "denoise", 4: "deblur", 5: "inpaint", 6: "colorize"}
"""The task each of Figures 3 to 6 shows."""
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
ACROSS = 16
ENLARGED = 2
LABEL = 172


def _labelled(path: Path, lines: list[tuple[str, Image.Image]]) -> Path:
    """Strips of equal size under each other, a name at the left of each."""
    font = ImageFont.load_default(13)
    height = max(strip.height for _, strip in lines) + 4
    width = LABEL + max(strip.width for _, strip in lines) + 4
    sheet = Image.new("RGB", (width, 4 + height * len(lines)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, strip) in enumerate(lines):
        top = 4 + index * height
        draw.text((6, top + strip.height // 2 - 8), name, fill="black", font=font)
        sheet.paste(strip, (LABEL, top))
    return save_panel(path, sheet)


@torch.no_grad()
def figure1(path: Path, prior: FlowPrior, seed: int = 0) -> Path:
    """Samples from N(0, sigma^2 I), a row of 16 for every sigma from 0 to 1.2.

    A column is one direction: its latents differ in length only. At sigma 0 all images are the
    one of the zero latent.
    """
    noise = prior.latents(ACROSS, 1.0, torch.Generator().manual_seed(seed))
    lines = []
    for temperature in TEMPERATURES:
        x = prior.decode(temperature * noise)[0]
        strip = grid(torch.nan_to_num(x).cpu(), ACROSS, gap=1, scale=ENLARGED)
        lines.append((f"sigma = {temperature:g}", sheet_of(strip)))
    return _labelled(path, lines)


def figure2(path: Path, config: FlowConfig) -> Path:
    """The architecture: what happens at every scale, with shapes and parameters."""
    with torch.device("meta"):
        flow = MultiscaleFlow(config)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    boxes = []
    channels, height, width = config.shape
    latents = config.unflatten(torch.empty(1, config.dimensions, device="meta"))
    for index, scale in enumerate(flow.scales):
        channels, height, width = channels * 4, height // 2, width // 2
        out = latents[index]
        between = "swap" if config.permutation == "swap" else "invertible 1x1 convolution"
        boxes.append(
            (
                f"squeeze to {channels}x{height}x{width}",
                f"{config.steps[index]} x (actnorm, {between}, coupling)",
                f"{parameter_count(scale):,} parameters",
                "" if out is None else f"z: {out.shape[1]}x{out.shape[2]}x{out.shape[3]}",
            )
        )
        channels = channels // 2 if config.split[index] else channels
    side, gap = 250, 18
    sheet = Image.new("RGB", (gap + len(boxes) * (side + gap), 190), "white")
    draw = ImageDraw.Draw(sheet)
    shape = "x".join(str(size) for size in config.shape)
    draw.text((gap, 8), f"x: {shape}, F from left to right", fill="black", font=font)
    for index, (head, steps, count, out) in enumerate(boxes):
        left = gap + index * (side + gap)
        draw.rectangle((left, 36, left + side, 126), outline="black", width=2)
        draw.text((left + 10, 46), head, fill="black", font=font)
        draw.text((left + 10, 74), steps, fill="black", font=small)
        draw.text((left + 10, 96), count, fill="black", font=small)
        if index + 1 < len(boxes):
            draw.line((left + side, 80, left + side + gap, 80), fill="black", width=2)
        if out:
            draw.line((left + side // 2, 126, left + side // 2, 150), fill="black", width=2)
            draw.text((left + side // 2 - 40, 154), out, fill="black", font=font)
    return save_panel(path, sheet)


def restorations(path: Path, folder: Path, task: str) -> Path:
    """Target, measurement and every method, 16 images across (Figures 3 to 6).

    Args:
        path: The PNG to write.
        folder: Folder of the results, with the strips that Table 1 kept.
        task: The task.

    Raises:
        FlowmendError: If Table 1 was not measured for that task.
    """
    names = ["target", "measurement"]
    names += [name for name, entry in ENTRIES.items() if task in entry.tasks and name not in names]
    lines = []
    for name in names:
        strip = folder / "strips" / f"{task}-{name}.png"
        if strip.is_file():
            picture = read_picture(strip).convert("RGB")
            size = (picture.width * ENLARGED, picture.height * ENLARGED)
            title = ENTRIES[name].title if name in ENTRIES and name != "measurement" else name
            lines.append((title, picture.resize(size, Image.Resampling.NEAREST)))
    if len(lines) < 3:
        raise FlowmendError(
            f"There are no restorations of the task {task} in '{folder}': measure table1 first."
        )
    return _labelled(path, lines)
