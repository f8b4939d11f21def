"""What a picture's file holds besides its 8-bit colours, kept for the picture that is written.

16 bits a channel, transparency, the colour profile and the camera's notes all survive; the
picture is turned upright, and its notes say so.
"""

import dataclasses
import io
import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import png
import tifffile
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from .errors import FlowmendError
from .files import LARGEST_PIXELS, atomic_path, read_image, read_picture, writing

__all__ = ["Original", "read_original", "save_like"]

ORIENTATION = 0x0112
PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Original:
    """A picture as its file holds it.

    Args:
        values: Colours or grey (C, H, W) in [0, 1], C 3 or 1; of a ``.npy`` file its array.
        alpha: Opacity (1, H, W) in [0, 1]; None where there is none.
        deep: Whether it has 16 bits a channel.
        profile: Its ICC profile.
        notes: Its EXIF block, upright.
    """

    values: Tensor
    alpha: Tensor | None = None
    deep: bool = False
    profile: bytes | None = None
    notes: bytes | None = None


def read_original(path: str | Path) -> Original:
    """Reads a picture with all that has to survive, or the array of a ``.npy`` file.

    Raises:
        FlowmendError: As :func:`~flowmend.files.read_image`, or if the file holds several
            pictures.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return Original(read_image(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                frames = getattr(picture, "n_frames", 1)
                profile = picture.info.get("icc_profile")
                exif = picture.getexif()
                turn = exif.get(ORIENTATION, 1)
                kind, clear = picture.format, "transparency" in picture.info
                mode = picture.mode
                if math.prod(picture.size) > LARGEST_PIXELS:
                    kind, frames, mode = None, 1, ""  # refused below, in words
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        kind, frames, profile, exif, turn, clear, mode = None, 1, None, None, 1, False, ""
    if frames > 1:
        raise FlowmendError(
            f"Cannot use '{path}': it holds {frames} pictures; save the one you want on its own."
        )
    if exif:
        exif[ORIENTATION] = 1
    notes = exif.tobytes() if exif else None
    deep = _read_deep(path) if kind in ("PNG", "TIFF", None) and mode != "" else None
    if deep is not None:
        values = torch.from_numpy(np.ascontiguousarray(_upright(deep, turn).transpose(2, 0, 1)))
        values = values.float() / 65535.0
        opaque = len(values) in (1, 3)
        alpha = None if opaque else values[-1:]
        return Original(values if opaque else values[:-1], alpha, True, profile, notes)
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or clear:
        read_picture(path)  # says what is wrong with a damaged file
        with Image.open(path) as picture:
            whole = ImageOps.exif_transpose(picture).convert("RGBA")
        grey = mode in ("LA", "La", "L")
        levels = torch.from_numpy(np.array(whole)).permute(2, 0, 1).float() / 255.0
        values = levels[:1] if grey else levels[:3]
        return Original(values.contiguous(), levels[3:].contiguous(), False, profile, notes)
    # inks become red, green and blue, of which their profile says nothing
    return Original(read_image(path), None, False, None if mode == "CMYK" else profile, notes)


def _read_deep(path: Path) -> np.ndarray | None:
    """Levels uint16 (H, W, channels) of a file of 16 bits a channel; None if it is another."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
        if start.startswith(PNG_START) and len(start) > 25 and start[24] == 16:
            width, height, rows, about = png.Reader(filename=str(path)).read()
            levels = np.vstack([np.asarray(row, dtype=np.uint16) for row in rows])
            return levels.reshape(height, width, about["planes"])
        if start[:2] in (b"II", b"MM"):
            with tifffile.TiffFile(path) as file:
                if len(file.pages) == 1 and file.pages[0].dtype == np.uint16:
                    levels = file.pages[0].asarray()
                    levels = levels[..., None] if levels.ndim == 2 else levels
                    if levels.ndim == 3 and file.pages[0].planarconfig == 2:  # planes apart
                        levels = levels.transpose(1, 2, 0)
                    if levels.ndim == 3 and levels.shape[-1] in (1, 2, 3, 4):
                        return levels
    except (png.Error, tifffile.TiffFileError, OSError, ValueError, zlib.error) as error:
        raise FlowmendError(f"Cannot read '{path}' ({error}): is the file damaged?") from error
    return None


def _upright(levels: np.ndarray, turn: int) -> np.ndarray:
    """Turns levels (H, W, channels) as the EXIF orientation says."""
    if turn in (5, 6, 7, 8):
        levels = levels.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        levels = levels[::-1]
    if turn in (2, 3, 6, 7):
        levels = levels[:, ::-1]
    return levels


def save_like(path: str | Path, image: Tensor, original: Original) -> Path:
    """Writes an image (C, H, W) in [0, 1] as a PNG with what the original has besides.

    Of another size than the original, it has its opacity resized; with colours where that was
    grey, it has no profile.
    """
    path = Path(path)
    image = image.detach().cpu()
    if len(image) != len(original.values):
        original = dataclasses.replace(original, profile=None)
    if original.alpha is not None:
        alpha = original.alpha[None]
        if alpha.shape[-2:] != image.shape[-2:]:
            alpha = functional.interpolate(alpha, image.shape[-2:], mode="bilinear")
        image = torch.cat([image, alpha[0]])
    top = 65535 if original.deep else 255
    levels = (image.clamp(0.0, 1.0) * top).round().permute(1, 2, 0).contiguous().numpy()
    levels = levels.astype(np.uint16 if original.deep else np.uint8)
    with writing(path), atomic_path(path) as temporary, temporary.open("wb") as file:
        if original.deep:
            file.write(_deep_png(levels, original))
        else:
            plain = levels[..., 0] if levels.shape[-1] == 1 else levels
            extra = {"icc_profile": original.profile, "exif": original.notes}
            extra = {name: value for name, value in extra.items() if value}
            Image.fromarray(plain).save(file, format="PNG", **extra)
    return path


def _deep_png(levels: np.ndarray, original: Original) -> bytes:
    """A PNG of 16 bits a channel, with profile and notes."""
    height, width, channels = levels.shape
    writer = png.Writer(
        width, height, bitdepth=16, greyscale=channels < 3, alpha=channels in (2, 4)
    )
    plain = io.BytesIO()
    writer.write(plain, levels.reshape(height, -1))
    plain.seek(0)
    first, *rest = png.Reader(file=plain).chunks()
    extra = []
    if original.profile:
        extra.append((b"iCCP", b"profile\0\0" + zlib.compress(original.profile)))
    if original.notes:
        extra.append((b"eXIf", original.notes.removeprefix(b"Exif\0\0")))
    whole = io.BytesIO()
    png.write_chunks(whole, [first, *extra, *rest])
    return whole.getvalue()
