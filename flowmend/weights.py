"""Weights files: safetensors with the configuration inside and a card beside them.

Nothing here unpickles. A file is checked against its configuration before a single weight is
kept, and against the sha256 of its card where there is one.
"""

import hashlib
import json
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .continuous import ContinuousPrior
from .errors import FlowmendError
from .files import atomic_path, writing
from .flow import FlowConfig, MultiscaleFlow, VelocityConfig, VelocityNet, Whitening
from .lowrank import LowRankGaussian
from .prior import FlowPrior, GaussianPrior
from .stationary import StationaryGaussian

__all__ = ["FORMAT", "add_to_card", "find_weights", "load_prior", "save_prior", "shipped_priors"]

FORMAT = "flowmend.prior.1"
CONFIGS = {"coupling": FlowConfig, "continuous": VelocityConfig}
"""Kinds of priors. A file that names no kind holds a coupling flow."""
LARGEST_STEPS = 1024


def shipped_priors() -> list[str]:
    """Names of the priors inside the package."""
    folder = resources.files(__package__) / "priors"
    return sorted(
        item.name.removesuffix(".safetensors")
        for item in folder.iterdir()
        if item.name.endswith(".safetensors")
    )


def find_weights(name: str | Path) -> Path:
    """Turns a shipped prior's name, a weights file or a training folder into a weights file.

    A shipped name is that prior whatever lies in the working directory; a folder that happens to
    be called so is ``./natural``, or a :class:`Path`.

    Raises:
        FlowmendError: If there is no such prior.
    """
    if isinstance(name, str) and name in shipped_priors():
        return Path(str(resources.files(__package__) / "priors" / f"{name}.safetensors"))
    path = Path(name)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            path = path / "prior.safetensors"
            if path.is_file():
                return path
            raise FlowmendError(f"'{name}' holds no prior.safetensors: is its training finished?")
    except OSError:  # a name the file system cannot hold
        pass
    raise FlowmendError(
        f"There is no prior '{name}': give a weights file, a training folder, or one of the "
        f"shipped priors ({', '.join(shipped_priors())})."
    )


def pack_symmetric(matrix: Tensor) -> Tensor:
    """Keeps the lower triangle of a symmetric (D, D) matrix: a vector of D(D+1)/2 values."""
    rows, columns = torch.tril_indices(*matrix.shape)
    return matrix[rows, columns]


def unpack_symmetric(triangle: Tensor, size: int) -> Tensor:
    """The inverse of :func:`pack_symmetric`."""
    rows, columns = torch.tril_indices(size, size)
    matrix = triangle.new_empty(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _network(prior: FlowPrior | ContinuousPrior) -> torch.nn.Module:
    """What a file holds the weights of."""
    return prior.velocity if isinstance(prior, ContinuousPrior) else prior.flow


def _gaussian_tensors(gaussian: GaussianPrior | LowRankGaussian) -> dict[str, Tensor]:
    """What a file holds of a Gaussian."""
    tensors = {"gaussian.mean": gaussian.mean.detach().cpu().float()}
    if isinstance(gaussian, GaussianPrior):
        triangle = pack_symmetric(gaussian.whitening.matrix.detach().cpu())
        return tensors | {"gaussian.whitening": triangle.to(torch.float16)}
    return tensors | {
        "gaussian.directions": gaussian.directions.detach().cpu().to(torch.float16),
        "gaussian.variances": gaussian.variances.detach().cpu().float(),
        "gaussian.spectrum": gaussian.rest.spectrum.detach().cpu().float(),
    }


def save_prior(
    path: str | Path,
    prior: FlowPrior | ContinuousPrior,
    half: bool = False,
    card: bool = True,
) -> Path:
    """Writes a prior as ``path`` (safetensors) and, beside it, its card ``.json`` with sha256.

    Args:
        path: Destination, ending in ``.safetensors``.
        prior: The prior, of either kind.
        half: Store the weights in float16 (the file halves; loading gives float32 again).
        card: Whether to write the card file too.

    Raises:
        FlowmendError: If a weight is not finite or the file cannot be written.
    """
    path = Path(path)
    dtype = torch.float16 if half else torch.float32
    state = _network(prior).state_dict()
    tensors = {f"flow.{key}": value.detach().cpu().to(dtype) for key, value in state.items()}
    if prior.gaussian is not None:
        tensors |= _gaussian_tensors(prior.gaussian)
    stationary = getattr(prior, "stationary", None)
    if stationary is not None:
        tensors["stationary.mean"] = stationary.mean.detach().cpu().float()
        tensors["stationary.spectrum"] = stationary.spectrum.detach().cpu().float()
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise FlowmendError(f"The weights '{key}' are not finite: refusing to save them.")
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "kind": next(k for k, config in CONFIGS.items() if isinstance(prior.config, config)),
        "config": json.dumps(prior.config.to_dict()),
        "card": json.dumps(prior.card),
    }
    with writing(path), atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    if card:
        side = path.with_suffix(".json")
        facts = {"sha256": sha256_of(path), "config": prior.config.to_dict(), **prior.card}
        with writing(side), atomic_path(side) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise FlowmendError(
                    f"'{path}' is a safetensors file, but not one of flowmend's priors."
                )
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise FlowmendError(
            f"'{path}' is not a readable safetensors file (it may be truncated, or pickled "
            f"weights, which are never loaded): {error}."
        ) from error


