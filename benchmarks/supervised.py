"""A U-Net trained for the paper's four tasks, beside priors that were trained for none.

    python benchmarks/supervised.py train celeba/train --minutes 60
    python benchmarks/supervised.py compare celeba/test --net supervised.safetensors
    python benchmarks/supervised.py compare celeba/test

One network learns all four tasks on the same faces that the priors saw: the four measurements of a
batch, 8-bit, as the pseudo-inverse shows them and as they look, what they show of every pixel, and
which task it is. Each task counts by its own size of error, so that none drowns the others. The
minutes are those of one processor core. ``compare`` restores test faces by it and by the priors,
in the four tasks and in others that it was not trained for. Without ``--net`` the network's
numbers are those of the results file, which do not change with the priors. Results go to
benchmarks/results/supervised.json and .md.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import flowmend as fm
from flowmend.chance import generator_at, mirrored
from flowmend.data import load_folder
from flowmend.device import default_precision
from flowmend.flow import VelocityConfig
from flowmend.flow.velocity import EMBEDDING, UNet
from flowmend.operators import Blur
from flowmend.pixels import from_bytes, round_to_bytes
from flowmend.provenance import provenance, told
from flowmend.recipes import MatchingRecipe
from flowmend.report import mean_or_none, write_json
from flowmend.tasks import Task
from flowmend.weights import find_weights, sha256_of

SHAPE = (3, 32, 32)
TRAINED = ("denoise", "deblur", "inpaint", "colorize")
CASES: dict[str, tuple[str, dict]] = {
    "denoise": ("denoise", {}),
    "deblur": ("deblur", {}),
    "inpaint": ("inpaint", {}),
    "colorize": ("colorize", {}),
    "denoise σ = 0.05": ("denoise", {"sigma": 0.05}),
    "denoise σ = 0.2": ("denoise", {"sigma": 0.2}),
    "deblur σ = 0.01": ("deblur", {"sigma": 0.01}),
    "inpaint, 80 % random": ("inpaint", {"mask": "random:0.8"}),
}
"""What is compared, the trained tasks first."""
MIXING = ("deblur",)
"""Tasks whose operator mixes pixels: there the first prior is ours, elsewhere the last."""
NEAR = 0.3
"""Largest wanted distance in dB to the network that was trained for the task."""
ROOT = Path(__file__).resolve().parent.parent


class Supervised(nn.Module):
    """A U-Net of :mod:`flowmend.flow.velocity` from measurements to images.

    It predicts what the pseudo-inverse lacks, in units of the task's own error.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.network = UNet(VelocityConfig(widths=widths, size=SHAPE[1:]))
        self.task = nn.Embedding(len(TRAINED), EMBEDDING)
        self.register_buffer("scale", torch.ones(len(TRAINED)))

    def forward(self, seen: Tensor, which: Tensor) -> Tensor:
        """The missing part (B, 3, H, W) in units of its size, from :class:`View`."""
        return self.network(seen, self.task(which))

    @torch.no_grad()
    def restore(self, y: Tensor, task: Task) -> Tensor:
        """Images from measurements of a task, as the trained one of the same name."""
        index = TRAINED.index(task.name)
        seen = View(task)(y)
        with torch.autocast("cpu", torch.bfloat16):
            lacking = self(seen, torch.full((len(y),), index)).float()
        return seen[:, :3] / 4.0 + 0.5 + self.scale[index] * lacking


class View:
    """What the network sees of a task's measurements.

    The pseudo-inverse of a blur is a matrix, made once; conjugate gradients would take longer than
    the network.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.shown = task.operator.A_adjoint(task.operator.A(torch.ones(1, *SHAPE)))
        self.inverse = None
        if isinstance(task.operator, Blur):
            size = SHAPE[1] * SHAPE[2]
            grey = Blur((1, *SHAPE[1:]), task.operator.kernel, task.operator.boundary)
            columns = grey.A(torch.eye(size, dtype=torch.float64).view(size, 1, *SHAPE[1:]))
            self.inverse = torch.linalg.pinv(columns.flatten(1).T).float()

    def __call__(self, y: Tensor) -> Tensor:
        """Pseudo-inverse, picture and what is shown: (B, 9, H, W) of size about 1."""
        raw = y - self.task.offset
        if self.inverse is None:
            plain = self.task.operator.A_dagger(raw)
        else:
            plain = (raw.flatten(2) @ self.inverse.T).view_as(raw)
        shown = self.shown.expand(len(y), -1, -1, -1)
        return torch.cat([4.0 * (plain - 0.5), 4.0 * (self.task.picture(y) - 0.5), shown], dim=1)


def measurements(task: Task, x: Tensor, generator: torch.Generator) -> Tensor:
    """Measurements as 8-bit files hold them."""
    return round_to_bytes(task.measure(x, generator))


def batch_of(views: list[View], x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is seen of every image by one task each, in turn, and which."""
    which = torch.arange(len(x)) % len(views)
    seen = torch.empty(len(x), 9, *SHAPE[1:])
    for index, view in enumerate(views):
        chosen = which == index
        seen[chosen] = view(measurements(view.task, x[chosen], generator))
    return seen, which


