"""How well the colours of a face can be known from its grey, and from how many faces.

    python benchmarks/colours.py celeba --faces 9000 --minutes 16
    python benchmarks/colours.py celeba --faces 2250 --minutes 16

A U-Net of its own for each number of faces learns nothing but colours, for so many minutes of one
processor core: what LMMSE, fitted to the same faces, lacks. Each face is shown moved, turned and
scaled at random, so that it is not learnt by heart, and the weights are those of the minute in
which validation faces were best. Test faces are coloured by it (the mean of both mirrorings), by
the prior, which was trained for every task, and by the mean of both; and how far the two are from
each other is compared with how far they are from the truth. Results go to
benchmarks/results/colours.json and .md, in place of those of as many faces.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import flowmend as fm
from flowmend.chance import generator_at, mirrored, random_affine
from flowmend.data import load_folder
from flowmend.flow import VelocityConfig
from flowmend.flow.velocity import EMBEDDING, UNet
from flowmend.operators import Grey
from flowmend.pixels import from_bytes, quantisation_sigma, round_to_bytes
from flowmend.provenance import provenance, told
from flowmend.recipes import MatchingRecipe
from flowmend.report import mean_or_none, write_json
from flowmend.weights import find_weights, sha256_of

SIDE = 32
SHAPE = (3, SIDE, SIDE)
WIDTHS = (48, 96, 160)
AFFINE = 0.15
"""How much a face is moved; see :func:`flowmend.chance.random_affine`."""
LEAST = 1e-5
"""Added to the squared error whose logarithm is minimised."""
SCALE = 0.1
"""Size of what LMMSE lacks, on the [0, 1] scale."""
WANTED = 1.8
"""Wanted gain over LMMSE, dB."""
ROOT = Path(__file__).resolve().parent.parent


class Colours(nn.Module):
    """Images from their grey: LMMSE of some faces and what a network adds to it.

    Args:
        levels: The faces uint8 (N, 3, H, W).
    """

    def __init__(self, levels: Tensor) -> None:
        super().__init__()
        gaussian = fm.GaussianPrior.fit(levels, bits=8).posterior(
            Grey(SHAPE), quantisation_sigma()
        )
        nothing = torch.zeros(1, 1, SIDE, SIDE)
        units = torch.eye(SIDE * SIDE).view(-1, 1, SIDE, SIDE)
        self.register_buffer("shift", gaussian.mean(nothing).flatten())
        self.register_buffer("matrix", gaussian.mean(units).flatten(1) - self.shift)
        self.network = UNet(VelocityConfig(widths=WIDTHS, size=(SIDE, SIDE)))
        self.embedding = nn.Parameter(torch.randn(1, EMBEDDING))

    def linear(self, y: Tensor) -> Tensor:
        """LMMSE (B, 3, H, W) of greys (B, 1, H, W)."""
        return (y.flatten(1) @ self.matrix + self.shift).view(-1, *SHAPE)

    def forward(self, y: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            first = self.linear(y)
        seen = [4.0 * (first - 0.5), 4.0 * (y.expand(-1, 3, -1, -1) - 0.5), torch.ones_like(first)]
        lacking = self.network(torch.cat(seen, 1), self.embedding.expand(len(y), -1))
        return first + SCALE * lacking.float()

    @torch.no_grad()
    def both(self, y: Tensor) -> Tensor:
        """The mean of what it makes of a grey and of its mirror image."""
        with torch.autocast("cpu", torch.bfloat16):
            return ((self(y) + self(y.flip(-1)).flip(-1)) / 2.0).clamp(0.0, 1.0)


def grey(x: Tensor) -> Tensor:
    """Greys (B, 1, H, W) as 8-bit files hold them."""
    return round_to_bytes(x.mean(1, keepdim=True))


def rms(x: Tensor, other: Tensor) -> float:
    """Root mean square of what images differ by, on the [0, 1] scale."""
    return float((x - other).square().mean().sqrt())


def train(
    net: Colours, larger: Tensor, held: Tensor, minutes: float, seed: int
) -> tuple[Colours, dict]:
    """The average of the weights where held-out faces were best, and what is known of it."""
    recipe = MatchingRecipe(batch=64, learning_rate=1e-3)
    optimiser, averages = recipe.optimiser(net, torch.device("cpu")), recipe.average(net)
    best, told_of = net, {"val": -math.inf}
    begun, used, step, judged = time.process_time(), 0.0, 0, 0.0
    while used < minutes:
        generator = generator_at(seed, 4, step)
        chosen = torch.randint(len(larger), (recipe.batch,), generator=generator)
        shown = random_affine(larger[chosen], (SIDE, SIDE), AFFINE, generator)
        x = from_bytes(mirrored(shown, generator))
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step, step * minutes / used if used else 1e6)
        with torch.autocast("cpu", torch.bfloat16):
            error = (net(grey(x)) - x).square().flatten(1).mean(1)
        optimiser.zero_grad(set_to_none=True)
        (error + LEAST).log().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimiser.step()
        averages.update_parameters(net)
        step, used = step + 1, (time.process_time() - begun) / 60.0
        if used - judged > 1.0 or used >= minutes:
            judged = used
            value = mean_or_none(fm.psnr(averages.module.both(grey(held)), held))
            print(f"{used:5.1f} minutes, {step} batches, validation {value:.2f} dB", flush=True)
            if value > told_of["val"]:
                best = copy.deepcopy(averages.module)
                told_of = {"val": value, "minutes": used, "batches": step}
    return best, told_of


def page(results: list[dict]) -> str:
    """The results in Markdown."""
    last = results[-1]
    lines = [
        "# Colours of faces, and from how many",
        "",
        f"Written by `benchmarks/colours.py`; do not edit. Mean PSNR in dB of {last['images']} "
        "test faces, coloured from their 8-bit grey. *Network*: a U-Net of "
        f"{last['parameters'] / 1e6:.1f} M parameters that learnt nothing but colours, by so many "
        "faces, each shown moved, turned and scaled; *best after*: where validation faces were, "
        "and the minutes of one core that it ran for. *Both*: the mean of its images and of those "
        f"of `{last['prior']}`.",
        "",
        "| faces | LMMSE of as many | network | best after | both |",
        "|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        lines.append(
            f"| {r['faces']} | {r['psnr']['linear']:.2f} | {r['psnr']['network']:.2f} | "
            f"{r['best']['minutes']:.0f} of {r['minutes']:g} | {r['psnr']['both']:.2f} |"
        )
    goal = last["psnr"]["prior lmmse"] + WANTED
    lines += [
        "",
        f"`{last['prior']}` of sha256 {last['sha256'][:12]}, which was trained for every task, "
        f"alone: {last['psnr']['prior']:.2f}, its LMMSE {last['psnr']['prior lmmse']:.2f}; "
        f"wanted: {WANTED} above that, {goal:.2f}.",
    ]
    if len(results) > 1:
        first = results[0]
        gain = last["psnr"]["network"] - first["psnr"]["network"]
        doubling = gain / math.log2(last["faces"] / first["faces"])
        text = f"From {first['faces']} to {last['faces']} faces a doubling gains {doubling:.2f} dB"
        if doubling > 0 and goal > last["psnr"]["network"]:
            lacking = goal - last["psnr"]["network"]
            needed = last["faces"] * 2.0 ** (lacking / doubling)
            text += f"; if it went on like this, what is wanted took {needed / 1000:.0f},000 faces"
        lines[-1] += f" {text}."
    found = last["rms"]
    lines[-1] += (
        f" The network of {last['faces']} faces and the prior differ from each other by "
        f"{found['network to prior']:.3f} on the [0, 1] scale "
        f"(root mean square), and from the truth by {found['network to truth']:.3f} and "
        f"{found['prior to truth']:.3f}: what they lack, they lack together."
    )
    made = [line for r in results for line in ("", told(r["made_with"]))]
    return "\n".join(lines + made) + "\n"


def main() -> None:
    """Trains, colours, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("celeba", type=Path, help="folder with train, val and test")
    parser.add_argument("--faces", type=int, default=9000)
    parser.add_argument("--minutes", type=float, default=16.0, help="of one core")
    parser.add_argument("--prior", default="faces32-continuous")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config, larger = (VelocityConfig(size=(side, side)) for side in (SIDE, 2 * SIDE))
    levels, parts = (load_folder(arguments.celeba / "train", c)[0] for c in (config, larger))
    chosen = torch.randperm(len(levels), generator=generator_at(arguments.seed, 1))
    chosen = chosen[: arguments.faces]
    held, x = (from_bytes(load_folder(arguments.celeba / n, config)[0]) for n in ("val", "test"))
    torch.manual_seed(arguments.seed)
    net = Colours(levels[chosen])
    net, best = train(net, parts[chosen], held, arguments.minutes, arguments.seed)
    prior, task, y = fm.load(arguments.prior), fm.make_task("colorize", SHAPE), grey(x)
    ours, linear = (
        fm.restore(y, task, prior, m, generator=generator_at(arguments.seed, 2)).x
        for m in ("splitting", "lmmse")
    )
    own = net.both(y)
    images = {
        "linear": net.linear(y).clamp(0.0, 1.0),
        "network": own,
        "both": (own + ours) / 2.0,
        "prior": ours,
        "prior lmmse": linear,
    }
    result = {
        "faces": len(chosen),
        "images": len(x),
        "parameters": sum(weight.numel() for weight in net.parameters()),
        "minutes": arguments.minutes,
        "best": best,
        "prior": arguments.prior,
        "sha256": sha256_of(find_weights(arguments.prior)),
        "psnr": {name: mean_or_none(fm.psnr(image, x)) for name, image in images.items()},
        "rms": {
            "network to prior": rms(own, ours),
            "network to truth": rms(own, x),
            "prior to truth": rms(ours, x),
        },
        "made_with": provenance(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "colours.json"
    known = json.loads(path.read_text()) if path.is_file() else []
    results = [r for r in known if r["faces"] != result["faces"]] + [result]
    results.sort(key=lambda r: r["faces"])
    write_json(path, results)
    (arguments.out / "colours.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
