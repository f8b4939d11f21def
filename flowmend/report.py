"""Pictures and tables people can look at."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .files import atomic_path, writing
from .pixels import to_bytes

__all__ = ["Row", "mean_or_none", "panel", "save_panel", "sheet_of", "write_json"]

MOST_ROWS = 48
PANEL_SIDE = 128
GAP = 8


class Row:
    """One line of a report: images (C, H, W) in [0, 1] with a caption under each.

    Args:
        title: Text at the left, usually the file's name.
        images: The images; None leaves a gap.
        captions: One text for each image.
    """

    def __init__(
        self, title: str, images: Sequence[Tensor | None], captions: Sequence[str]
    ) -> None:
        self.title, self.images, self.captions = title, list(images), list(captions)


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Mean of the finite values; None where there is none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def sheet_of(image: Tensor) -> Image.Image:
    """An image (C, H, W) in [0, 1] as an RGB picture to draw on."""
    levels = to_bytes(image.detach().cpu()).permute(1, 2, 0).numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).convert("RGB")


def _picture(image: Tensor, side: int) -> Image.Image:
    picture = sheet_of(image)
    longest = max(picture.size)
    if longest <= side:
        factor = max(1, side // longest)
        size = (picture.width * factor, picture.height * factor)
        return picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def panel(
    heads: Sequence[str], rows: Sequence[Row], note: str = "", side: int = PANEL_SIDE
) -> Image.Image:
    """Draws a table of images: a head over each column, a caption under each image.

    Args:
        heads: Heads of the columns.
        rows: The rows; beyond 48 they are left out, and the note says so.
        note: A line at the foot.
        side: Longest side of an image in pixels: larger ones are made smaller, and small ones
            larger by a whole factor.
    """
    font = ImageFont.load_default(14)
    small = ImageFont.load_default(12)
    shown = list(rows[:MOST_ROWS])
    if len(rows) > len(shown):
        note = f"{note}  The first {len(shown)} of {len(rows)} images are shown.".strip()
    pictures = [[None if im is None else _picture(im, side) for im in row.images] for row in shown]
    tallest = max((p.height for line in pictures for p in line if p is not None), default=64)
    cell = max((p.width for line in pictures for p in line if p is not None), default=64)
    cell = max(cell, 112)
    label = 20 + max(
        [int(small.getlength(row.title)) for row in shown] or [0],
    )
    label = min(label, 220)
    line_height = tallest + 22
    width = label + len(heads) * (cell + GAP) + GAP
    height = 30 + len(shown) * (line_height + GAP) + (26 if note else 6)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.text((label + column * (cell + GAP), 8), head, fill="black", font=font)
    for index, (row, line) in enumerate(zip(shown, pictures, strict=True)):
        top = 30 + index * (line_height + GAP)
        draw.text((8, top + tallest // 2 - 8), row.title[:34], fill="#333333", font=small)
        for column, (picture, caption) in enumerate(zip(line, row.captions, strict=True)):
            left = label + column * (cell + GAP)
            if picture is not None:
                sheet.paste(picture, (left, top))
            draw.text((left, top + tallest + 3), caption, fill="#333333", font=small)
    if note:
        draw.text((8, height - 20), note, fill="#333333", font=small)
    return sheet


def save_panel(path: str | Path, sheet: Image.Image) -> Path:
    """Writes a drawn sheet as PNG."""
    path = Path(path)
    with writing(path), atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return path


def _plain(value: object) -> object:
    """Values JSON knows: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (Path, torch.device)):
        return str(value)
    return value


def write_json(path: str | Path, values: dict) -> Path:
    """Writes a results file, complete or not at all."""
    path = Path(path)
    with writing(path), atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_plain(values), indent=2, allow_nan=False) + "\n")
    return path
