"""Priors: code lengths, draws, what they refuse, and the levels of images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prior_cases import (
    FLOW,
    PRIORS,
    SHAPE,
    SIZE,
    flow_prior,
    gaussian,
    images,
    levels,
    numbers,
    source,
)
from torch.distributions import MultivariateNormal

from flowmend import gaussian as gaussian_module
from flowmend.errors import FlowmendError
from flowmend.flow import Bijection, FlowConfig, Whitening, build_flow, standard_normal_log_prob
from flowmend.pixels import (
    centre,
    dequantise,
    from_bytes,
    quantisation_sigma,
    round_to_bytes,
    to_bytes,
    uncentre,
)
from flowmend.prior import FlowPrior, GaussianPrior, Prior


@pytest.fixture(params=PRIORS.values(), ids=PRIORS.keys())
def prior(request):
    return request.param().requires_grad_(False)


# Code lengths.
class Uniform(Prior):
    """Every image in [0, 1] is as likely as any other."""

    shape = (1, 2, 2)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = math.sqrt(2.0) * torch.erfinv(2.0 * x - 1.0).flatten(1)
        return z, -standard_normal_log_prob(z)

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = 0.5 * (1.0 + torch.erf(z / math.sqrt(2.0)))
        return x.reshape(-1, *self.shape), standard_normal_log_prob(z)


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_uniform_images_cost_their_bits(bits):
    x = torch.rand(3, 1, 2, 2, generator=source(), dtype=torch.float64)
    for generator in (None, source(1)):
        found = Uniform().bits_per_dim(x, bits, generator)
        torch.testing.assert_close(found, torch.full((3,), float(bits), dtype=torch.float64))


@pytest.mark.parametrize("bits", [5, 8])
def test_code_length_of_a_gaussian_in_closed_form(bits):
    variance = 0.04
    prior = GaussianPrior.from_covariance(
        torch.full((1, 2, 2), 0.5, dtype=torch.float64), variance * torch.eye(4)
    )
    middle = (2 ** (bits - 1) + 0.5) / 2**bits
    entropy = 0.5 * math.log2(2 * math.pi * variance)
    wanted = bits + entropy + (middle - 0.5) ** 2 / (2 * variance * math.log(2))
    x = from_bytes(torch.full((2, 1, 2, 2), 128, dtype=torch.uint8), torch.float64)
    assert prior.bits_per_dim(x, bits).tolist() == pytest.approx([wanted, wanted])


def test_expected_code_length_is_the_entropy():
    pictures, mean, spread = levels(3000)
    noisy = spread + torch.eye(SIZE, dtype=torch.float64) / (12 * 256**2)
    prior = GaussianPrior.from_covariance(mean, noisy)
    found = prior.bits_per_dim(pictures.double() / 255.0, 8, source()).mean()
    entropy = MultivariateNormal(mean.flatten(), noisy).entropy() / (SIZE * math.log(2))
    assert found.item() == pytest.approx(8 + entropy.item(), abs=0.02)


def test_code_length_depends_on_the_noise_of_its_generator_alone(prior):
    x = images(prior).clamp(0, 1)
    first, again, other = (prior.bits_per_dim(x, 5, source(seed)) for seed in (1, 1, 2))
    assert first.shape == (4,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Samples.
def test_samples_repeat_with_their_seed(prior):
    first, again, other = (prior.sample(3, generator=source(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, *prior.shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.0 <= first.min() <= first.max() <= 1.0


def test_samples_without_generator_follow_the_global_seed(prior):
    torch.manual_seed(4)
    first = prior.sample(2)
    torch.manual_seed(4)
    assert torch.equal(prior.sample(2), first)
    assert not torch.equal(prior.sample(2), first)


def test_samples_hold_no_gradient():
    prior = flow_prior(False)
    assert any(parameter.requires_grad for parameter in prior.parameters())
    assert not prior.sample(2).requires_grad


def test_temperature_scales_the_latents(prior):
    hot, cold = (prior.latents(2, temperature, source(7)) for temperature in (1.0, 0.5))
    assert hot.shape == (2, prior.dimensions)
    assert hot.dtype == torch.float64
    torch.testing.assert_close(cold, 0.5 * hot)


def test_temperature_zero_is_the_middle(prior):
    sample = prior.sample(2, temperature=0.0)
    middle = prior.decode(torch.zeros(1, prior.dimensions, dtype=torch.float64))[0]
    torch.testing.assert_close(sample, middle.clamp(0, 1).expand_as(sample))


def test_latents_are_standard_normal():
    z = gaussian(*SHAPE).latents(4000, generator=source())
    assert abs(z.mean().item()) < 0.02
    assert z.std().item() == pytest.approx(1.0, abs=0.02)


def test_samples_of_a_gaussian_have_its_covariance():
    prior = gaussian(1, 2, 3)
    z = prior.latents(20_000, generator=source(1))
    x = prior.decode(z)[0].flatten(1)
    torch.testing.assert_close(x.mean(0), prior.mean.flatten(), rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov(), prior.covariance(), rtol=0, atol=0.002)


# What priors are built of and given.
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(1, 3, 2, 5), r"\(3, 2, 4\).*\(3, 2, 5\)"),
        (torch.rand(1, 1, 2, 4), r"\(3, 2, 4\)"),
        (torch.rand(*SHAPE), r"\(3, 2, 4\)"),
        (torch.zeros(1, *SHAPE, dtype=torch.uint8), "floating-point"),
        (torch.full((1, *SHAPE), torch.nan), "finite"),
        (torch.full((1, *SHAPE), torch.inf), "finite"),
    ],
    ids=["width", "channels", "no batch", "integers", "nan", "infinite"],
)
def test_wrong_images_are_refused(x, message):
    with pytest.raises(FlowmendError, match=message):
        gaussian(*SHAPE).check_images(x)


def test_right_images_are_accepted(prior):
    x = images(prior)
    kept = x.clone()
    prior.check_images(x)
    assert torch.equal(x, kept)


def test_whitened_flow_without_gaussian_is_refused():
    config = FlowConfig(**(FLOW.to_dict() | {"whiten": True}))
    with pytest.raises(FlowmendError, match="Gaussian"):
        FlowPrior(build_flow(config))


def test_flow_prior_keeps_its_parts():
    flow, card = build_flow(FLOW), {"name": "test"}
    prior = FlowPrior(flow, card=card)
    assert prior.flow is flow
    assert prior.config is FLOW
    assert prior.shape == FLOW.shape
    assert prior.gaussian is None
    card["name"] = "changed"
    assert prior.card == {"name": "test"}


def test_flow_prior_trains_the_flow_alone():
    prior = flow_prior(True)
    found = {id(parameter) for parameter in prior.parameters()}
    assert found == {id(parameter) for parameter in prior.flow.parameters()}


def test_initialise_of_a_prior_sets_its_flow():
    prior = FlowPrior(build_flow(FLOW)).double()
    x = images(prior, 30)
    z = prior.initialise(x)
    assert torch.equal(z, prior.encode(x)[0])
    assert prior.flow.scales[0].layers[1].log_scale.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prior_follows_a_change_of_precision(dtype):
    prior = flow_prior(True)
    x = images(prior)
    prior.decode(prior.encode(x)[0])
    prior = prior.to(dtype)
    back, logdet = prior.decode(prior.encode(x.to(dtype))[0])
    assert back.dtype == logdet.dtype == dtype
    torch.testing.assert_close(back, x.to(dtype), rtol=0, atol=1e-4)


def test_whitening_has_no_parameters_and_no_saved_state():
    layer = Whitening(torch.zeros(1, 1, 2), torch.eye(2))
    assert isinstance(layer, Bijection)
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}


# Value ranges.
@given(st.integers(0, 255), st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_dequantised_levels_stay_in_their_cell(level, bits):
    x = from_bytes(torch.full((1, 1, 4, 4), level, dtype=torch.uint8), torch.float64)
    cell = level // 2 ** (8 - bits)
    noisy = dequantise(x, bits, source(level))
    assert bool((torch.floor(noisy * 2**bits) == cell).all())
    assert bool((noisy < 1.0).all())
    middle = dequantise(x, bits)
    assert bool((middle == (cell + 0.5) / 2**bits).all())


def test_dequantisation_noise_is_uniform_and_repeatable():
    x = torch.full((1, 1, 64, 64), 0.5)
    noise = dequantise(x, 5, source(1)) * 32 - 16
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.005)
    assert torch.equal(dequantise(x, 5, source(1)), dequantise(x, 5, source(1)))
    assert not torch.equal(dequantise(x, 5, source(1)), dequantise(x, 5, source(2)))


def test_every_byte_survives_the_unit_range():
    every = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        x = from_bytes(every, dtype)
        assert x.dtype == dtype
        assert (x[0], x[-1]) == (0.0, 1.0)
        assert torch.equal(to_bytes(x), every)
        assert torch.equal(round_to_bytes(x), x)


def test_bytes_round_and_clamp():
    x = torch.tensor([-3.0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 7.0])
    assert to_bytes(x).tolist() == [0, 0, 1, 254, 255, 255]
    assert round_to_bytes(x)[2].item() == pytest.approx(1 / 255)


def test_centre_and_uncentre_are_inverse():
    x = numbers(20)
    torch.testing.assert_close(uncentre(centre(x)), x)
    assert centre(torch.tensor([0.0, 1.0])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("bits", [3, 8])
def test_quantisation_sigma_is_the_rounding_error(bits):
    x = torch.rand(200_000, generator=source(), dtype=torch.float64)
    top = 2**bits - 1
    error = (x * top).round() / top - x
    assert quantisation_sigma(bits) == pytest.approx(error.std().item(), rel=0.01)


def test_the_gram_matrix_of_a_posterior_is_the_product(monkeypatch):
    monkeypatch.setattr(gaussian_module, "STRIP", 5)
    matrix = torch.randn(13, 7, generator=torch.Generator().manual_seed(0)).double()
    found = gaussian_module._symmetric_product(matrix)
    torch.testing.assert_close(found, matrix @ matrix.T)
    assert torch.equal(found, found.T)


def test_the_inverse_of_a_whitening_is_the_same_before_and_after_its_logdet():
    root = torch.randn(12, 12, generator=torch.Generator().manual_seed(1)).double()
    matrix = root @ root.T + torch.eye(12)
    first, second = (Whitening(torch.zeros(3, 2, 2).double(), matrix) for _ in range(2))
    second.encode(torch.zeros(1, 3, 2, 2).double())
    assert torch.equal(first.unwhitening, second.unwhitening)
    torch.testing.assert_close(second.unwhitening, torch.linalg.inv(matrix))
    assert second._factor is None
