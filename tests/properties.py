"""Checkers of what every bijection and every linear operator promises.

Each takes the part under test and an input, and raises AssertionError with a sentence when a
promise is broken. A bijection under test must already be float64; its parameters should be
random, because a fresh coupling is the identity and hides nearly every mistake.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "check_adjoint",
    "check_batch",
    "check_gradients",
    "check_logdet",
    "check_pure",
    "check_round_trip",
    "check_shapes",
    "randomise",
]


def randomise(module: nn.Module, seed: int = 0, size: float = 0.1) -> nn.Module:
    """Adds normal noise to every parameter, and turns the module to float64."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise)
    return module


def _close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Asserts ``|found - wanted| <= tolerance * max(1, max |wanted|)``; NaN never passes."""
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, not {wanted.shape}"
    assert bool(torch.isfinite(found).all()), f"{what}: not finite"
    size = max(1.0, wanted.abs().max().item())
    error = (found.to(wanted.dtype) - wanted).abs().max().item()
    assert error <= tolerance * size, f"{what}: differs by {error:.3g} at a size of {size:.3g}"


def check_round_trip(bijection: nn.Module, x: Tensor, tolerance: float = 1e-9) -> None:
    """Each direction undoes the other, and the two log-determinants cancel."""
    with torch.no_grad():
        z, forth = bijection.encode(x)
        back, home = bijection.decode(z)
        again, _ = bijection.encode(back)
    _close(back, x, tolerance, "decode(encode(x)) is not x")
    _close(again, z, tolerance, "encode(decode(z)) is not z")
    _close(home, -forth, tolerance, "the log-determinants of encode and decode do not cancel")


def check_logdet(bijection: nn.Module, x: Tensor, tolerance: float = 1e-8) -> None:
    """Both log-determinants are those of the Jacobian that autograd finds, image by image."""
    assert x.dtype == torch.float64, "log-determinants are checked in float64"
    with torch.no_grad():
        z = bijection.encode(x)[0]
    for name, function, points in (
        ("encode", bijection.encode, x),
        ("decode", bijection.decode, z),
    ):
        with torch.no_grad():
            returned = function(points)[1]
        for index, point in enumerate(points):
            jacobian = torch.autograd.functional.jacobian(
                lambda value, function=function: function(value[None])[0].flatten(),
                point,
                vectorize=True,
            )
            size = point.numel()
            wanted = torch.linalg.slogdet(jacobian.reshape(size, size))[1]
            _close(returned[index], wanted, tolerance, f"log-determinant of {name}")


def check_shapes(bijection: nn.Module, x: Tensor) -> None:
    """Values keep their number and precision; log-determinants have shape (B,), in float64 and
    float32 alike."""
    for dtype in (torch.float64, torch.float32):
        part = copy.deepcopy(bijection).to(dtype)
        with torch.no_grad():
            z, forth = part.encode(x.to(dtype))
            back, home = part.decode(z)
        count = x.shape[0]
        assert z.shape[0] == count, f"{count} images became {z.shape[0]} latents"
        assert z.numel() == x.numel(), f"{x.numel()} values became {z.numel()}"
        assert back.shape == x.shape, f"decode gave shape {back.shape}, not {x.shape}"
        for name, logdet in (("encode", forth), ("decode", home)):
            assert logdet.shape == (count,), f"logdet of {name}: shape {tuple(logdet.shape)}"
        for name, value in (("z", z), ("x", back), ("logdet", forth), ("logdet", home)):
            assert value.dtype == dtype, f"{name} came back as {value.dtype}, not {dtype}"


def _state(module: nn.Module) -> dict[str, Tensor]:
    state = {**module.state_dict(), **dict(module.named_buffers())}
    return {key: value.detach().clone() for key, value in state.items()}


def check_pure(bijection: nn.Module, x: Tensor) -> None:
    """Neither direction changes its argument, the module's state or the global random numbers,
    in evaluation and in training mode, and the same input gives the same bits again."""
    mode = bijection.training
    try:
        for training in (False, True):
            bijection.train(training)
            with torch.no_grad():
                z = bijection.encode(x.clone())[0]
            for name, argument in (("encode", x), ("decode", z)):
                function = getattr(bijection, name)
                before, kept = _state(bijection), argument.clone()
                random = torch.random.get_rng_state()
                with torch.no_grad():
                    results = [function(argument) for _ in range(3)]
                after = _state(bijection)
                assert torch.equal(argument, kept), f"{name} changed its argument"
                assert before.keys() == after.keys(), f"{name} changed the state's names"
                for key, value in before.items():
                    assert torch.equal(value, after[key]), f"{name} changed '{key}'"
                assert torch.equal(random, torch.random.get_rng_state()), f"{name} drew numbers"
                for value, logdet in results[1:]:
                    assert torch.equal(value, results[0][0]), f"{name} is not deterministic"
                    assert torch.equal(logdet, results[0][1]), f"{name} is not deterministic"
    finally:
        bijection.train(mode)


def check_batch(bijection: nn.Module, x: Tensor, tolerance: float = 1e-10) -> None:
    """What comes of an image does not depend on the images beside it."""
    assert len(x) > 1, "a batch is checked with at least two images"
    with torch.no_grad():
        z = bijection.encode(x)[0]
        for name, function, points in (
            ("encode", bijection.encode, x),
            ("decode", bijection.decode, z),
        ):
            together = function(points)
            for index in range(len(points)):
                alone = function(points[index : index + 1])
                for value, single in zip(together, alone, strict=True):
                    what = f"{name} of image {index} depends on its batch"
                    _close(value[index : index + 1], single, tolerance, what)


def check_adjoint(
    operator: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    tolerance: float = 1e-10,
    draws: int = 4,
    seed: int = 0,
) -> None:
    """``<A x, y> = <x, A* y>`` for random x and y, image by image.

    Args:
        operator: A, from ``x_shape`` to ``y_shape``.
        adjoint: A*, the other way.
        x_shape: Shape of a batch of images, the batch dimension first.
        y_shape: Shape of a batch of measurements, the batch dimension first.
        tolerance: Largest difference, relative to |A x| |y| + |x| |A* y|.
        draws: How many pairs are tried.
        seed: Seed of the pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        x = torch.randn(x_shape, generator=generator, dtype=torch.float64)
        y = torch.randn(y_shape, generator=generator, dtype=torch.float64)
        ax, aty = operator(x), adjoint(y)
        assert ax.shape == y.shape, f"A gave shape {tuple(ax.shape)}, not {y_shape}"
        assert aty.shape == x.shape, f"A* gave shape {tuple(aty.shape)}, not {x_shape}"
        assert ax.dtype == aty.dtype == torch.float64, "A or A* left float64"
        x, y, ax, aty = (value.flatten(1) for value in (x, y, ax, aty))
        error = ((ax * y).sum(1) - (x * aty).sum(1)).abs()
        size = ax.norm(dim=1) * y.norm(dim=1) + x.norm(dim=1) * aty.norm(dim=1)
        assert bool((size > 0).all()), "A and A* give nothing but zeros"
        worst = (error / size).max().item()
        assert worst <= tolerance, f"<A x, y> and <x, A* y> differ by {worst:.3g}, relatively"


def check_gradients(bijection: nn.Module, x: Tensor, seed: int = 0) -> None:
    """Every parameter receives a finite gradient that is not zero, from either direction."""
    generator = torch.Generator().manual_seed(seed)
    names, parameters = zip(*bijection.named_parameters(), strict=True)
    with torch.no_grad():
        z = bijection.encode(x)[0]
    for name, function, points in (
        ("encode", bijection.encode, x),
        ("decode", bijection.decode, z),
    ):
        value, logdet = function(points)
        weights = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        total = (value * weights).sum() + logdet.sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for key, gradient in zip(names, gradients, strict=True):
            assert gradient is not None, f"'{key}' receives no gradient from {name}"
            assert bool(torch.isfinite(gradient).all()), f"'{key}': gradient of {name} not finite"
            assert bool((gradient != 0).any()), f"'{key}': gradient of {name} is zero"
