"""``flowmend convert``: priors from, and for, the checkpoints of the paper's own code."""

from pathlib import Path
from typing import Annotated

import typer

from ..convert import (
    author_config,
    from_author,
    read_author_checkpoint,
    save_author_checkpoint,
    to_author,
)
from ..errors import FlowmendError
from ..weights import load_prior, parameter_count, save_prior, sha256_of
from .console import tell

__all__ = ["convert"]

ENDING = ".safetensors"


def _refuse_same(source: str, out: Path) -> None:
    if Path(source).resolve() == out.resolve():
        raise FlowmendError(f"--out would overwrite '{source}' itself: give another file.")


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint of the paper's code (.pth, or .safetensors with its names); with "
            "--to-author a shipped prior, weights file or training folder.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="The weights file to write (.safetensors is added); with --to-author the "
            "checkpoint.",
        ),
    ],
    back: Annotated[
        bool, typer.Option("--to-author", help="From a prior to a checkpoint instead.")
    ] = False,
    bits: Annotated[
        int,
        typer.Option(
            min=1, max=8, help="Bits per channel the checkpoint was trained on; score uses it."
        ),
    ] = 5,
) -> None:
    """Use a flow trained with the paper's own code, or take one of ours to that code.

    The same latent gives the same image on both sides. The architecture is read off the tensors;
    nothing in the file is ever run. The prior has one step more than the checkpoint, which
    changes nothing. It holds no Gaussian: the method lmmse does not work with it, and the others
    start as they do without one.

    With --to-author the prior must have the architecture of the preset paper, with any number of
    steps; what the author's solver must be told (--K, --hid_dim) is printed.

    Example: flowmend convert model-100.pth --out author

    Example: flowmend restore photos/ --task deblur --prior author.safetensors --out restored

    Example: flowmend convert author.safetensors --to-author --out model-1.pth
    """
    if back:
        prior = load_prior(source)
        _refuse_same(source, out)
        state = to_author(prior)
        config = author_config(state)
        save_author_checkpoint(out, state)
        tell(
            f"'{out}' is for the author's solver, with --K {config.steps[0]} --hid_dim "
            f"{config.hidden} --img_size {config.height} --img_ch {config.channels}."
        )
        return
    if out.suffix.lower() != ENDING:
        out = out.with_name(out.name + ENDING)
    _refuse_same(source, out)
    state = read_author_checkpoint(source)
    prior = from_author(state, author_config(state, bits))
    prior.card |= {"file": Path(source).name, "file_sha256": sha256_of(Path(source))}
    save_prior(out, prior)
    channels, height, width = prior.shape
    tell(
        f"'{out}': a prior of {channels} x {height} x {width} images, "
        f"{parameter_count(prior):,} parameters. Look at it: flowmend sample '{out}' --out "
        "samples.png"
    )
