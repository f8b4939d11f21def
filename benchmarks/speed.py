"""Time of a decode and of a solver step at batch 32, interleaved in one process.

python benchmarks/speed.py weights/paper32.safetensors
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

import flowmend as fm
from flowmend.latent import minimise
from flowmend.objective import likelihood
from flowmend.operators import Identity
from flowmend.provenance import provenance


def main() -> None:
    """Prints medians and extremes as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prior")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    prior = fm.load(arguments.prior)
    priors = {name: prior.at_precision(name) for name in ("float32", "bfloat16")}
    z = prior.latents(arguments.batch, 0.5, torch.Generator().manual_seed(0))
    y = prior.sample(arguments.batch, 0.5, torch.Generator().manual_seed(1))

    def decode(precision: str) -> None:
        with torch.no_grad():
            priors[precision].decode(z)

    def step(precision: str) -> None:
        minimise(
            likelihood(0.025),
            y,
            Identity(prior.shape),
            priors[precision],
            z,
            steps=1,
            learning_rate=5e-3,
        )

    timed: dict[str, Callable[[], None]] = {
        f"{name} {precision}": lambda action=action, precision=precision: action(precision)
        for name, action in (("decode", decode), ("step", step))
        for precision in ("float32", "bfloat16")
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(arguments.repeats + 2):
        for name, action in timed.items():
            begun = time.perf_counter()
            action()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - begun)
    result = {
        name: {"median": statistics.median(v), "least": min(v), "most": max(v)}
        for name, v in seconds.items()
    }
    facts = {"prior": arguments.prior, "batch": arguments.batch, "seconds": result}
    print(json.dumps(facts | {"made_with": provenance()}, indent=2))


if __name__ == "__main__":
    main()
