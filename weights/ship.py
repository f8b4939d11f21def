"""Turns a training run into a prior that ships: half precision, measured again, with its card.

python weights/ship.py RUN VAL_FOLDER NAME.safetensors
"""

import argparse
from pathlib import Path

import torch

import flowmend as fm
from flowmend.continuous import ContinuousPrior
from flowmend.data import load_folder
from flowmend.flowmatching import likelihood_and_inverse
from flowmend.matching_loss import held_out_psnr
from flowmend.train import held_out_bits, round_trip_error

DATA = (
    "CelebA (Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015), aligned faces "
    "000001-009000, shorter side to 32 pixels, centre crop; faces 009001-009308 held out"
)
LICENCE = "trained on CelebA: for non-commercial research only"


def main() -> None:
    """Reads the run, writes the prior."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    prior = fm.load(arguments.run)
    fm.save(arguments.out, prior, half=True)
    shipped = fm.load(arguments.out)
    images, _ = load_folder(arguments.validation, shipped.config)
    card = {"name": arguments.out.stem, "data": DATA, "licence": LICENCE, **prior.card}
    card |= {
        "name": arguments.out.stem,
        "precision": "float16",
    }
    if isinstance(shipped, ContinuousPrior):
        card |= likelihood_and_inverse(shipped, images)
        card["val_psnr_25"] = round(held_out_psnr(shipped, images), 4)
    else:
        card["val_bits_per_dim"] = round(held_out_bits(shipped, images), 4)
        card["round_trip_error"] = round_trip_error(shipped, images)
    if shipped.gaussian is not None:
        x = images.float() / 255.0
        noise = torch.Generator().manual_seed(0)
        bits = shipped.gaussian.bits_per_dim(x, shipped.config.bits, noise)
        card["gaussian_val_bits_per_dim"] = round(float(bits.mean()), 4)
    shipped.card = card
    fm.save(arguments.out, shipped, half=True)
    print({key: card[key] for key in ("val_bits_per_dim", "round_trip_error")})


if __name__ == "__main__":
    main()
