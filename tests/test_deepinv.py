"""Operators of the deepinv package pass through the solver as they are."""

import pytest
import torch

import flowmend as fm
from flowmend.operators import Identity, Mask
from flowmend.prior import GaussianPrior

SHAPE = (3, 8, 12)
SIZE = 3 * 8 * 12


def import_deepinv():
    """Imports deepinv, also beside a torchvision whose compiled half fits another torch."""
    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("torchvision::nms", "torchvision::qnms", ""):
        try:
            import deepinv
        except RuntimeError as error:
            if not name or name not in str(error):
                raise
            # Such a torchvision describes operators that nobody has declared.
            torch.library.define(name, signature)
        else:
            return deepinv
    raise AssertionError("unreachable")


try:
    deepinv = import_deepinv()
except ImportError as missing:
    pytest.skip(
        f"deepinv cannot be imported ({missing}): pip install 'flowmend[deepinv]'",
        allow_module_level=True,
    )


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


@pytest.fixture(scope="module")
def prior():
    places = torch.cartesian_prod(*(torch.arange(side).double() for side in SHAPE))
    covariance = 0.08**2 * torch.exp(-0.7 * torch.cdist(places, places))
    return GaussianPrior.from_covariance(torch.full(SHAPE, 0.5), covariance)


MASK = (torch.rand(1, 8, 12, generator=torch.Generator().manual_seed(1)) < 0.6).float()
PAIRS = {
    "denoising": (
        lambda: deepinv.physics.Denoising(deepinv.physics.GaussianNoise(sigma=0.1)),
        Identity(SHAPE),
    ),
    "inpainting": (
        lambda: deepinv.physics.Inpainting(img_size=SHAPE, mask=MASK.expand(SHAPE).clone()),
        Mask(SHAPE, MASK),
    ),
}


@pytest.mark.parametrize(("build", "ours"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize(
    ("method", "given"),
    [("likelihood", {"steps": 20}), ("map", {"steps": 20}), ("pinv", {}), ("lmmse", {})],
)
def test_a_physics_restores_as_our_operator_does(prior, build, ours, method, given):
    physics = build()
    x = prior.decode(numbers(2, SIZE))[0]
    y = physics.A(x)
    assert torch.allclose(y, ours.A(x))
    y = y + 0.1 * ours.A(numbers(*y.shape, seed=2))
    theirs, own = (
        fm.solve(y, operator, prior, method=method, sigma=0.1, **given)
        for operator in (physics, ours)
    )
    assert theirs.finished
    assert torch.allclose(theirs.x, own.x, rtol=0, atol=1e-5)
    assert theirs.x.dtype == torch.float32


def test_bm3d_takes_a_denoising_physics_and_no_other(prior):
    y = torch.zeros(1, *SHAPE)
    physics = PAIRS["inpainting"][0]()
    with pytest.raises(fm.FlowmendError, match="only denoises"):
        fm.solve(y, physics, prior, method="bm3d", sigma=0.1)
