"""Priors from, and for, the checkpoints of the paper's own code.

How its network and ours correspond stands in :mod:`flowmend.fsgf`. Nothing in a file is ever run.

Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
https://arxiv.org/abs/2110.13285, and its code, https://github.com/jarchv/solverip
"""

import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FlowmendError
from .files import atomic_path, writing
from .flow import FlowConfig
from .fsgf import (
    LARGEST_REPEATS,
    SIZES,
    Slot,
    architecture,
    check_architecture,
    empty_flow,
    expected_shapes,
    identity_step,
    is_identity_step,
    place_steps,
    with_leading_step,
)
from .prior import FlowPrior

__all__ = [
    "author_config",
    "from_author",
    "read_author_checkpoint",
    "save_author_checkpoint",
    "to_author",
]

SAFE_TORCH = (2, 6)
"""The first release whose ``weights_only`` keeps code in a file from running (CVE-2025-32434)."""


def _check_layout(state: dict[str, Tensor], config: FlowConfig) -> None:
    """Raises FlowmendError with the first name or shape that differs."""
    expected = expected_shapes(config)
    for name in expected:
        if name not in state:
            raise FlowmendError(f"The checkpoint lacks '{name}': it is no whole FSGF network.")
    for name in state:
        if name not in expected:
            raise FlowmendError(f"The checkpoint holds '{name}', which no FSGF network has.")
    for name, shape in expected.items():
        found = tuple(state[name].shape)
        if found != shape:
            raise FlowmendError(f"'{name}' in the checkpoint has shape {found}, not {shape}.")


def _check_kinds(state: object) -> None:
    """Raises FlowmendError unless ``state`` maps names to ordinary floating-point tensors."""
    if not isinstance(state, dict) or not state:
        raise FlowmendError("The weights of the checkpoint must be a dictionary of tensors.")
    for name, value in state.items():
        plain = (
            isinstance(name, str)
            and isinstance(value, Tensor)
            and value.layout == torch.strided
            and not value.is_meta
            and value.is_floating_point()
        )
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise FlowmendError(f"'{name}' in the checkpoint is no floating-point tensor.")


def _check_finite(state: dict[str, Tensor]) -> None:
    for name, value in state.items():
        if not bool(torch.isfinite(value.detach().float()).all()):
            raise FlowmendError(f"'{name}' in the checkpoint is not finite: it cannot be used.")


