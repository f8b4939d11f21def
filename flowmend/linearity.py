"""Whether a function is what an operator must be: linear, differentiable, image by image."""

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import FlowmendError

__all__ = ["check_linear"]

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest relative difference that passes for rounding; float64 may hide a step in float32."""


def check_linear(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    """Tries a function on random images, in float64 and float32.

    Args:
        function: From images (B, *shape) to measurements (B, ...).
        shape: Shape (C, H, W) of the images.

    Raises:
        FlowmendError: If it fails, does not return real measurements (B, ...) of its argument's
            precision, is not linear, not deterministic or not differentiable, mixes images or
            measures nothing: one sentence that says which.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    for dtype, tolerance in TOLERANCES.items():
        _check(function, images.to(dtype), tolerance)


def _check(function: Callable[[Tensor], Tensor], x: Tensor, tolerance: float) -> None:
    kind = str(x.dtype).removeprefix("torch.")

    def call(images: Tensor) -> Tensor:
        try:
            y = function(images)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise FlowmendError(
                f"The operator's function fails on {kind} images of shape {tuple(images.shape)}: "
                f"{reason}. It must be written in torch, for any batch; bring tensors of its own "
                "to its argument's precision with .to(x)."
            ) from error
        if not isinstance(y, Tensor) or y.ndim < 2 or len(y) != len(images):
            found = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise FlowmendError(
                f"The operator's function must make a tensor (B, ...) of {len(images)} images, "
                f"not {found}."
            )
        if y.dtype != x.dtype:
            found = str(y.dtype).removeprefix("torch.")
            raise FlowmendError(
                f"The operator's function makes {found} of {kind}: it must keep its argument's "
                "precision; bring tensors of its own to it with .to(x)."
            )
        return y

    def same(found: Tensor, wanted: Tensor) -> bool:
        return bool((found - wanted).norm() <= tolerance * wanted.norm())

    y = call(x)
    if not bool(torch.isfinite(y).all()):
        raise FlowmendError(
            "The operator's function is not linear: of some images it makes infinities or NaN."
        )
    if not bool((y != 0).any()):
        raise FlowmendError("The operator's function makes nothing but zeros.")
    if not same(call(x), y):
        raise FlowmendError(
            "The operator's function gives something else each time: draw random numbers once, "
            "outside of it."
        )
    if not same(torch.cat([call(image[None]) for image in x]), y):
        raise FlowmendError(
            "The operator's function mixes images: what it makes of one depends on the others."
        )
    if bool((call(torch.zeros_like(x)) != 0).any()):
        raise FlowmendError(
            "The operator's function is not linear: it makes something of black images. Take "
            "that off, from the measurements too."
        )
    if not same(call(2.0 * x[:1] - 3.0 * x[1:2]), 2.0 * y[:1] - 3.0 * y[1:2]):
        raise FlowmendError(
            "The operator's function is not linear: of a sum of images it makes something else "
            "than the sum."
        )
    try:
        adjoint = torch.func.vjp(call, torch.zeros_like(x))[1](y)[0]
        differentiable = same((x * adjoint).sum(), y.square().sum())
    except (FlowmendError, RuntimeError):
        differentiable = False
    if not differentiable:
        raise FlowmendError(
            "The operator's function cannot be differentiated, which its adjoint needs: write it "
            "with torch operations only, without detach() or no_grad()."
        )
