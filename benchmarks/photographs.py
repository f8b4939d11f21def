"""Photographs: denoising on CBSD68, and other tasks on its middles, beside peers.

    python benchmarks/photographs.py denoise cbsd68 --prior natural
    python benchmarks/photographs.py tasks cbsd68 --prior natural
    python benchmarks/photographs.py speed cbsd68 --prior natural
    python benchmarks/photographs.py pace cbsd68 --prior natural
    python benchmarks/photographs.py render

Each adds a JSON line for every picture and method to benchmarks/results/photographs.jsonl, and
skips those it finds there; ``render`` writes photographs.md from them. Noise is Gaussian and not
clipped, as the benchmark has it. Peers run on the same measurements in the same process: BM3D by
its authors' package; the Wiener filter of the prior's own stationary Gaussian; total variation and
half-quadratic splitting (DPIR's settings) by deepinv, the latter with our network as its denoiser;
and Flower's algorithm on our network. Beside them the paper's kind of flow, of small patches.
Where pixels are missing DPIR begins with what the Wiener filter finds: with black it ends nowhere.

Sources: A Database of Human Segmented Natural Images (Martin et al., 2001),
https://doi.org/10.1109/ICCV.2001.937655; Flower: A Flow-Matching Solver for Inverse Problems
(Pourya et al., 2026), https://arxiv.org/abs/2509.26287; Plug-and-Play Image Restoration with Deep
Denoiser Prior (Zhang et al., 2021), https://arxiv.org/abs/2008.13751
"""

import argparse
import functools
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import flowmend as fm
from flowmend import baselines
from flowmend.chance import generator_at
from flowmend.device import default_precision
from flowmend.files import find_pictures, read_image
from flowmend.guided import Guidance
from flowmend.photographs import photograph_task, restore_photograph
from flowmend.provenance import provenance, told
from flowmend.tasks import Task
from flowmend.weights import find_weights, sha256_of

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "weights" / "patches8.safetensors"
OF_PATCHES = "flow of patches"
RESULTS = ROOT / "benchmarks" / "results"
SIGMAS = (15, 25, 50)
MIDDLE = 256
EVALUATIONS = "flowmend, evaluations: {}"
PUBLISHED = {
    "CBM3D (published)": (33.52, 30.71, 27.38),
    "DnCNN (published)": (33.90, 31.24, 27.95),
    "FFDNet (published)": (33.87, 31.21, 27.96),
    "DRUNet (published)": (34.30, 31.69, 28.51),
}
"""As printed in the DnCNN, FFDNet and DPIR papers, at the three levels."""
KERNELS = tuple(f"motion:{15 + 12 * k / 7:.0f}:{22.5 * k:g}" for k in range(8))
"""Motion blurs of 15 to 27 pixels, in eight directions; four pictures of the folder share one, so
that every fourth picture has the next, and a picture the same however many are left out."""
TASKS: dict[str, tuple[str, dict]] = {
    "motion blur, σ = 0.01": ("deblur", {"sigma": 0.01}),
    "inpaint, 80 % random": ("inpaint", {"mask": "random:0.8"}),
    "upscale x2, σ = 0.01": ("upscale", {"scale": 2, "sigma": 0.01}),
}
PACE_SIDE = 1000
PACES: dict[str, dict] = {
    "denoise": {"sigma": 25 / 255},
    "deblur": {"kernel": "motion:21:30", "boundary": "valid", "sigma": 0.01},
    "inpaint": {"mask": "random:0.8"},
    "upscale": {"scale": 2, "sigma": 0.01},
    "colorize": {},
    "demosaic": {},
}
Method = Callable[[Tensor, Task, fm.ContinuousPrior], Tensor]


# Methods, each from one measurement (1, c, h, w) to an image of the operator's shape


