"""Continuous flows as priors: shapes, precision, samples and code lengths."""

import pytest
import torch
from continuous_cases import (
    FIXED,
    ROUND_TRIP,
    SHAPE,
    TINY,
    pictures,
    prior,
    source,
    worst,
)
from properties import check_batch, check_logdet, check_pure, check_round_trip, check_shapes

from flowmend.continuous import ContinuousPrior
from flowmend.errors import FlowmendError


def test_prior_keeps_what_every_bijection_promises():
    whole = prior(evaluations=24).double()
    x = pictures(whole).double()
    check_round_trip(whole, x, tolerance=1e-3)
    check_logdet(whole, x[:1], tolerance=1e-4)
    check_pure(whole, x)
    check_batch(whole, x)
    check_shapes(whole, x)
    torch.testing.assert_close(whole.round_trip(x), whole.decode(whole.encode(x)[0])[0])


def test_single_precision_inverts_within_the_stated_tolerance():
    whole = prior(evaluations=40, size=0.1)
    x = pictures(whole, 8)
    assert worst(whole.round_trip(x), x) < ROUND_TRIP


def test_same_weights_at_another_shape():
    small = prior(TINY)
    assert small.shape == (1, 8, 8)
    large = small.at_shape((1, 9, 14), evaluations=12)
    assert large.shape == (1, 9, 14)
    assert large.dimensions == 126
    assert large.flow.evaluations == 12
    assert small.flow.evaluations == small.at_shape((1, 4, 4)).flow.evaluations == 8
    assert large.velocity is small.velocity
    assert (large.training, large.card) == (False, small.card)
    assert large.sample(2, generator=source()).shape == (2, 1, 9, 14)
    assert large.log_prob(pictures(large)).shape == (3,)
    with pytest.raises(FlowmendError, match="1 channel"):
        small.at_shape((3, 8, 8))
    with pytest.raises(FlowmendError, match="at least 4"):
        small.at_shape((1, 2, 8))
    with pytest.raises(FlowmendError, match="only"):
        prior(FIXED).at_shape((1, 8, 8))


def test_gaussian_stays_only_with_its_shape():
    fixed = prior(FIXED, with_gaussian=True)
    assert fixed.gaussian is not None
    assert fixed.at_shape(SHAPE).gaussian is fixed.gaussian
    any_size = prior(TINY, with_gaussian=True)
    assert any_size.at_shape((1, 9, 9)).gaussian is None
    with pytest.raises(FlowmendError, match="no prior of"):
        ContinuousPrior(any_size.velocity, (1, 9, 9), any_size.gaussian)


def test_lower_precision_is_a_copy_that_stays_close():
    single = prior(size=0.1)
    low = single.at_precision("bfloat16")
    assert single.at_precision("float32") is single
    assert all(value.dtype == torch.float32 for value in single.parameters())
    x = pictures(single)
    found, wanted = low.denoise(x, 0.1), single.denoise(x, 0.1)
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    samples = low.sample(3, generator=source())
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples, single.sample(3, generator=source()), rtol=0, atol=0.1)
    with pytest.raises(FlowmendError, match="float16"):
        single.at_precision("float16")


def test_samples_are_decoded_latents():
    whole = prior()
    found = whole.sample(4, 0.7, source(3))
    wanted = whole.decode(whole.latents(4, 0.7, source(3)))[0].clamp(0.0, 1.0)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(found, whole.sample(4, 0.7, source(3)))
    assert not torch.equal(found, whole.sample(4, 0.7, source(4)))


def test_bits_per_dim_take_noise_and_signs_from_the_generator(estimated):
    whole = prior(size=0.2)
    x = pictures(whole)
    first, again, other = (whole.bits_per_dim(x, 8, source(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    middle = whole.bits_per_dim(x, 8)
    assert torch.equal(middle, whole.bits_per_dim(x, 8))
    torch.testing.assert_close(first, middle, rtol=0.2, atol=0.2)