def train(arguments: argparse.Namespace) -> None:
    """Trains until the minutes of one core are used up and writes the average of the weights."""
    torch.set_num_threads(1)
    config = VelocityConfig(size=SHAPE[1:])
    x = from_bytes(load_folder(arguments.folder, config)[0])
    views = [View(fm.make_task(name, SHAPE)) for name in TRAINED]
    torch.manual_seed(arguments.seed)
    net = Supervised(tuple(arguments.widths))
    for index, view in enumerate(views):
        part = x[:512]
        seen = view(measurements(view.task, part, generator_at(arguments.seed, 9)))
        net.scale[index] = (part - seen[:, :3] / 4.0 - 0.5).square().mean().sqrt()
    recipe = MatchingRecipe(batch=arguments.batch, learning_rate=arguments.learning_rate)
    optimiser = recipe.optimiser(net, torch.device("cpu"))
    averages = recipe.average(net)
    used, step, told_at = 0.0, 0, 0.0
    begun = time.process_time()
    while used < 1.0:
        generator = generator_at(arguments.seed, 4, step)
        images = x[torch.randint(len(x), (recipe.batch,), generator=generator)]
        images = mirrored(images, generator)
        seen, which = batch_of(views, images, generator)
        target = (images - seen[:, :3] / 4.0 - 0.5) / net.scale[which].view(-1, 1, 1, 1)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step, step / used if used else 1e6)
        with torch.autocast("cpu", torch.bfloat16):
            loss = (net(seen, which).float() - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimiser.step()
        averages.update_parameters(net)
        step += 1
        minutes = (time.process_time() - begun) / 60.0
        used = minutes / arguments.minutes
        if minutes - told_at > 2.0:
            told_at = minutes
            print(f"{minutes:5.1f} minutes, {step} steps, loss {float(loss.detach()):.4f}")
    card = {
        "widths": arguments.widths,
        "parameters": sum(weight.numel() for weight in net.parameters()),
        "steps": step,
        "batch": recipe.batch,
        "minutes": arguments.minutes,
        "images": len(x),
        "made_with": provenance(),
    }
    save_file(averages.module.state_dict(), arguments.out, metadata={"card": json.dumps(card)})
    print(card)


def load(path: Path) -> tuple[Supervised, dict]:
    """A trained network and what is known of its training."""
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
        net = Supervised(tuple(card["widths"]))
        net.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return net.eval(), card


def ours(y: Tensor, task: Task, prior: fm.Prior, method: str, seed: int) -> Tensor:
    """Images by a prior."""
    precision = default_precision(torch.device("cpu"))
    parts = []
    for index, part in enumerate(y.split(32)):
        generator = generator_at(seed, 5, index)
        found = fm.restore(part, task, prior, method, precision=precision, generator=generator)
        parts.append(found.x)
    return torch.cat(parts)


def compare(arguments: argparse.Namespace) -> None:
    """Restores the folder's faces every way and writes the page."""
    net, card = (None, None) if arguments.net is None else load(arguments.net)
    earlier = known_results(arguments) if net is None else {}
    priors = {Path(name).stem: fm.load(name) for name in arguments.priors}
    images = load_folder(arguments.folder, VelocityConfig(size=SHAPE[1:]))[0]
    x = from_bytes(images)[: arguments.images]
    rows = []
    for title, (name, options) in CASES.items():
        task = fm.make_task(name, SHAPE, **options)
        y = measurements(task, x, generator_at(arguments.seed, 8))
        if net is None:
            values = {"supervised": earlier["supervised"][title]}
        else:
            own = net.restore(y, task).clamp(0.0, 1.0)
            values = {"supervised": mean_or_none(fm.psnr(own, x))}
        for method, prior in zip(arguments.methods, priors.values(), strict=True):
            found = ours(y, task, prior, method, arguments.seed)
            values[prior_name(priors, prior)] = mean_or_none(fm.psnr(found, x))
        first = next(iter(priors.values()))
        found = ours(y, task, first, "lmmse", arguments.seed)
        values["LMMSE"] = mean_or_none(fm.psnr(found, x))
        mine = 0 if task.name in MIXING else -1
        rows.append({"case": title, "trained": title in TRAINED, "ours": mine, "psnr": values})
        print(title, {key: round(value, 2) for key, value in values.items()}, flush=True)
    result = {
        "folder": arguments.folder.name,
        "images": len(x),
        "seed": arguments.seed,
        "network": earlier.get("network", card),
        "priors": {
            Path(name).stem: {"method": method, "sha256": sha256_of(find_weights(name))}
            for name, method in zip(arguments.priors, arguments.methods, strict=True)
        },
        "rows": rows,
        "made_with": provenance(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "supervised.json", result)
    (arguments.out / "supervised.md").write_text(page(result))
    print(page(result))


def known_results(arguments: argparse.Namespace) -> dict:
    """The network and its PSNR in every case, from the results of the same pictures and seed."""
    earlier = json.loads((ROOT / "benchmarks" / "results" / "supervised.json").read_text())
    wanted = (arguments.folder.name, arguments.images, arguments.seed)
    if (earlier["folder"], earlier["images"], earlier.get("seed", 0)) != wanted:
        raise SystemExit("The results file is of other pictures: give the network with --net.")
    rows = {row["case"]: row["psnr"]["supervised"] for row in earlier["rows"]}
    return {"network": earlier["network"], "supervised": rows}


def prior_name(priors: dict[str, fm.Prior], wanted: fm.Prior) -> str:
    """The name a prior was given under."""
    return next(name for name, prior in priors.items() if prior is wanted)


def page(result: dict) -> str:
    """The results in Markdown."""
    card, names = result["network"], list(result["priors"])
    ways = ", ".join(f"`{n}` by {result['priors'][n]['method']}" for n in names)
    lines = [
        "# Beside a network that was trained for the tasks",
        "",
        f"Written by `benchmarks/supervised.py`; do not edit. Mean PSNR in dB of "
        f"{result['images']} faces of `{result['folder']}`, 8-bit measurements. *Supervised*: one "
        f"U-Net of {card['parameters'] / 1e6:.2f} M parameters, trained for the first four tasks "
        f"on {card['images']} faces, {card['minutes']:g} minutes of one core, {card['steps']} "
        f"batches of {card['batch']}. The priors ({ways}) learnt the density of faces; "
        "the continuous one, beside noise of every level, what is missing given all else, most "
        "often colours or a hole about the middle. *Difference*: ours less "
        f"supervised, ours being `{names[0]}` where the operator mixes pixels and `{names[-1]}` "
        "where it does not.",
        "",
        "| | LMMSE | " + " | ".join(names) + " | supervised | difference |",
        "|---|" + "---:|" * (len(names) + 3),
    ]
    near, far, above = [], [], []
    for row in result["rows"]:
        values = row["psnr"]
        difference = values[names[row["ours"]]] - values["supervised"]
        cells = [values["LMMSE"], *(values[name] for name in names), values["supervised"]]
        title = row["case"] if row["trained"] else f"{row['case']} (not trained for)"
        shown = " | ".join(f"{value:.2f}" for value in cells)
        lines.append(f"| {title} | {shown} | {difference:+.2f} |")
        if row["trained"]:
            (near if difference >= -NEAR else far).append(f"{row['case']} ({difference:+.2f})")
        elif difference > 0:
            above.append(row["case"])
    lines += [
        "",
        f"Within {NEAR} dB of the trained network, or above it: {', '.join(near) or 'nowhere'}; "
        f"farther below: {', '.join(far) or 'nowhere'}. Above it where it was not trained: "
        f"{', '.join(above) or 'nowhere'}. The priors were trained for longer than the network "
        "([weights](../../weights/README.md)).",
        "",
        told(result["made_with"]),
        "",
        f"The network: {told(card['made_with'])}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    trainer = commands.add_parser("train")
    trainer.add_argument("folder", type=Path)
    trainer.add_argument("--minutes", type=float, default=60.0, help="of one core")
    trainer.add_argument("--widths", type=int, nargs="+", default=[64, 128, 192])
    trainer.add_argument("--batch", type=int, default=64)
    trainer.add_argument("--learning-rate", type=float, default=1e-3)
    trainer.add_argument("--seed", type=int, default=0)
    trainer.add_argument("--out", type=Path, default=Path("supervised.safetensors"))
    trainer.set_defaults(action=train)
    judge = commands.add_parser("compare")
    judge.add_argument("folder", type=Path)
    judge.add_argument("--net", type=Path)
    judge.add_argument(
        "--priors",
        nargs="+",
        default=["faces32", "faces32-continuous"],
    )
    judge.add_argument("--methods", nargs="+", default=["fast-map", "splitting"])
    judge.add_argument("--images", type=int, default=192)
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    judge.set_defaults(action=compare)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
