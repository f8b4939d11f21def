"""The results of photographs.py: a line for each picture and method, and the page made of them."""

import json
from pathlib import Path

from photograph_peers import DENOISERS, OF_PATCHES, SOLVERS, WITHOUT_PRIOR

from flowmend.provenance import provenance, told
from flowmend.weights import find_weights, sha256_of

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
ORDER = (*dict.fromkeys((*DENOISERS, *SOLVERS)),)


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


def render(results: Path) -> None:
    """Writes the page beside the results, from the lines of the newest prior."""
    lines = read(results)
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
    path = results.with_suffix(".md")
    path.write_text("\n".join(page) + "\n")
    print("\n".join(page))
