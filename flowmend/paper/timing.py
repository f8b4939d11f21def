"""Table 2: time and size of swap + 1x1 coupling functions against invertible 1x1 convolutions.

Source: Generative Flows as a General Purpose Solution for Inverse Problems (Chavez, 2021),
https://arxiv.org/abs/2110.13285, Table 2.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from ..errors import FlowmendError
from ..flow import FlowConfig
from ..provenance import device_name, package_version
from .contenders import CONTENDERS, Contender, Timed, build_contender

__all__ = ["QUANTITIES", "measure_times", "table2"]

QUANTITIES = ("generation", "latent step", "training step")
"""What is timed: decoding; decoding, an L1 error and its gradient by the latent, with the weights
frozen; encoding, likelihood, gradients by the weights and a step of Adam."""
PRINTED = {"glow": (10.86, 0.18, 33.8), "paper": (4.46, 0.03, 32.7)}
"""Table 2 of the paper: mean and standard deviation in ms, parameters in millions. Measured on a
GTX 750 Ti; per image or per batch, and which passes, is not stated."""
LEARNING_RATE = 1e-5
WARM_UP = 2
QUICK_REPEATS = 3
QUICK_BATCH = 32
SEED = 0

Progress = Callable[[int, int, str], None]


def _action(
    quantity: str, timed: Timed, config: FlowConfig, batch: int, device: torch.device
) -> Callable[[], object]:
    """What is timed, on fixed data that lies on the device already."""
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn(batch, config.dimensions, generator=generator).to(device)
    x = (2.0 * torch.rand(batch, *config.shape, generator=generator) - 1.0).to(device)
    if quantity == "generation":
        return torch.no_grad()(lambda: timed.decode(z))
    if quantity == "latent step":
        z.requires_grad_(True)
        return lambda: torch.autograd.grad((timed.decode(z) - x).abs().sum(), z)
    adam = torch.optim.Adam(timed.network.parameters(), lr=LEARNING_RATE)

    def train() -> None:
        adam.zero_grad()
        timed.loss(x).backward()
        adam.step()

    return train


def _milliseconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call in ms, from an idle device to an idle device."""
    _synchronise(device)
    begun = time.perf_counter()
    action()
    _synchronise(device)
    return 1e3 * (time.perf_counter() - begun)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _interleaved(
    quantity: str, timed: dict[Contender, Timed], batch: int, device: torch.device
) -> Iterator[list[float]]:
    """Round after round, the times in ms of one call of every contender, in order."""
    actions = [_action(quantity, one, c.config, batch, device) for c, one in timed.items()]
    while True:
        yield [_milliseconds(action, device) for action in actions]


def _usual_repeats(batch: int) -> int:
    return 30 if batch < 8 else 15 if batch <= 32 else 6


def measure_times(
    batches: Sequence[int] = (1, 32, 128),
    repeats: int | None = None,
    progress: Progress | None = None,
    *,
    quick: bool = False,
    device: str | torch.device = "cpu",
    contenders: Sequence[Contender] = CONTENDERS,
) -> list[dict]:
    """Times the contenders in turn, in this process, in float32 with PyTorch's defaults.

    For each quantity and batch, all contenders warm up (two rounds, one if quick); then each
    repeat times every contender once, in the order given, so that a machine that slows down slows
    all of them. Weights are random, the last layers too: times do not depend on their values, but
    nothing is to be saved on zeros. On a GPU the defaults let convolutions use TF32.

    Args:
        batches: Images at a time.
        repeats: Timed calls of each, at least 2; None takes 30 below 8 images, 15 up to 32, and 6
            above.
        progress: Called with (rounds done, rounds, what) before each repeat, outside the times.
        quick: Three repeats unless ``repeats`` says otherwise, and no batch above 32.
        device: Where to compute; a GPU is idle when a clock starts and when it stops.
        contenders: The lines of the table.

    Returns:
        For each contender, quantity and batch the mean, standard deviation and median in ms, per
        batch, not per image. A contender whose library is not installed has one line that says so
        under ``skipped``.

    Raises:
        FlowmendError: If ``repeats`` is below 2, a batch below 1, or there is no batch.
    """
    device = torch.device(device)
    if quick:
        batches = [batch for batch in batches if batch <= QUICK_BATCH]
    if not batches or min(batches) < 1:
        raise FlowmendError(
            "Nothing to time: choose batches of 1 or more images"
            + (f", and for a quick run of at most {QUICK_BATCH}." if quick else ".")
        )
    if repeats is None:
        rounds = {batch: QUICK_REPEATS if quick else _usual_repeats(batch) for batch in batches}
    else:
        rounds = dict.fromkeys(batches, repeats)
    if min(rounds.values()) < 2:
        raise FlowmendError(f"No deviation of {repeats} repeats: ask for 2 or more.")
    missing = [
        {
            "item": "table2",
            "row": contender.name,
            "skipped": f"{contender.library} is not installed: pip install {contender.library}",
        }
        for contender in contenders
        if importlib.util.find_spec(contender.library) is None
    ]
    absent = {row["row"] for row in missing}
    timed = {c: build_contender(c, device) for c in contenders if c.name not in absent}
    warm_up = 1 if quick else WARM_UP
    rows: list[dict] = []
    done, total = 0, len(QUANTITIES) * sum(count + warm_up for count in rounds.values())
    for quantity in QUANTITIES:
        for one in timed.values():
            one.network.requires_grad_(quantity == "training step")
        for batch, count in rounds.items():
            calls = _interleaved(quantity, timed, batch, device)
            taken = []
            for _ in range(warm_up + count):
                if progress is not None:
                    progress(done, total, f"{quantity}, {batch} at a time")
                taken.append(next(calls))
                done += 1
            for contender, *times in zip(timed, *taken[warm_up:], strict=True):
                rows.append(_row(contender, timed[contender], quantity, batch, times, device))
    return rows + missing


