"""Measurements on their way from file to file, each with its output and its reference."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from .errors import FlowmendError
from .files import PICTURES, find_pictures, read_image
from .originals import Original

__all__ = ["Item", "as_picture", "conform", "find_items", "read_reference"]


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
