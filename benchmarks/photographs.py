"""Photographs: denoising on CBSD68, and other tasks on its middles, beside peers.

    python benchmarks/photographs.py denoise cbsd68 --prior natural
    python benchmarks/photographs.py tasks cbsd68 --prior natural
    python benchmarks/photographs.py speed cbsd68 --prior natural
    python benchmarks/photographs.py pace cbsd68 --prior natural
    python benchmarks/photographs.py render

Each adds a JSON line for every picture and method to benchmarks/results/photographs.jsonl, and
skips those it finds there; ``render`` writes photographs.md from them. Noise is Gaussian and not
clipped, as the benchmark has it. Peers (photograph_peers.py) run on the same measurements in the
same process.

Source: A Database of Human Segmented Natural Images (Martin et al., 2001),
https://doi.org/10.1109/ICCV.2001.937655
"""

import argparse
import functools
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from photograph_page import EVALUATIONS, KERNELS, MIDDLE, SIGMAS, TASKS, Lines, render
from photograph_peers import DENOISERS, SOLVERS, Method, bm3d, ours
from torch import Tensor

import flowmend as fm
from flowmend.chance import generator_at
from flowmend.files import find_pictures, read_image
from flowmend.photographs import photograph_task
from flowmend.tasks import Task

RESULTS = Path(__file__).resolve().parent / "results"
PACE_SIDE = 1000
PACES: dict[str, dict] = {
    "denoise": {"sigma": 25 / 255},
    "deblur": {"kernel": "motion:21:30", "boundary": "valid", "sigma": 0.01},
    "inpaint": {"mask": "random:0.8"},
    "upscale": {"scale": 2, "sigma": 0.01},
    "colorize": {},
    "demosaic": {},
}