def ours(
    y: Tensor, task: Task, prior: fm.ContinuousPrior, evaluations: int | None = None
) -> Tensor:
    """What ``flowmend restore`` does."""
    precision = default_precision(torch.device("cpu"))
    return restore_photograph(y, task, prior, steps=evaluations, precision=precision).x


def turned(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """The same with ``--turns 8``."""
    return ours(y, task, prior.with_turns(8))


def bm3d(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """BM3D by its authors' package."""
    return baselines.bm3d(y, task.sigma)


def wiener(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """The posterior mean of the prior's stationary Gaussian, by conjugate gradients."""
    gaussian = prior.at_shape(task.operator.shape).stationary
    sigma = max(task.sigma, 1e-3)
    return Guidance(y, task.operator, sigma, gaussian, steps=300, tolerance=1e-3).linear(1.0)


def flower(
    y: Tensor, task: Task, prior: fm.ContinuousPrior, steps: int = 100, runs: int = 1
) -> Tensor:
    """Flower: where the velocity leads, a proximal step towards the data, new noise."""
    local = prior.at_shape(task.operator.shape).at_precision("bfloat16")
    sigma, operator = max(task.sigma, 1e-3), task.operator
    mean = torch.zeros(1, *operator.shape)
    for run in range(runs):
        generator = generator_at(0, 11, run)
        x = None
        for index in range(steps):
            t = (index + 0.5) / steps
            noise = torch.randn(1, *operator.shape, generator=generator)
            level = (1.0 - t) / (2.0 * t)
            noisy = 0.5 + level * noise if x is None else x + level * noise
            with torch.no_grad():
                target = local.denoise(noisy, level)
            # on the range [-1, 1] the covariance is (1 - t)^2 / (t^2 + (1 - t)^2)
            spread = 0.5 * (1.0 - t) / (t**2 + (1.0 - t) ** 2) ** 0.5
            x = proximal(y, operator, sigma, target, spread)
        mean = mean + x / runs
    return mean


def proximal(y: Tensor, operator: object, sigma: float, target: Tensor, spread: float) -> Tensor:
    """The minimum of ``|A x - y|^2 / sigma^2 + |x - target|^2 / spread^2``."""
    from flowmend.least_squares import conjugate_gradients

    ratio = sigma**2 / spread**2

    def normal(v: Tensor) -> Tensor:
        return operator.A_adjoint(operator.A(v)) + ratio * v

    back = operator.A_adjoint(y - operator.A(target))
    return target + conjugate_gradients(normal, back, 100, 1e-4)


def _physics(task: Task) -> object:
    """Our operator as a deepinv physics."""
    import deepinv

    return deepinv.physics.LinearPhysics(
        A=lambda x, **_: task.operator.A(x), A_adjoint=lambda y, **_: task.operator.A_adjoint(y)
    )


def _start(y: Tensor, task: Task) -> Tensor:
    """The adjoint, divided by what it makes of white; the middle grey where nothing is known."""
    seen = task.operator.A_adjoint(task.operator.A(torch.ones(1, *task.operator.shape)))
    found = task.operator.A_adjoint(y) / seen.clamp_min(1e-3)
    return torch.where(seen > 1e-3, found, torch.full_like(found, 0.5))


def total_variation(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """Total variation by deepinv: accelerated proximal gradient descent."""
    import deepinv

    weight = TV_WEIGHTS[task.name]
    model = deepinv.optim.optimizers.optim_builder(
        iteration="FISTA",
        prior=deepinv.optim.prior.TVPrior(n_it_max=10),
        data_fidelity=deepinv.optim.data_fidelity.L2(),
        max_iter=150,
        early_stop=False,
        params_algo={"stepsize": 1.0, "lambda": weight, "a": 3.0},
        custom_init=lambda y, physics: {"est": (_start(y, task), _start(y, task))},
    )
    return model(y, _physics(task))


TV_WEIGHTS = {"deblur": 3e-4, "inpaint": 3e-2, "upscale": 3e-3}


def dpir(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """Half-quadratic splitting as deepinv's DPIR sets it, with our network as the denoiser."""
    import deepinv

    local = prior.at_shape(task.operator.shape).at_precision("bfloat16")

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, **_: object) -> Tensor:
            return local.denoise(x, float(sigma))

    model = deepinv.optim.DPIR(sigma=max(task.sigma, 1e-3), device="cpu", denoiser=Network())
    begin = {"init": wiener(y, task, prior)} if task.name == "inpaint" else {}
    with torch.no_grad():
        return model(y, _physics(task), **begin)


@functools.cache
def patches() -> fm.PatchPrior:
    """The flow of patches."""
    return fm.PatchPrior(fm.load(PATCHES))


def of_patches(y: Tensor, task: Task, prior: fm.ContinuousPrior) -> Tensor:
    """What ``flowmend restore`` does with a flow of patches."""
    return restore_photograph(y, task, patches()).x


DENOISERS: dict[str, Method] = {
    "flowmend": ours,
    "flowmend, 8 turns": turned,
    "BM3D": bm3d,
    OF_PATCHES: of_patches,
}
SOLVERS: dict[str, Method] = {
    "flowmend": ours,
    "Wiener": wiener,
    "TV (deepinv)": total_variation,
    "DPIR (deepinv), our denoiser": dpir,
    "Flower, our network": flower,
    OF_PATCHES: of_patches,
}

ORDER = (*dict.fromkeys((*DENOISERS, *SOLVERS)),)

WITHOUT_PRIOR = ("BM3D", "TV (deepinv)")
"""Methods whose lines hold whatever the prior is."""


# Running


class Lines:
    """The results file: a line for each picture and method, none measured twice."""

    KEY = ("what", "picture", "method", "prior_sha256")

    def __init__(self, path: Path, prior: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = read(path)
        self.sha256 = sha256_of(find_weights(prior))
        self.prior = Path(prior).stem
        self.keys = dict.fromkeys(WITHOUT_PRIOR, "none")
        self.keys[OF_PATCHES] = OF_PATCHES
        self.done = {tuple(line[name] for name in self.KEY) for line in self.lines}
        self.made_with = provenance()

    def missing(self, what: str, picture: str, method: str) -> bool:
        """Whether a line is not there yet."""
        return (what, picture, method, self.keys.get(method, self.sha256)) not in self.done

    def add(self, what: str, picture: str, method: str, **values: object) -> None:
        """Appends a line."""
        sha256 = self.keys.get(method, self.sha256)
        key = {"what": what, "picture": picture, "method": method, "prior_sha256": sha256}
        line = (
            key
            | {"prior": self.prior if sha256 == self.sha256 else None}
            | values
            | {"made_with": self.made_with}
        )
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.done.add(tuple(key.values()))


def read(path: Path) -> list[dict]:
    """The lines of the results file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


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


# The page


def averages(lines: list[dict], whats: list[str]) -> list[str]:
    """A Markdown table: methods by what was done, mean PSNR / SSIM and how many pictures."""
    rows = ["| method | " + " | ".join(whats) + " |", "|---" * (len(whats) + 1) + "|"]
    found = dict.fromkeys(line["method"] for line in lines if line["what"] in whats)
    methods = sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    for method in methods:
        cells = []
        for what in whats:
            found = [x for x in lines if x["what"] == what and x["method"] == method]
            if not found:
                cells.append("-")
                continue
            psnr, ssim, seconds = (
                sum(line[name] for line in found) / len(found)
                for name in ("psnr", "ssim", "seconds")
            )
            cells.append(f"{psnr:.2f} / {ssim:.3f} ({len(found)}; {seconds:.1f} s)")
        rows.append(f"| {method} | " + " | ".join(cells) + " |")
    return rows


def on_the_same(lines: list[dict], whats: list[str]) -> list[str]:
    """A sentence for each peer that was run on fewer pictures: both on those, and their times."""
    found = []
    for what in whats:
        here = [line for line in lines if line["what"] == what]
        mine = {line["picture"]: line for line in here if line["method"] == "flowmend"}
        for method in dict.fromkeys(line["method"] for line in here):
            pairs = [
                (line, mine[line["picture"]])
                for line in here
                if line["method"] == method and line["picture"] in mine
            ]
            if method == "flowmend" or not 0 < len(pairs) < len(mine):
                continue
            peer, own, slower, quicker = (
                sum(pair[side][name] for pair in pairs) / len(pairs)
                for name in ("psnr", "seconds")
                for side in (0, 1)
            )
            found += [
                f"{what}, the {'picture' if len(pairs) == 1 else f'{len(pairs)} pictures'} that "
                f"both were run on: {method} "
                f"{peer:.2f} dB in {slower:.1f} s, flowmend {own:.2f} dB in {quicker:.1f} s a "
                "picture (other work ran beside both).",
                "",
            ]
    return found


def render(arguments: argparse.Namespace) -> None:
    """Writes the page from the lines of the newest prior."""
    lines = read(arguments.results)
    last = [line for line in lines if line["prior"] is not None][-1]
    newest, name = last["prior_sha256"], last["prior"]
    lines = [line for line in lines if line["prior"] is None or line["prior_sha256"] == newest]
    counted = [line for line in lines if "evaluations: " in line["method"]]
    usual = [line for line in lines if line not in counted]
    page = [
        "# Photographs",
        "",
        "Written by `benchmarks/photographs.py render`; do not edit. Prior "
        f"`{name}`, sha256 {newest[:12]}. PSNR in dB / SSIM, in brackets how many "
        "pictures and mean seconds a picture.",
        "",
        "## CBSD68, Gaussian noise, not clipped",
        "",
        *averages(lines, [f"denoise {level}" for level in SIGMAS]),
        *(
            f"| {who} | " + " | ".join(f"{v:.2f}" for v in values) + " |"
            for who, values in PUBLISHED.items()
        ),
        "",
        *on_the_same(lines, [f"denoise {level}" for level in SIGMAS]),
    ]
    if any(line["what"] in TASKS for line in lines):
        page += [
            f"## Middles of {MIDDLE} x {MIDDLE} pixels",
            "",
            f"Motion blurs of 15 to 27 pixels: {', '.join(f'`{kernel}`' for kernel in KERNELS)}, "
            "in turn.",
            "",
            *averages(usual, list(TASKS)),
            "",
            *on_the_same(usual, list(TASKS)),
        ]
    if counted:
        page += [
            "## How often the network is evaluated",
            "",
            "What `--steps` sets, on the middle of every 23rd picture; untouched it is 10, and 30 "
            "where pixels are missing.",
            "",
            *averages(counted, list(TASKS)),
            "",
        ]
    speeds = [line for line in lines if line["what"].startswith("speed")]
    if speeds:
        page += [
            "## Size",
            "",
            "| picture | s / megapixel | peak memory, GiB |",
            "|---|---|---|",
        ]
        for line in speeds:
            page.append(
                f"| {line['what'][6:]} | {line['seconds_per_megapixel']:.2f} | "
                f"{line['peak_gib']:.2f} |"
            )
    paces = [line for line in lines if line["what"].startswith("pace")]
    if paces:
        page += ["", "A picture of 1 MP, seconds:", "", "| task | method | s |", "|---|---|---|"]
        for line in paces:
            page.append(
                f"| {line['what'][5:]} | {line['method']} | {line['seconds_per_megapixel']:.2f} |"
            )
    page.append("")
    page += list(dict.fromkeys(told(line["made_with"]) for line in lines))
    path = arguments.results.with_suffix(".md")
    path.write_text("\n".join(page) + "\n")
    print("\n".join(page))


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
    command.set_defaults(action=render)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
