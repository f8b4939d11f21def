"""Our solver step and decode beside the code that the paper's author released, in one process.

    git clone https://github.com/jarchv/solverip AUTHOR
    python benchmarks/against_author.py AUTHOR

Both have the architecture of the paper with random weights and take turns. As released, the
author's step differentiates the weights too; frozen, only the latents. FLOPs of a decode are
counted by PyTorch; the rate of a matrix product is measured beside it. What the author's files
import and the network does not use is replaced by empty modules where it is missing. Results go to
benchmarks/results/against_author.json and .md, in place of those of the same kind of machine.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowmend.flow import build_flow, preset
from flowmend.latent import minimise
from flowmend.objective import likelihood
from flowmend.operators import Identity
from flowmend.prior import FlowPrior
from flowmend.provenance import provenance, told
from flowmend.report import write_json

ROOT = Path(__file__).resolve().parent.parent
ALPHA = 0.025
LIMITS = {"as released": 0.45, "weights frozen": 0.75}
"""Largest wanted time of our float32 step, as a share of the author's."""
MATRIX = 1024
UNUSED = {
    "torchvision": ("transforms",),
    "torchvision.transforms": (),
    "torchvision.utils": ("make_grid",),
    "torchsummary": ("summary",),
}
"""What the author's files import beside the network's needs: empty where it is missing."""
Timed = dict[str, Callable[[], None]]


def author_network(folder: Path) -> torch.nn.Module:
    """The author's network, its weights drawn as its code draws them."""
    missing = {top for top in ("torchvision", "torchsummary") if not importlib.util.find_spec(top)}
    for name, contents in UNUSED.items():
        if name.partition(".")[0] in missing:
            sys.modules[name] = types.ModuleType(name)
            for item in contents:
                setattr(sys.modules[name], item, None)
    sys.path.insert(0, str(folder))
    from network import model

    conf = types.SimpleNamespace(img_ch=3, img_size=32, hid_dim=512, K=2, L=5)
    network = model.FSGF(conf)
    network.set_actnorm_init()
    return network.eval()


def author_step(network: torch.nn.Module, y: torch.Tensor, frozen: bool) -> Callable[[], None]:
    """One step of Eq. 7 on the author's network, with Adam on the latents."""
    z = torch.nn.Parameter(0.1 * torch.randn(len(y), 3072))
    adam = torch.optim.Adam([z], lr=5e-3)

    def step() -> None:
        network.requires_grad_(not frozen)
        adam.zero_grad()
        parts = network.unflatten_z(z)
        x, logdet = network(parts, reverse=True, deq=False)
        energy = 0.5 * z.square().sum(1) + logdet
        loss = (x - y).abs().flatten(1).sum(1) + ALPHA * energy
        loss.sum().backward()
        adam.step()

    return step


def ours(y: torch.Tensor) -> Timed:
    """Our steps and decodes in both precisions."""
    prior = FlowPrior(build_flow(preset("paper"))).requires_grad_(False).eval()
    z = prior.latents(len(y), 0.1, torch.Generator().manual_seed(0))
    timed: Timed = {}
    for precision in ("float32", "bfloat16"):
        twin = prior.at_precision(precision)

        def step(twin: FlowPrior = twin) -> None:
            minimise(
                likelihood(ALPHA), y, Identity(prior.shape), twin, z, steps=1, learning_rate=5e-3
            )

        def decode(twin: FlowPrior = twin) -> None:
            with torch.no_grad():
                twin.decode(z)

        timed[f"our step, {precision}"] = step
        timed[f"our decode, {precision}"] = decode
    return timed


def products(count: int = 8) -> Timed:
    """Matrix products in both precisions."""
    timed: Timed = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(count):
                a @ b

        timed[f"products, {str(dtype).removeprefix('torch.')}"] = multiply
    return timed


def measure(timed: Timed, repeats: int) -> dict[str, dict[str, float]]:
    """Median, least and most seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(repeats + 1):
        for name, action in timed.items():
            begun = time.perf_counter()
            action()
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    return {
        name: {"median": statistics.median(v), "least": min(v), "most": max(v)}
        for name, v in seconds.items()
    }


def page(results: list[dict]) -> str:
    """The results in Markdown, a section for each kind of machine."""
    lines = [
        "# Speed beside the author's code",
        "",
        "Written by `benchmarks/against_author.py`; do not edit. Architecture of the paper; the "
        "last run on each kind of machine. Ratios differ between processors.",
    ]
    for result in results:
        lines += ["", *section(result)]
    return "\n".join(lines) + "\n"


def section(result: dict) -> list[str]:
    """The lines of one kind of machine."""
    seconds = {name: value["median"] for name, value in result["seconds"].items()}
    lines = [
        f"## {result['made_with']['device']}",
        "",
        f"Batch {result['batch']}, medians of {result['repeats']} turns.",
        "",
        "| | ms | least to most |",
        "|---|---:|---:|",
    ]
    for name, value in result["seconds"].items():
        if not name.startswith("products"):
            spread = f"{1e3 * value['least']:.0f} to {1e3 * value['most']:.0f}"
            lines.append(f"| {name} | {1e3 * value['median']:.0f} | {spread} |")
    lines.append("")
    for kind, limit in LIMITS.items():
        for precision in ("float32", "bfloat16"):
            ratio = seconds[f"our step, {precision}"] / seconds[f"author's step, {kind}"]
            met = "met" if ratio <= limit else "missed"
            lines.append(
                f"- Our {precision} step takes {ratio:.2f} of the author's {kind} (wanted: at "
                f"most {limit}, {met})."
            )
    for precision, rate in result["rates"].items():
        share = rate["decode"] / rate["product"]
        wanted = ""
        if precision == "float32":
            wanted = f" (wanted: 80 %, {'met' if share >= 0.8 else 'missed'})"
        lines.append(
            f"- A {precision} decode of {result['gflop']:.1f} GFLOP runs at {rate['decode']:.0f} "
            f"GFLOP/s, {100 * share:.0f} % of the {rate['product']:.0f} of a matrix product of "
            f"side {MATRIX}{wanted}."
        )
    return [*lines, "", told(result["made_with"])]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("author", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    y = torch.rand(arguments.batch, 3, 32, 32)
    network = author_network(arguments.author)
    timed = ours(y) | products()
    z = torch.zeros(arguments.batch, 3072)
    with FlopCounterMode(display=False) as counter:
        timed["our decode, float32"]()
    for kind in LIMITS:
        timed[f"author's step, {kind}"] = author_step(network, y, kind == "weights frozen")

    def author_decode() -> None:
        with torch.no_grad():
            network(network.unflatten_z(z), reverse=True, deq=False)

    timed["author's decode"] = author_decode
    seconds = measure(timed, arguments.repeats)
    gflop = counter.get_total_flops() / 1e9
    rates = {
        precision: {
            "decode": gflop / seconds[f"our decode, {precision}"]["median"],
            "product": 8 * 2 * MATRIX**3 / 1e9 / seconds[f"products, {precision}"]["median"],
        }
        for precision in ("float32", "bfloat16")
    }
    result = {
        "batch": arguments.batch,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "gflop": gflop,
        "seconds": seconds,
        "rates": rates,
        "made_with": provenance(),
    }
    path = arguments.out / "against_author.json"
    known = json.loads(path.read_text()) if path.is_file() else []
    device = result["made_with"]["device"]
    results = [r for r in known if r["made_with"]["device"] != device] + [result]
    write_json(path, results)
    (arguments.out / "against_author.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
