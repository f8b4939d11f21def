"""Backpropagation that keeps only a flow's output, so that its memory does not grow with depth.

The input of a bijection follows from its output. Going back, every layer's input is computed by
the layer's inverse, its gradients by one local pass, and both are forgotten before the next layer.

Source: The Reversible Residual Network: Backpropagation Without Storing Activations (Gomez et
al., 2017), https://arxiv.org/abs/1707.04585
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .bijection import Bijection, Chain
from .coupling import AffineCoupling
from .multiscale import MultiscaleFlow

__all__ = ["reversible_decode", "reversible_encode"]

SLICE = 2**20
"""Hidden values a coupling network computes at a time (4 MiB in float32); the images of a larger
batch go in slices."""
INVERSE = {"encode": "decode", "decode": "encode"}

State = tuple[Tensor, ...]
"""What travels through a flow: a value (B, ...) and, on the way back, its gradient beside it."""


def reversible_encode(bijection: Bijection, x: Tensor) -> tuple[Tensor, Tensor]:
    """``bijection.encode(x)``, differentiable as :func:`reversible_decode` is."""
    return _Reversible.apply(bijection, "encode", x, *bijection.parameters())


def reversible_decode(bijection: Bijection, z: Tensor) -> tuple[Tensor, Tensor]:
    """``bijection.decode(z)``, whose gradients keep nothing but the result.

    They are autograd's, for the argument and every parameter, up to what rounding does to the
    inputs that are computed again; they cannot be differentiated themselves.

    Args:
        bijection: Any; chains and multi-scale flows are taken apart, layer by layer.
        z: Its argument (B, ...).

    Returns:
        The value, and the log-determinant (B,) in nats.

    Raises:
        RuntimeError: By torch, if a gradient is differentiated, or if the result or a parameter
            was changed in place before it is computed.
    """
    return _Reversible.apply(bijection, "decode", z, *bijection.parameters())


class _Reversible(torch.autograd.Function):
    """A whole bijection as one node of autograd's graph.

    The parameters are arguments so that autograd asks for their gradients, and are saved so that
    it notices when they have changed in between.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, bijection: Bijection, direction: str, point: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = point.new_zeros(point.shape[0])

        def visit(layer: Bijection, state: State) -> State:
            nonlocal total
            value, logdet = _in_slices(layer, getattr(layer, direction), *state)
            total = total + logdet
            return (value,)

        device = point.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": False,  # a weight cast here has no gradient: not one to keep
        }
        with torch.autocast(**ctx.autocast):
            (value,) = _walk(bijection, direction, (point.detach(),), visit)
        ctx.bijection, ctx.direction = bijection, direction
        ctx.save_for_backward(value, *parameters)
        return value, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, gradient: Tensor, logdet_gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        value = ctx.saved_tensors[0]
        parameters = list(ctx.bijection.parameters())
        argument_needed, *needed = ctx.needs_input_grad[2:]
        wanted = {id(p) for p, need in zip(parameters, needed, strict=True) if need}
        found: dict[int, Tensor] = {}

        def visit(layer: Bijection, state: State) -> State:
            own = [p for p in layer.parameters() if id(p) in wanted]
            step = _coupling_step if type(layer) is AffineCoupling else _step

            def back(value: Tensor, gradient: Tensor, logdet_gradient: Tensor) -> State:
                before, slope, *slopes = step(
                    layer, ctx.direction, value, gradient, logdet_gradient, own
                )
                for key, each in zip(map(id, own), slopes, strict=True):
                    if each is not None:
                        found[key] = found[key] + each if key in found else each
                return before, slope

            return _in_slices(layer, back, *state, logdet_gradient)

        with torch.autocast(**ctx.autocast):
            _, slope = _walk(ctx.bijection, INVERSE[ctx.direction], (value, gradient), visit)
        slopes = [found.get(id(p)) for p in parameters]
        return None, None, slope if argument_needed else None, *slopes