def author_config(state: dict[str, Tensor], bits: int = 5) -> FlowConfig:
    """Reads the author's architecture off the names and shapes of a state.

    Args:
        state: The author's tensors by name, as :func:`read_author_checkpoint` returns them.
        bits: Bits per channel it was trained on; no tensor tells. The author's code has 5.

    Returns:
        The architecture, of images of side 32, 64 or 128.

    Raises:
        FlowmendError: If the state is of no such network; the message names the first difference.
    """
    _check_kinds(state)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    first, hidden = (shapes.get(f"layers.2.{n}", ()) for n in ("norm.bias", "layer.NN.norm1.bias"))
    if len(first) != 4 or len(hidden) != 4:
        raise FlowmendError("The checkpoint is of no FSGF network: its first step is missing.")
    repeats = 1
    while f"layers.{2 + repeats}.norm.bias" in shapes:
        repeats += 1
    if repeats > LARGEST_REPEATS:
        raise FlowmendError(f"The checkpoint has more than {LARGEST_REPEATS} steps a scale.")
    candidates = [architecture(n, first[1] // 4, hidden[1], repeats, bits) for n in SIZES]
    best = min(candidates, key=lambda c: len(expected_shapes(c).items() ^ shapes.items()))
    _check_layout(state, best)
    return best


def from_author(state: dict[str, Tensor], config: FlowConfig) -> FlowPrior:
    """Turns the weights of the author's network into a prior: the same image from a latent.

    The map is exact but for rounding: ``decode(z)`` of the prior, (B, C, H, W) in [0, 1], is
    (u + 1) / 2 for the author's image u in [-1, 1] from the same flat latent z (B, D), split
    halves first. The prior has one step more at the finest scale, the first, which changes
    nothing (:mod:`flowmend.fsgf` says why).

    Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
    https://arxiv.org/abs/2110.13285

    Args:
        state: The author's tensors by name, floating-point, finite.
        config: The author's architecture: ``preset("paper")`` for the paper's, or
            :func:`author_config`.

    Returns:
        The prior: float32, on the CPU, in evaluation mode, weights frozen; without a Gaussian.

    Raises:
        FlowmendError: If the architecture is not the author's, or a tensor is missing, unknown,
            of another shape or not finite.
    """
    check_architecture(config, any_steps=False)
    _check_kinds(state)
    _check_layout(state, config)
    _check_finite(state)
    ours = with_leading_step(config)
    flow = empty_flow(ours)
    shapes = {key: value.shape for key, value in flow.state_dict().items()}
    leading = Slot(0, 0, 0).ours()
    tensors = dict(zip(leading, identity_step([shapes[name] for name in leading]), strict=True))
    for slot in place_steps(ours, skip_first=True):
        for theirs, name in zip(slot.theirs(), slot.ours(), strict=True):
            value = state[theirs].detach().to("cpu", torch.float32, copy=True)
            tensors[name] = value.reshape(shapes[name]).contiguous()
    flow.load_state_dict(tensors, assign=True)
    card = {"converted_from": "FSGF checkpoint of https://github.com/jarchv/solverip"}
    return FlowPrior(flow, card=card).eval().requires_grad_(False)


def to_author(prior: FlowPrior) -> dict[str, Tensor]:
    """Turns a prior into the weights of the author's network: the inverse of :func:`from_author`.

    The author's network runs K steps a scale (2K below 4x4). K is the smallest that holds the
    prior's steps; steps that change nothing fill the rest. A prior from :func:`from_author` gives
    the state it came from, one trained as preset ``paper`` needs K = 3 where it has 2.

    Args:
        prior: A prior of the author's architecture, with any number of steps.

    Returns:
        The author's tensors by name: float32, on the CPU, sharing no memory with the prior.

    Raises:
        FlowmendError: If the author's network cannot be the prior, or a weight is not finite.
    """
    config = prior.config
    check_architecture(config, any_steps=True)
    weights = {k: v.detach().to("cpu", torch.float32) for k, v in prior.flow.state_dict().items()}
    leading = Slot(0, 0, 0).ours()
    skip_first = config.steps[0] > 0 and is_identity_step([weights[name] for name in leading])
    slots = place_steps(config, skip_first)
    repeats = sum(slot.scale == 0 for slot in slots)
    theirs = architecture(config.height, config.channels, config.widths[0], repeats, config.bits)
    shapes = expected_shapes(theirs)
    state = {}
    for slot in slots:
        names = slot.theirs()
        wanted = [torch.Size(shapes[name]) for name in names]
        empty = slot.place is None
        values = identity_step(wanted) if empty else [weights[name] for name in slot.ours()]
        for name, value, shape in zip(names, values, wanted, strict=True):
            state[name] = value.reshape(shape).clone(memory_format=torch.contiguous_format)
    _check_finite(state)
    return state


def _load(path: Path) -> object:
    """What a file holds, without running anything in it."""
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise FlowmendError(
            f"'{path}' cannot be read: it is truncated, no checkpoint, or holds objects other "
            "than tensors, which are never unpickled."
        ) from error
    if not isinstance(content, dict) or "state_dict_net" not in content:
        raise FlowmendError(f"'{path}' is no checkpoint of the author's: no 'state_dict_net'.")
    return content["state_dict_net"]


def read_author_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads the weights of the author's network from a file; nothing in it is ever run.

    Args:
        path: A torch checkpoint with the weights under ``state_dict_net``, or safetensors (by its
            ending) with the same names.

    Returns:
        The author's tensors by name, on the CPU, fit for :func:`author_config`.

    Raises:
        FlowmendError: If there is no such file, it is damaged or holds more than tensors, or its
            tensors are not those of the author's network, finite and of the right shapes.
    """
    path = Path(path)
    try:
        exists = path.is_file()
    except OSError:  # a name the file system cannot hold
        exists = False
    if not exists:
        raise FlowmendError(f"'{path}' is no file: give a checkpoint of the author's code.")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_TORCH and path.suffix.lower() != ".safetensors":
        raise FlowmendError(
            f"torch {torch.__version__} cannot read a checkpoint safely: install torch 2.6 or "
            "later, or store the weights as safetensors."
        )
    state = _load(path)
    try:
        author_config(state)
        _check_finite(state)
    except FlowmendError as error:
        raise FlowmendError(f"Cannot use '{path}': {error}") from error
    return dict(state)


def save_author_checkpoint(path: str | Path, state: dict[str, Tensor]) -> Path:
    """Writes a state for the author's code: its solver loads it, its trainer wants more.

    Args:
        path: Destination. Safetensors by its ending, else a torch checkpoint with the key
            ``state_dict_net``.
        state: The author's tensors by name, as :func:`to_author` returns them.

    Returns:
        The path.

    Raises:
        FlowmendError: If the file cannot be written.
    """
    path = Path(path)
    with writing(path), atomic_path(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            save_file(state, temporary)
        else:
            torch.save({"state_dict_net": state}, temporary)
    return path
