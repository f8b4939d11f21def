"""Peak memory and time of one step of latent optimisation, with and without kept activations.

python benchmarks/memory.py --preset paper --batch 64

A step is a decode and the gradient of an objective with respect to the latents; the weights are
frozen and random. Memory is what a process of its own grows by above its weights, read from Linux.
Seconds are medians; the two ways take turns in a process for each depth.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from flowmend.flow import PRESETS, MultiscaleFlow, preset
from flowmend.prior import FlowPrior, Prior
from flowmend.provenance import provenance

MEMORIES = ("autograd", "reversible")
FIXED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes the C library give freed memory back at once, so that the peak is of what is in use."""


def build(name: str, times: int) -> FlowPrior:
    """A preset with ``times`` as many flow steps at every scale, not whitened."""
    steps = tuple(times * count for count in PRESETS[name].steps)
    with torch.device("meta"):
        flow = MultiscaleFlow(preset(name, steps=steps, whiten=False))
    flow = flow.to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in flow.named_parameters():
        if key.endswith("weight") and parameter.ndim == 2:  # a 1x1 convolution, to be inverted
            parameter.copy_(torch.eye(len(parameter)))
        else:
            parameter.uniform_(-0.01, 0.01, generator=generator)
    return FlowPrior(flow)


def step(prior: Prior, z: torch.Tensor) -> torch.Tensor:
    """The gradient (B, D) of an objective of the images that latents (B, D) make."""
    z = z.clone().requires_grad_()
    x, logdet = prior.decode(z)
    return torch.autograd.grad((x - 0.5).square().sum() + 0.025 * logdet.sum(), z)[0]


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def peak(prior: Prior, z: torch.Tensor) -> int:
    """Bytes by which this process grows, at most, in one step."""
    step(prior, z[:1])
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    step(prior, z)
    return resident("VmHWM") - before


def seconds(prior: Prior, z: torch.Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of a step for each of the two ways, which take turns."""
    taken: dict[str, list[float]] = {memory: [] for memory in MEMORIES}
    for repeat in range(repeats + 1):
        for memory, each in taken.items():
            begun = time.perf_counter()
            step(prior.with_memory(memory), z)
            if repeat:
                each.append(time.perf_counter() - begun)
    return {memory: statistics.median(each) for memory, each in taken.items()}


def measured(arguments: argparse.Namespace, what: str, times: int) -> dict:
    """Runs this script for one measurement in a process of its own."""
    command = [sys.executable, __file__, "--preset", arguments.preset, "--one", what]
    command += ["--batch", str(arguments.batch), "--repeats", str(arguments.repeats)]
    environment = os.environ | (FIXED if what in MEMORIES else {})
    run = subprocess.run(
        [*command, "--times", str(times)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


def main() -> None:
    """Prints a table in Markdown, and below it where it was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="paper", choices=PRESETS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4], help="depths")
    parser.add_argument("--one", choices=(*MEMORIES, "seconds"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        prior = build(arguments.preset, arguments.times[0])
        z = prior.latents(arguments.batch, 0.5, torch.Generator().manual_seed(0))
        if arguments.one == "seconds":
            print(json.dumps(seconds(prior, z, arguments.repeats)))
        else:
            print(json.dumps({"peak": peak(prior.with_memory(arguments.one), z)}))
        return
    print(f"{arguments.preset}, {arguments.batch} images\n")
    heads = [f"{memory}, {unit}" for unit in ("MiB", "s") for memory in MEMORIES]
    print(f"| flow steps | {' | '.join([*heads[:2], 'ratio', *heads[2:], 'ratio'])} |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for times in arguments.times:
        plain, flat = (measured(arguments, memory, times)["peak"] for memory in MEMORIES)
        slow = measured(arguments, "seconds", times)
        cells = [str(times * sum(PRESETS[arguments.preset].steps))]
        cells += [f"{plain / 2**20:.0f}", f"{flat / 2**20:.0f}", f"{flat / plain:.2f}"]
        cells += [f"{slow[memory]:.2f}" for memory in MEMORIES]
        cells.append(f"{slow['reversible'] / slow['autograd']:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n`{json.dumps(provenance())}`")


if __name__ == "__main__":
    main()