def _row(
    contender: Contender,
    timed: Timed,
    quantity: str,
    batch: int,
    times: list[float],
    device: torch.device,
) -> dict:
    name = contender.library
    return {
        "item": "table2",
        "row": contender.name,
        "quantity": quantity,
        "batch": batch,
        "mean_ms": statistics.mean(times),
        "sd_ms": statistics.stdev(times),
        "median_ms": statistics.median(times),
        "repeats": len(times),
        "parameters": sum(p.numel() for p in timed.network.parameters()),
        "library": f"{name} {package_version(name)}",
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }


def table2(rows: Sequence[dict]) -> str:
    """Table 2 as Markdown: times of one run, their ratios to ``paper``, and the printed figures.

    Args:
        rows: What one call of :func:`measure_times` returned.

    Raises:
        FlowmendError: If there is no time among them, or two of the same thing.
    """
    times: dict[tuple[str, int, str], dict] = {}
    for row in rows:
        if "skipped" in row:
            continue
        key = (row["row"], row["batch"], row["quantity"])
        if key in times:
            raise FlowmendError(
                f"Two times of '{key[0]}', {key[2]}, batch {key[1]}: give the rows of one run."
            )
        times[key] = row
    if not times:
        raise FlowmendError("There is no time for Table 2: measure it first.")
    names = list(dict.fromkeys(name for name, _, _ in times))
    batches = list(dict.fromkeys(batch for _, batch, _ in times))
    parameters = {name: row["parameters"] for (name, _, _), row in times.items()}
    devices = "; ".join(dict.fromkeys(row["device"] for row in times.values()))
    heads = " | ".join(quantity.capitalize() for quantity in QUANTITIES)
    rule = "|---|---:|---:|" + "---:|" * len(QUANTITIES)
    lines = [
        f"Milliseconds per batch, mean ± standard deviation; float32; {devices}.",
        "",
        f"| Flow | Parameters | Batch | {heads} |",
        rule,
    ]
    for batch in batches:
        for name in names:
            cells = [_time(times.get((name, batch, quantity))) for quantity in QUANTITIES]
            count = f"{parameters[name]:,}"
            lines.append(f"| {name} | {count} | {batch} | {' | '.join(cells)} |")
    for name, (mean, deviation, millions) in PRINTED.items():
        printed = [f"{mean:.2f} ± {deviation:.2f}", *["-"] * (len(QUANTITIES) - 1)]
        lines.append(f"| {name}, as printed | {millions} M | - | {' | '.join(printed)} |")
    lines += ["", f"| Ratio to `paper` | Parameters | Batch | {heads} |", rule]
    for batch in batches:
        for name in names:
            if name == "paper" or "paper" not in parameters:
                continue
            cells = [
                _ratio(times.get((name, batch, q)), times.get(("paper", batch, q)))
                for q in QUANTITIES
            ]
            share = f"{parameters[name] / parameters['paper']:.2f}"
            lines.append(f"| {name} | {share} | {batch} | {' | '.join(cells)} |")
    glow, ours = PRINTED["glow"], PRINTED["paper"]
    cells = [f"{glow[0] / ours[0]:.2f}", *["-"] * (len(QUANTITIES) - 1)]
    lines.append(f"| glow, as printed | {glow[2] / ours[2]:.2f} | - | {' | '.join(cells)} |")
    lines += ["", "Printed: on a GTX 750 Ti; per image or per batch is not stated."]
    for row in rows:
        if "skipped" in row:
            lines += ["", f"No line for {row['row']}: {row['skipped']}."]
    return "\n".join(lines) + "\n"


def _time(row: dict | None) -> str:
    if row is None:
        return "-"
    digits = 2 if row["mean_ms"] < 100.0 else 0
    return f"{row['mean_ms']:.{digits}f} ± {row['sd_ms']:.{digits}f}"


def _ratio(row: dict | None, reference: dict | None) -> str:
    """The ratio of two means, as the paper's own figures give it."""
    if row is None or reference is None:
        return "-"
    return f"{row['mean_ms'] / reference['mean_ms']:.2f}"