def _build(
    config: FlowConfig | VelocityConfig, tensors: dict[str, Tensor], path: Path
) -> MultiscaleFlow | VelocityNet:
    """Builds the flow without memory, compares it with the file, and only then fills it."""
    coupling = isinstance(config, FlowConfig)
    if coupling and sum(config.steps) > LARGEST_STEPS:
        raise FlowmendError(f"'{path}' asks for more than {LARGEST_STEPS} flow steps.")
    with torch.device("meta"):
        flow = MultiscaleFlow(config) if coupling else VelocityNet(config)
    expected = {key: tuple(value.shape) for key, value in flow.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if expected != found:
        differing = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise FlowmendError(
            f"The weights in '{path}' do not fit the configuration stored with them "
            f"(first difference: '{differing}')."
        )
    flow.load_state_dict(tensors, assign=True)
    return flow


def _gaussian(
    tensors: dict[str, Tensor], config: FlowConfig | VelocityConfig, path: Path
) -> GaussianPrior | LowRankGaussian:
    if "gaussian.directions" in tensors:
        return _low_rank(tensors, config, path)
    if not {"gaussian.mean", "gaussian.whitening"} <= set(tensors):
        raise FlowmendError(f"The Gaussian in '{path}' is incomplete.")
    mean, triangle = tensors["gaussian.mean"], tensors["gaussian.whitening"]
    size = config.dimensions
    if tuple(mean.shape) != config.shape or triangle.numel() != size * (size + 1) // 2:
        raise FlowmendError(f"The Gaussian in '{path}' does not fit its configuration.")
    gaussian = GaussianPrior(Whitening(mean, unpack_symmetric(triangle, size)))
    try:
        gaussian.log_prob(mean[None])
    except torch.linalg.LinAlgError as error:
        raise FlowmendError(
            f"The Gaussian in '{path}' is not one: its matrix is not positive definite."
        ) from error
    return gaussian


def _low_rank(
    tensors: dict[str, Tensor], config: FlowConfig | VelocityConfig, path: Path
) -> LowRankGaussian:
    try:
        mean, directions, variances, spectrum = (
            tensors[f"gaussian.{part}"] for part in ("mean", "directions", "variances", "spectrum")
        )
        rest = StationaryGaussian(torch.zeros_like(mean), spectrum)
        gaussian = LowRankGaussian(mean, directions, variances, rest)
    except FlowmendError as error:
        raise FlowmendError(f"The Gaussian in '{path}' cannot be one: {error}") from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise FlowmendError(f"The Gaussian in '{path}' is incomplete.") from error
    if gaussian.shape != config.shape:
        raise FlowmendError(f"The Gaussian in '{path}' does not fit its configuration.")
    return gaussian


def _stationary(tensors: dict[str, Tensor], path: Path) -> StationaryGaussian | None:
    if not any(key.startswith("stationary.") for key in tensors):
        return None
    try:
        return StationaryGaussian(tensors["stationary.mean"], tensors["stationary.spectrum"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise FlowmendError(f"The stationary Gaussian in '{path}' is incomplete.") from error


def load_prior(
    name: str | Path, device: str | torch.device = "cpu"
) -> FlowPrior | ContinuousPrior:
    """Loads a prior of either kind, ready to restore: float32, evaluating, weights frozen.

    Args:
        name: A shipped prior's name, a weights file, or the folder of a training run.
        device: Where to put it.

    Raises:
        FlowmendError: If it does not exist, or is corrupt, foreign, or not what its card says.
    """
    path = find_weights(name)
    tensors, metadata = _read(path)
    side = path.with_suffix(".json")
    if side.is_file():
        try:
            expected = json.loads(side.read_text()).get("sha256")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise FlowmendError(f"The card '{side}' is not readable JSON.") from error
        if expected is not None and expected != sha256_of(path):
            raise FlowmendError(
                f"'{path}' is not the file its card describes (sha256 differs): fetch it again, "
                f"or delete '{side.name}' if you changed the weights on purpose."
            )
    kind = metadata.get("kind", "coupling")
    if kind not in CONFIGS:
        raise FlowmendError(
            f"'{path}' holds a prior of the kind '{kind}', which this version does not know: "
            f"{', '.join(CONFIGS)}."
        )
    try:
        config = CONFIGS[kind].from_dict(json.loads(metadata["config"]))
        card = dict(json.loads(metadata.get("card", "{}")))
    except FlowmendError as error:
        raise FlowmendError(f"'{path}': {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlowmendError(f"The configuration stored in '{path}' is not readable.") from error
    tensors = {key: value.float() for key, value in tensors.items()}
    for key, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise FlowmendError(f"'{path}' holds weights that are not finite ('{key}').")
    weights = {k.removeprefix("flow."): v for k, v in tensors.items() if k.startswith("flow.")}
    flow = _build(config, weights, path)
    has_gaussian = any(key.startswith("gaussian.") for key in tensors)
    gaussian = _gaussian(tensors, config, path) if has_gaussian else None
    if kind == "continuous":
        prior = ContinuousPrior(flow, None, gaussian, card, stationary=_stationary(tensors, path))
    elif config.whiten and gaussian is None:
        raise FlowmendError(f"'{path}' lacks the Gaussian that its configuration needs.")
    else:
        prior = FlowPrior(flow, gaussian, card)
    return prior.eval().requires_grad_(False).to(device)


def add_to_card(path: Path, measure: Callable[[FlowPrior | ContinuousPrior], dict]) -> dict:
    """Writes what ``measure`` finds on a kept prior into its card, and returns the card."""
    prior = load_prior(path)
    prior.card |= measure(prior)
    save_prior(path, prior)
    return prior.card


def parameter_count(prior: torch.nn.Module) -> int:
    """Number of trained parameters."""
    return sum(math.prod(parameter.shape) for parameter in prior.parameters())
