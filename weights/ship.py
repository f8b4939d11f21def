"""Turns a training run into a prior that ships: half precision, measured again, with its card.

python weights/ship.py RUN VAL_FOLDER NAME.safetensors

VAL_FOLDER holds the held-out pictures; with --train it is the folder that was trained on, of which
the run held some out. With --mean OTHER the weights are the means of the run's and of another
prior's, from which the run began.

Source, of the means: Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves
Accuracy without Increasing Inference Time (Wortsman et al., 2022),
https://arxiv.org/abs/2203.05482
"""

import argparse
from pathlib import Path

import torch

import flowmend as fm
from flowmend.continuous import ContinuousPrior
from flowmend.data import hold_out, load_folder, load_photographs, random_patches
from flowmend.matching_loss import held_out_loss, held_out_psnr, likelihood_and_inverse
from flowmend.train import held_out_bits, round_trip_error
from flowmend.weights import find_weights, sha256_of

FACES = {
    "data": "CelebA (Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015), aligned "
    "faces 000001-009000, shorter side to 32 pixels, centre crop; faces 009001-009308 held out",
    "licence": "trained on CelebA: for non-commercial research only",
}
PHOTOGRAPHS = {
    "data": "BSDS500 (Arbelaez et al., Contour Detection and Hierarchical Image Segmentation, "
    "TPAMI 2011), its 200 training and 200 test photographs, a twentieth of them held out; its "
    "validation photographs, which CBSD68 is from, were not used",
    "licence": "trained on BSDS500: for non-commercial research and education only",
}


def continuous_facts(prior: ContinuousPrior, images: list[torch.Tensor]) -> dict:
    """What the card of a continuous prior says of held-out images."""
    facts = likelihood_and_inverse(prior, images)
    if prior.config.size is not None:
        held = torch.stack([*images])
        facts["val_loss"] = round(held_out_loss(prior, held), 4)
        return facts | {"val_psnr_25": round(held_out_psnr(prior, held), 4)}
    psnr = [held_out_psnr(prior, image[None], batch=1) for image in images]
    return facts | {"val_psnr_25": round(sum(psnr) / len(psnr), 4)}


@torch.no_grad()
def averaged(prior: ContinuousPrior, other: ContinuousPrior, sha256: str) -> ContinuousPrior:
    """The prior with the means of both networks' weights; its card says with what."""
    weights, others = prior.velocity.state_dict(), other.velocity.state_dict()
    prior.velocity.load_state_dict({name: 0.5 * (w + others[name]) for name, w in weights.items()})
    prior.card["mean_with_sha256"] = sha256
    return prior


def main() -> None:
    """Reads the run, writes the prior."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", action="store_true", help="VAL_FOLDER was trained on")
    parser.add_argument("--mean", help="a prior whose weights count as much as the run's")
    arguments = parser.parse_args()
    prior = fm.load(arguments.run)
    if arguments.mean is not None:
        sha256 = sha256_of(find_weights(arguments.mean))
        prior = averaged(prior, fm.load(arguments.mean), sha256)
    fm.save(arguments.out, prior, half=True)
    shipped = fm.load(arguments.out)
    patches = isinstance(shipped, fm.FlowPrior) and shipped.config.patches
    photographs = patches or (isinstance(shipped, ContinuousPrior) and shipped.config.size is None)
    load = load_photographs if photographs else load_folder
    images, _ = load(arguments.validation, shipped.config)
    if arguments.train:
        images = hold_out(images, prior.card["seed"])[1]
    if patches:
        images = random_patches(images, shipped.config.crop, 2**12, prior.card["seed"])
    card = {"name": arguments.out.stem, **(PHOTOGRAPHS if photographs else FACES), **prior.card}
    card |= {"name": arguments.out.stem, "precision": "float16"}
    if isinstance(shipped, ContinuousPrior):
        card |= continuous_facts(shipped, images)
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