def _walk(
    bijection: Bijection,
    direction: str,
    state: State,
    visit: Callable[[Bijection, State], State],
) -> State:
    """Takes a state through every layer, in the order of ``direction``, and returns the last.

    All tensors of the state are split and joined alike.
    """
    if type(bijection) is Chain:
        layers = bijection.layers if direction == "encode" else reversed(bijection.layers)
        for layer in layers:
            state = _walk(layer, direction, state, visit)
        return state
    if type(bijection) is not MultiscaleFlow:
        return visit(bijection, state)
    config = bijection.config
    if direction == "encode":
        left: list[State] = []
        for scale, split in zip(bijection.scales, config.split, strict=True):
            state = _walk(scale, direction, state, visit)
            if split:
                state, leaving = zip(*(each.chunk(2, dim=1) for each in state), strict=True)
                left.append(leaving)
        parts = zip(*left, state, strict=True)
        return tuple(torch.cat([part.flatten(1) for part in each], dim=1) for each in parts)
    entering = zip(*(reversed(config.unflatten(each)) for each in state), strict=True)
    state = ()
    for scale, parts in zip(reversed(bijection.scales), entering, strict=True):
        if parts[0] is not None:
            state = _joined([state, parts] if state else [parts])
        state = _walk(scale, direction, state, visit)
    return state


def _joined(states: Sequence[State]) -> State:
    """Each of the tensors of some states along the channels."""
    return tuple(torch.cat(each, dim=1) for each in zip(*states, strict=True))


def _in_slices(layer: Bijection, function: Callable[..., State], *tensors: Tensor) -> State:
    """``function(*tensors)``, with large batches of a coupling in slices, joined again.

    Images do not depend on each other, so that only the memory depends on the slices.
    """
    batch = size = tensors[0].shape[0]
    if isinstance(layer, AffineCoupling):
        height, width = tensors[0].shape[2:]
        size = max(1, SLICE // (layer.network.norms[0].shift.numel() * height * width))
    if size >= batch:
        return function(*tensors)
    slices = zip(*(each.split(size) for each in tensors), strict=True)
    results = [function(*each) for each in slices]
    return tuple(torch.cat(each) for each in zip(*results, strict=True))


def _step(
    layer: Bijection,
    direction: str,
    value: Tensor,
    gradient: Tensor,
    logdet_gradient: Tensor,
    parameters: list[Tensor],
) -> tuple[Tensor | None, ...]:
    """One layer back: from its value to its argument, the argument's gradient, the parameters'.

    Args:
        layer: Any bijection.
        direction: What made the value, ``"encode"`` or ``"decode"``.
        value: Result of the layer (B, ...).
        gradient: Gradient with respect to it.
        logdet_gradient: Gradient with respect to its log-determinant (B,).
        parameters: Those of the layer whose gradients are wanted.
    """
    argument = getattr(layer, INVERSE[direction])(value)[0].detach().requires_grad_()
    with torch.enable_grad():
        results = getattr(layer, direction)(argument)
    pairs = zip(results, (gradient, logdet_gradient), strict=True)
    outputs, gradients = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
    slopes = torch.autograd.grad(outputs, (argument, *parameters), gradients, allow_unused=True)
    return argument.detach(), *slopes


def _coupling_step(
    layer: AffineCoupling,
    direction: str,
    value: Tensor,
    gradient: Tensor,
    logdet_gradient: Tensor,
    parameters: list[Tensor],
) -> tuple[Tensor | None, ...]:
    """:func:`_step` for a coupling, whose network has to run only once.

    The half that the network sees is the same in value and argument, so that one scale and shift
    serve the inversion and the gradients: of ``z = exp(log_scale) x + shift`` in encode, of
    ``x = (z - shift) exp(-log_scale)`` in decode.
    """
    kept, changed = layer._halves(value)
    kept_gradient, changed_gradient = layer._halves(gradient)
    kept = kept.detach().requires_grad_()
    with torch.enable_grad():
        log_scale, shift = layer._log_scale_and_shift(kept)
    scale, inverse_scale = log_scale.detach().exp(), (-log_scale.detach()).exp()
    from_logdet = logdet_gradient[:, None, None, None]
    if direction == "encode":
        before = (changed - shift.detach()) * inverse_scale
        before_gradient = changed_gradient * scale
        outputs = changed_gradient * before * scale + from_logdet, changed_gradient
    else:
        before = changed * scale + shift.detach()
        before_gradient = changed_gradient * inverse_scale
        outputs = -changed_gradient * changed - from_logdet, -before_gradient
    slope, *slopes = torch.autograd.grad((log_scale, shift), (kept, *parameters), outputs)
    argument = layer._join(kept.detach(), before)
    return argument, layer._join(kept_gradient + slope, before_gradient), *slopes
