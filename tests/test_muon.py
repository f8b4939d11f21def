"""The optimiser of convolutions, its runs resumed, and convolution with large kernels."""

import torch
from torch import nn
from torch.nn import functional

from flowmend.convolution import convolved
from flowmend.flow import VelocityConfig
from flowmend.flowmatching import MatchingRun
from flowmend.muon import Muon, orthogonalised
from flowmend.recipes import MatchingRecipe


def test_a_matrix_becomes_nearly_orthogonal_and_keeps_its_directions():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(24, 60, generator=generator)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalised(matrix) @ v.T
    assert float((inner - torch.diag(inner.diagonal())).abs().max()) < 1e-3
    assert 0.6 < float(inner.diagonal().min()) <= float(inner.diagonal().max()) < 1.3


def test_only_wide_convolutions_take_orthogonal_steps():
    module = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Conv2d(32, 3, 3))
    optimiser = Muon(module, 1e-3)
    assert [len(group["params"]) for group in optimiser.param_groups] == [1, 3]


def test_a_large_kernel_gives_what_sliding_it_gives():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 31, 23, generator=generator, dtype=torch.float64)
    kernel = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    weight = kernel.flip(0, 1).expand(3, 1, 9, 12)
    expected = functional.conv2d(x, weight, groups=3)
    assert float((convolved(x, kernel) - expected).abs().max()) < 1e-12 * float(
        kernel.norm() * 100
    )


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    config = VelocityConfig(channels=1, widths=(32, 32), blocks=(1, 1), size=(8, 8))
    recipe = MatchingRecipe(epochs=3, batch=4, warmup=2, muon=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 1, 8, 8), generator=generator, dtype=torch.uint8)

    def run():
        return MatchingRun(tmp_path, config, recipe, images, images[:4], 0, "cpu")

    whole = run()
    orthogonal = whole.optimiser.param_groups[0]["params"]
    assert len(orthogonal) > 5
    for step in range(6):
        if step == 3:
            whole.save()
        whole.advance()
    resumed = run()
    resumed.restore()
    for _ in range(3):
        resumed.advance()
    found = resumed.prior.velocity.state_dict()
    for key, value in whole.prior.velocity.state_dict().items():
        assert torch.equal(found[key], value), key
