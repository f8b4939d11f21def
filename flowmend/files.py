"""Reading pictures of any kind into [0, 1] and writing results that are never half there."""

import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import FlowmendError
from .pixels import from_bytes, to_bytes

__all__ = [
    "PICTURES",
    "atomic_path",
    "find_pictures",
    "picture_size",
    "read_image",
    "read_picture",
    "resize_and_crop",
    "save_array",
    "save_image",
    "writing",
]

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
LARGEST_PIXELS = 150_000_000


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into one sentence about ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FlowmendError(f"Cannot write '{path}': {reason}.") from error
    except RuntimeError as error:  # safetensors reports a full disk this way
        raise FlowmendError(f"Cannot write '{path}': {error}.") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside ``path`` that takes its place only when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def find_pictures(inputs: Iterable[str | Path], arrays: bool = False) -> list[Path]:
    """Lists the pictures among files and folders (searched to any depth), in a fixed order.

    Args:
        inputs: Files, taken whatever their ending, and folders.
        arrays: Whether ``.npy`` files in folders count too; one beside a picture of the same name
            stands for it.

    Raises:
        FlowmendError: If something does not exist or a folder holds no picture.
    """
    found: list[Path] = []
    endings = (*PICTURES, ".npy") if arrays else PICTURES
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(
                path
                for path in item.rglob("*")
                if path.suffix.lower() in endings
                and not any(part.startswith(".") for part in path.relative_to(item).parts)
                and path.is_file()
            )
            lossless = {path.with_suffix("") for path in inside if path.suffix.lower() == ".npy"}
            inside = [
                path
                for path in inside
                if path.suffix.lower() == ".npy" or path.with_suffix("") not in lossless
            ]
            if not inside:
                raise FlowmendError(
                    f"The folder '{item}' holds no pictures ({' '.join(endings)})."
                )
            found.extend(inside)
        elif item.exists():
            found.append(item)
        else:
            raise FlowmendError(f"'{item}' does not exist.")
    return list(dict.fromkeys(found))


def _to_eight_bit(picture: Image.Image) -> Image.Image:
    """Any mode Pillow opens, as L or RGB; 16-bit grey is scaled, transparency goes on white."""
    if picture.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        values = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(values).all():
            raise FlowmendError("it holds values that are not finite")
        top = next(top for top in (1.0, 255.0, 65535.0, np.inf) if values.max() <= top)
        if (picture.mode != "F" and top == 1.0) or picture.mode.startswith("I;16"):
            top = 65535.0 if picture.mode.startswith("I;16") else 255.0
        if not np.isfinite(top):
            raise FlowmendError("its values are larger than those of a 16-bit picture")
        return Image.fromarray((values / top * 255.0).round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode in ("1", "L"):
        return picture.convert("L")
    return picture.convert("RGB")


def read_picture(path: str | Path) -> Image.Image:
    """Opens a picture as 8-bit grey or RGB, turned upright.

    Grey stays grey; 16-bit is scaled to 8, CMYK and palettes become RGB, transparent parts are
    put on white.

    Raises:
        FlowmendError: If it is no picture, is cut short, or has more than 150 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if math.prod(picture.size) > LARGEST_PIXELS:
                    raise FlowmendError(
                        f"it has {picture.size[0]} x {picture.size[1]} pixels, more than the "
                        f"{LARGEST_PIXELS:,} this program reads"
                    )
                picture.load()
                return _to_eight_bit(ImageOps.exif_transpose(picture))
    except FlowmendError as error:
        raise FlowmendError(f"Cannot use '{path}': {error}.") from error
    except UnidentifiedImageError as error:
        raise FlowmendError(f"'{path}' is not a picture this program can read.") from error
    except Image.DecompressionBombError as error:
        raise FlowmendError(f"Cannot use '{path}': it has far too many pixels.") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise FlowmendError(f"Cannot read '{path}' ({error}): is the file damaged?") from error


def picture_size(path: str | Path) -> tuple[int, int] | None:
    """Height and width of a picture, upright, or of an array in a file; None of other files."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            if len(shape) == 3 and shape[0] not in (1, 3):
                shape = shape[:2]
            return tuple(shape[-2:]) if len(shape) > 1 else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                width, height = picture.size
                lying = picture.getexif().get(0x0112, 1) > 4
        return (width, height) if lying else (height, width)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None


def _to_tensor(picture: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(picture))
    values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
    return from_bytes(values.contiguous())


def _read_array(path: Path) -> Tensor:
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:  # whatever a damaged header makes numpy's parser raise
        raise FlowmendError(
            f"Cannot read '{path}': it is no plain array of numbers ({error})."
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise FlowmendError(f"Cannot use '{path}': it holds no real numbers.")
    if values.dtype.kind in "iub":
        raise FlowmendError(
            f"Cannot use '{path}': arrays must be floating-point, in [0, 1], not {values.dtype}."
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if values.size == 0 or not np.isfinite(values).all():
        raise FlowmendError(f"Cannot use '{path}': it is empty or holds NaN or infinite values.")
    return torch.from_numpy(values)


def read_image(path: str | Path) -> Tensor:
    """Reads a picture (C, H, W) in [0, 1], or the array of a ``.npy`` file as it is.

    Raises:
        FlowmendError: With the reason the file cannot be used.
    """
    path = Path(path)
    return _read_array(path) if path.suffix.lower() == ".npy" else _to_tensor(read_picture(path))


def resize_and_crop(
    picture: Image.Image, height: int, width: int, channels: int = 3, zoom: int = 1
) -> Tensor:
    """Brings a picture to a size as the paper does: shorter side resized, centre cropped.

    Bilinear with antialiasing, to the smallest size that covers (height, width); with ``zoom``
    the same part in so many times as many pixels a side.

    Returns:
        The image (C, zoom * height, zoom * width) in [0, 1], on the 8-bit grid.

    Raises:
        FlowmendError: If its shape is so extreme that the resized picture would not fit.
    """
    picture = picture.convert("L" if channels == 1 else "RGB")
    if height * picture.width >= width * picture.height:
        size = (max(width, height * picture.width // picture.height), height)
    else:
        size = (width, max(height, width * picture.height // picture.width))
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    box = [zoom * side for side in (left, top, left + width, top + height)]
    size = (zoom * size[0], zoom * size[1])
    if math.prod(size) > LARGEST_PIXELS:
        raise FlowmendError(f"it is far too long and narrow ({picture.width} x {picture.height})")
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    return _to_tensor(picture.crop(box))


def save_image(path: str | Path, image: Tensor) -> Path:
    """Writes an image (C, H, W) in [0, 1] as an 8-bit PNG."""
    path = Path(path)
    levels = to_bytes(image.detach().cpu()).permute(1, 2, 0).numpy()
    levels = levels[..., 0] if levels.shape[-1] == 1 else levels
    with writing(path), atomic_path(path) as temporary:
        Image.fromarray(levels).save(temporary, format="PNG")
    return path


def save_array(path: str | Path, values: Tensor) -> Path:
    """Writes a tensor as a lossless ``.npy`` file."""
    path = Path(path)
    with writing(path), atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.detach().cpu().numpy())
    return path