def compared(
    lines: Lines,
    what: str,
    picture: str,
    methods: dict[str, Method],
    y: Tensor,
    task: Task,
    prior: fm.ContinuousPrior,
    truth: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> None:
    """Restores one measurement by every method that has no line yet."""
    for name, method in methods.items():
        if not lines.missing(what, picture, name):
            continue
        begun = time.perf_counter()
        try:
            found = method(y, task, prior)
        except ImportError as error:
            print(f"{name} left out: {error}", flush=True)
            continue
        seconds = time.perf_counter() - begun
        restored, wanted = truth(found)
        restored = restored.clamp(0.0, 1.0)
        values = {"psnr": fm.psnr(restored, wanted)[0], "ssim": fm.ssim(restored, wanted)[0]}
        lines.add(what, picture, name, **values, seconds=seconds)
        print(f"{what} {picture} {name}: {values['psnr']:.2f} dB, {seconds:.1f} s", flush=True)


def middle(image: Tensor, first: Sequence[int], size: Sequence[int]) -> Tensor:
    """A part of an image, or the image where it is the part already."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return image[..., first[0] : first[0] + size[0], first[1] : first[1] + size[1]]


def beside(found: Tensor, x: Tensor, cut: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What was found, and the truth, of what was measured."""
    return cut(found), cut(x)


def run_denoise(arguments: argparse.Namespace) -> None:
    """CBSD68: whole pictures."""
    prior, lines = fm.load(arguments.prior), Lines(arguments.results, arguments.prior)
    methods = {name: DENOISERS[name] for name in arguments.methods or DENOISERS}
    for path in find_pictures([arguments.folder])[:: arguments.every]:
        x = read_image(path)[None]
        for level in arguments.sigmas:
            noise = torch.randn(x.shape, generator=generator_at(level, *path.stem.encode()))
            sigma = level / 255.0
            task = photograph_task("denoise", tuple(x.shape[1:]), x.shape[1], sigma=sigma)
            compared(
                lines,
                f"denoise {level}",
                path.stem,
                methods,
                x + sigma * noise,
                task,
                prior,
                lambda found, x=x: (found, x),
            )


def run_tasks(arguments: argparse.Namespace) -> None:
    """The middles of the pictures, three tasks."""
    prior, lines = fm.load(arguments.prior), Lines(arguments.results, arguments.prior)
    methods = {name: SOLVERS[name] for name in arguments.methods or SOLVERS}
    if arguments.evaluations:
        methods = {
            EVALUATIONS.format(n): functools.partial(ours, evaluations=n)
            for n in arguments.evaluations
        }
    for index, path in list(enumerate(find_pictures([arguments.folder])))[:: arguments.every]:
        image = read_image(path)[None]
        top, left = (image.shape[-2] - MIDDLE) // 2, (image.shape[-1] - MIDDLE) // 2
        x = image[..., top : top + MIDDLE, left : left + MIDDLE]
        for what, (name, options) in TASKS.items():
            if name == "deblur":
                options = options | {"kernel": KERNELS[index // 4 % 8], "boundary": "valid"}
            task = fm.make_task(name, tuple(x.shape[1:]), **options)
            y = task.measure(x, generator_at(3, *path.stem.encode()))
            inside = ((0, 0), x.shape[-2:])
            if name == "deblur":
                first = [(n - 1) - n // 2 for n in task.operator.kernel.shape]
                inside = (first, y.shape[-2:])
            cut = functools.partial(middle, first=inside[0], size=inside[1])
            truth = functools.partial(beside, x=x, cut=cut)
            compared(lines, what, path.stem, methods, y, task, prior, truth)


def run_speed(arguments: argparse.Namespace) -> None:
    """Seconds per megapixel and peak memory of denoising at several sizes."""
    prior, lines = fm.load(arguments.prior), Lines(arguments.results, arguments.prior)
    image = read_image(find_pictures([arguments.folder])[0])
    for megapixels in arguments.megapixels:
        side = round((megapixels * 1e6) ** 0.5)
        times = [-(-side // length) for length in image.shape[1:]]
        x = image.repeat(1, *times)[None, :, :side, :side].contiguous()
        what = f"speed {megapixels:g} MP"
        if not lines.missing(what, "tiled", "flowmend"):
            continue
        task = photograph_task("denoise", tuple(x.shape[1:]), 3, sigma=25 / 255)
        y = x + 25 / 255 * torch.randn(x.shape, generator=generator_at(0, 1))
        del x
        begun = time.perf_counter()
        ours(y, task, prior)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.add(
            what,
            "tiled",
            "flowmend",
            seconds=seconds,
            seconds_per_megapixel=seconds / megapixels,
            peak_gib=peak,
        )
        print(f"{what}: {seconds / megapixels:.2f} s a megapixel, peak {peak:.2f} GiB")


def run_pace(arguments: argparse.Namespace) -> None:
    """Seconds for a megapixel, task by task; denoising before and after BM3D, in one process."""
    prior, lines = fm.load(arguments.prior), Lines(arguments.results, arguments.prior)
    image = read_image(find_pictures([arguments.folder])[0])
    times = [-(-PACE_SIDE // length) for length in image.shape[1:]]
    x = image.repeat(1, *times)[None, :, :PACE_SIDE, :PACE_SIDE].contiguous()
    for name, options in PACES.items():
        what = f"pace {name}"
        task = fm.make_task(name, tuple(x.shape[1:]), **options)
        y = task.measure(x, generator_at(0, 1))
        methods = {"flowmend": ours}
        if name == "denoise":
            methods |= {"BM3D": bm3d, "flowmend, again": ours}
        for method, call in methods.items():
            if not lines.missing(what, "tiled", method):
                continue
            begun = time.perf_counter()
            call(y, task, prior)
            pace = (time.perf_counter() - begun) / (PACE_SIDE**2 / 1e6)
            lines.add(what, "tiled", method, seconds_per_megapixel=pace)
            print(f"{what}: {method} {pace:.2f} s a megapixel", flush=True)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, action in (
        ("denoise", run_denoise),
        ("tasks", run_tasks),
        ("speed", run_speed),
        ("pace", run_pace),
    ):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("--prior", default="natural")
        command.add_argument("--every", type=int, default=1, help="take every so many pictures")
        command.add_argument("--evaluations", type=int, nargs="+", help="tasks: compare these")
        command.add_argument("--methods", nargs="+")
        command.add_argument("--sigmas", type=int, nargs="+", default=SIGMAS)
        command.add_argument("--megapixels", type=float, nargs="+", default=(1.0, 12.0, 50.0))
        command.add_argument("--results", type=Path, default=RESULTS / "photographs.jsonl")
        command.set_defaults(action=action)
    command = commands.add_parser("render")
    command.add_argument("--results", type=Path, default=RESULTS / "photographs.jsonl")
    command.set_defaults(action=lambda arguments: render(arguments.results))
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
