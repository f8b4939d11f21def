"""Networks that see what a Gaussian predicts: the prediction against closed forms, for every time
of every value, in training, in files and on the command line."""

import copy
import dataclasses
import json

import pytest
import torch
from conftest import save_png, smooth_images
from properties import randomise

import flowmend as fm
from flowmend.chance import dropped, time_maps
from flowmend.continuous import ContinuousPrior
from flowmend.coordinates import known_coordinates
from flowmend.covariance import cross_fitted
from flowmend.errors import FlowmendError
from flowmend.flow import GaussianVelocity, VelocityConfig, build_velocity
from flowmend.flowmatching import MatchingRun, match
from flowmend.hints import EVERY, MAPS, HintBank
from flowmend.pixels import dequantise
from flowmend.prior import GaussianPrior
from flowmend.recipes import MatchingRecipe
from flowmend.weights import load_prior, save_prior

SHAPE = (3, 4, 8)
PLAIN = VelocityConfig(channels=3, widths=(4, 6), blocks=(1, 1), size=(4, 8))
CONFIG = dataclasses.replace(PLAIN, informed=True)
LEVELS = (255.0 * smooth_images(64, *SHAPE)).round().to(torch.uint8)
RECIPE = MatchingRecipe(epochs=3, batch=8, learning_rate=5e-3, warmup=2, averaging=0.9)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian():
    return GaussianPrior.fit(LEVELS, bits=8)


def prior(config=CONFIG, size=0.0):
    velocity = build_velocity(config)
    if size:
        share = copy.deepcopy(velocity.share)
        velocity = randomise(velocity, seed=1, size=size)
        velocity.share = share
    return ContinuousPrior(velocity, None, gaussian().as_stored()).double().requires_grad_(False)


def pictures(count=3, seed=9):
    return smooth_images(count, *SHAPE, seed=seed).double()


def velocity_of(whole):
    return whole.velocity.gaussian


def mixed_times(seed=0):
    maps = time_maps((16, *SHAPE), source(seed))
    return next(t for t in maps if float(t.min()) < float(t.max())).double()


# The Gaussian's velocity.


@pytest.mark.parametrize("task", ["denoise", "inpaint", "colorize"])
def test_a_fresh_network_restores_as_the_gaussian_does(task):
    """Its own part is zero at the start: what is left is the LMMSE solution, by other formulas."""
    whole = prior()
    made = fm.make_task(task, SHAPE, sigma=0.03)
    y = made.measure(pictures(), source())
    known = known_coordinates(y, made.operator, 0.03, pictures(1)[0])
    wanted = whole.gaussian.posterior(made.operator, 0.03).mean(y)
    torch.testing.assert_close(known.mean(whole), wanted, rtol=1e-5, atol=1e-6)
    whole.velocity.share.fill_(0.9)
    assert not torch.allclose(known.mean(whole), wanted, atol=1e-3)


def test_best_linear_prediction_of_the_velocity():
    """At every mixture of times it is what regression on draws finds."""
    velocity, t = velocity_of(prior()), mixed_times(3)
    count = 60_000
    root = torch.linalg.cholesky(velocity.covariance)
    x = torch.randn(count, len(root), generator=source(), dtype=torch.float64) @ root.T
    x = x + velocity.mean.flatten()
    e = torch.randn(x.shape, generator=source(1), dtype=torch.float64)
    x_t = t.flatten() * x + (1.0 - t.flatten()) * e
    found = velocity(x_t.view(-1, *SHAPE), t.expand(count, *SHAPE)).flatten(1)
    errors = x - e - found
    size = errors.square().mean().sqrt()
    assert float(errors.mean(0).abs().max()) < 0.03 * size
    correlation = (errors.T @ (x_t - x_t.mean(0))) / count
    assert float(correlation.abs().max()) < 0.03
    broken = x - e - 1.1 * found
    assert float(((broken.T @ (x_t - x_t.mean(0))) / count).abs().max()) > 0.05


def test_the_three_ways_agree():
    velocity = velocity_of(prior())
    x = torch.randn(4, *SHAPE, generator=source(), dtype=torch.float64)
    t = torch.tensor([0.2, 0.2, 0.7, 1.0]).double()
    by_factor = velocity(x, t)
    assert velocity._basis is None
    velocity.basis()
    torch.testing.assert_close(velocity(x, t), by_factor, rtol=1e-8, atol=1e-8)
    times = mixed_times()
    gain = velocity.gain(times)
    wanted = (x - times * velocity.mean).flatten(1) @ gain.T + velocity.mean.flatten()
    found = velocity(x, times.expand(4, *SHAPE))
    torch.testing.assert_close(found.flatten(1), wanted, rtol=1e-8, atol=1e-8)
    # times of its own for each image
    different = torch.stack([times, mixed_times(1), times, torch.full(SHAPE, 0.5).double()])
    alone = [velocity(x[i : i + 1], different[i : i + 1])[0] for i in range(4)]
    torch.testing.assert_close(velocity(x, different), torch.stack(alone))


def test_images_of_another_shape_are_refused():
    with pytest.raises(FlowmendError, match="knows images"):
        velocity_of(prior())(torch.zeros(1, 3, 8, 4).double(), torch.zeros(1).double())


def test_many_even_times_are_worth_the_eigenvectors():
    velocity = velocity_of(prior())
    x = torch.randn(1, *SHAPE, generator=source(), dtype=torch.float64)
    for step in range(13):
        assert velocity._basis is None
        velocity(x, torch.tensor([0.05 * (step + 1)]).double())
    assert velocity._basis is not None


# The network.


def test_the_network_adds_to_the_gaussian_and_sees_it():
    whole = prior(size=0.3)
    x, t = whole.to_network(pictures()), torch.full((3,), 0.6).double()
    found = whole.velocity(x, t)
    given = whole.velocity.residual(
        whole.velocity.factors(x, t)[0] * x, t, velocity_of(whole)(x, t)
    )
    _, c_skip, c_out = whole.velocity.factors(x, t)
    torch.testing.assert_close(c_skip * x + c_out * given, found)
    without = whole.velocity.share.clone()
    whole.velocity.share.fill_(0.0)
    unshared = whole.velocity(x, t)
    linear = (velocity_of(whole)(x, t) - c_skip * x) / c_out
    torch.testing.assert_close(found - unshared, without * c_out * linear)
    other = whole.velocity.residual(
        whole.velocity.factors(x, t)[0] * x, t, velocity_of(whole)(x, t) + 1.0
    )
    assert not torch.allclose(other, (unshared - c_skip * x) / c_out)


def test_known_values_stay_and_images_do_not_depend_on_others():
    whole = prior(size=0.3)
    y = pictures()
    sigma = torch.where(torch.arange(8) < 5, 0.0, torch.tensor(torch.inf)).double().expand(y.shape)
    found = whole.denoise(y, sigma)
    torch.testing.assert_close(found[..., :5], y[..., :5])
    torch.testing.assert_close(whole.denoise(y[1:2], sigma[1:2])[0], found[1])


def test_encode_and_decode_cancel():
    whole = prior(size=0.05)
    x = pictures(2)
    assert float((whole.round_trip(x) - x).abs().max()) < 1e-3
    z, there = whole.encode(x)
    back = whole.decode(z)[1]
    torch.testing.assert_close(there, -back, rtol=1e-2, atol=0.5)


def test_copies_share_the_gaussian():
    whole = prior()
    assert copy.deepcopy(whole).velocity.gaussian is whole.velocity.gaussian
    assert whole.float().at_precision("bfloat16").velocity.gaussian is whole.velocity.gaussian


def test_it_needs_its_gaussian_and_one_size():
    with pytest.raises(FlowmendError, match="needs the Gaussian"):
        ContinuousPrior(build_velocity(CONFIG))
    with pytest.raises(FlowmendError, match="needs its Gaussian"):
        build_velocity(CONFIG)(torch.zeros(1, *SHAPE), torch.zeros(1))
    with pytest.raises(FlowmendError, match="'informed'"):
        dataclasses.replace(CONFIG, size=None)


def test_files_keep_it(tmp_path):
    whole = prior(size=0.3).float()
    loaded = load_prior(save_prior(tmp_path / "prior.safetensors", whole))
    assert loaded.config.informed
    y = pictures().float()
    torch.testing.assert_close(loaded.denoise(y, 0.1), whole.denoise(y, 0.1), rtol=0, atol=1e-4)


# Training.


def test_hints_are_those_of_the_gaussian_and_resume():
    velocity = velocity_of(prior())
    bank, owners = HintBank([velocity], seed=5), torch.arange(40)
    t, hints = bank.draw(owners, 3 * EVERY + 1, source(2))
    kinds = {float(row.min()) < float(row.max()) for row in t.flatten(1)}
    assert kinds == {True, False}
    x = torch.randn(40, *SHAPE, generator=source())
    wanted = torch.cat([velocity(x[i : i + 1], t[i : i + 1]) for i in range(40)])
    torch.testing.assert_close(hints(x, t), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(hints(x, t), wanted.roll(1, 0), atol=1e-2)
    again = HintBank([velocity], seed=5).draw(owners, 3 * EVERY + 1, source(2))[0]
    assert torch.equal(again, t)
    first = [number for number in bank._maps]
    bank.prepare(4 * EVERY)
    assert [number for number in bank._maps] == [*first[1:], first[-1] + 1]
    assert len(first) == MAPS


@pytest.mark.parametrize("step", [0, 7 * EVERY])
def test_images_see_the_gaussian_of_their_own_fold(step):
    parts = cross_fitted(LEVELS, 8, True, 3)
    gaussians = [GaussianVelocity.of_images(*part) for part in parts]
    owners = torch.randperm(60, generator=source(3))
    t, hints = HintBank(gaussians, seed=5).draw(owners, step, source(2))
    x = torch.randn(60, *SHAPE, generator=source())
    one = [slice(i, i + 1) for i in range(60)]
    by = [torch.cat([part(x[i], t[i]) for i in one]) for part in gaussians]
    wanted = torch.stack([by[owner % 3][i] for i, owner in enumerate(owners.tolist())])
    torch.testing.assert_close(hints(x, t), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(hints(x, t), by[0], atol=1e-2)


def test_a_fold_is_not_in_its_gaussian():
    mean, covariance = list(cross_fitted(LEVELS, 8, False, 4))[1]
    others = torch.cat([LEVELS[fold::4] for fold in (0, 2, 3)])
    x = dequantise(others.double() / 255.0, 8)
    torch.testing.assert_close(mean, x.mean(0))
    moments = torch.cov(x.flatten(1).T, correction=0)
    strength = (covariance.diagonal() - 1.0 / (12.0 * 4.0**8)).sum() / moments.trace()
    assert float(strength) == pytest.approx(1.0, abs=0.1)
    changed = LEVELS.clone()
    changed[1::4] = 255 - changed[1::4]
    same = list(cross_fitted(changed, 8, False, 4))[1]
    torch.testing.assert_close(same[0], mean)
    assert not torch.allclose(next(iter(cross_fitted(changed, 8, False, 4)))[0], mean, atol=1e-3)


def test_few_images_share_one_gaussian(tmp_path):
    run = MatchingRun(tmp_path, CONFIG, RECIPE, LEVELS[:9], LEVELS[:8], 0, "cpu")
    assert run.bank.gaussians == [run.prior.velocity.gaussian]
    run = MatchingRun(tmp_path, CONFIG, RECIPE, LEVELS[:10], LEVELS[:8], 0, "cpu")
    assert len(run.bank.gaussians) == 5
    recipe = dataclasses.replace(RECIPE, folds=1)
    run = MatchingRun(tmp_path, CONFIG, recipe, LEVELS, LEVELS[:8], 0, "cpu")
    assert run.bank.gaussians == [run.prior.velocity.gaussian]


def test_dropout_leaves_out_a_share_and_keeps_the_mean():
    h = torch.ones(40, 50, 10)
    found = dropped(h, 0.2, source())
    assert set(found.unique().tolist()) == {0.0, 1.25}
    assert float(found.mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.equal(found, dropped(h, 0.2, source()))
    assert not torch.equal(found, dropped(h, 0.2, source(1)))


def test_dropout_spares_the_finest_level_and_only_trains(tmp_path):
    seen = []

    def drop(h):
        seen.append(h.shape[1])
        return h

    velocity = prior(size=0.3).float().velocity
    x, t = torch.randn(2, *SHAPE, generator=source()), torch.tensor([0.3, 0.6])
    plain = velocity.residual(x, t)
    torch.testing.assert_close(velocity.residual(x, t, drop=drop), plain)
    widths, blocks = velocity.config.widths, velocity.config.blocks
    assert len(seen) == sum(2 * n for n in blocks[1:-1]) + blocks[-1]
    assert set(seen) == set(widths[1:])
    assert not torch.equal(
        velocity.residual(x, t, drop=lambda h: dropped(h, 0.5, source())), plain
    )

    losses = []
    for share in (0.0, 0.5, 0.5):
        recipe = dataclasses.replace(RECIPE, dropout=share)
        run = MatchingRun(tmp_path, CONFIG, recipe, LEVELS, LEVELS[:8], 0, "cpu")
        run.prior.velocity.load_state_dict(velocity.state_dict())
        with torch.no_grad():
            losses.append(float(run.loss(torch.arange(8), source(4))))
    assert losses[0] != losses[1] == losses[2]


@pytest.mark.parametrize(
    "change",
    [
        {"folds": 0},
        {"folds": 21},
        {"common": 1.1},
        {"common": -0.1},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"forget": -0.1},
        {"forget": 1.1},
    ],
)
def test_wrong_shares_are_one_sentence(change):
    with pytest.raises(fm.FlowmendError, match=next(iter(change))):
        dataclasses.replace(RECIPE, **change)


def run_in(out, config=CONFIG, first=None, recipe=RECIPE):
    return MatchingRun(out, config, recipe, LEVELS, LEVELS[:8], 0, "cpu", first=first)


def test_a_plain_prior_begins_an_informed_one(tmp_path):
    plain = prior(PLAIN, size=0.3).float()
    run = run_in(tmp_path, first=plain)
    y = pictures().float()
    torch.testing.assert_close(run.prior.denoise(y, 0.1), plain.denoise(y, 0.1))
    again = run_in(tmp_path / "again", first=run.prior)
    torch.testing.assert_close(again.prior.denoise(y, 0.1), plain.denoise(y, 0.1))
    wider = dataclasses.replace(CONFIG, widths=tuple(width + 3 for width in CONFIG.widths))
    larger = run_in(tmp_path / "wider", wider, first=run.prior)
    torch.testing.assert_close(larger.prior.denoise(y, 0.1), plain.denoise(y, 0.1))


def test_a_run_forgets_a_share_of_what_it_begins_with(tmp_path):
    first, recipe = prior(size=0.3).float(), dataclasses.replace(RECIPE, forget=0.5)
    before = first.velocity.network.last.weight.clone()
    run = run_in(tmp_path, first=first, recipe=recipe)
    # a fresh last layer is zero
    torch.testing.assert_close(run.prior.velocity.network.last.weight, 0.5 * before)
    assert torch.equal(first.velocity.network.last.weight, before)
    with pytest.raises(fm.FlowmendError, match="nothing to forget"):
        run_in(tmp_path / "alone", recipe=recipe)


def test_it_learns_more_than_the_gaussian(tmp_path):
    """Half of the pictures are flat, the others noise: a Gaussian can only meet in the middle."""
    busy = (torch.arange(128) % 2).view(-1, 1, 1, 1)
    values = 2.0 * torch.rand((128, *SHAPE), generator=source(4)) - 1.0
    levels = (128.0 + 100.0 * busy * values).round().to(torch.uint8)
    recipe = dataclasses.replace(RECIPE, epochs=12, learning_rate=2e-2, folds=1)
    run = MatchingRun(tmp_path / "run", CONFIG, recipe, levels, levels[:64], 0, "cpu")
    before = run.measure()["val_psnr_25"]
    records = []
    match(levels, levels[:64], tmp_path / "out", CONFIG, recipe, report=records.append)
    assert records[-1]["val_psnr_25"] > before + 0.1
    assert float(load_prior(tmp_path / "out").velocity.share) != 1.0


def test_a_gaussian_that_saw_the_images_is_not_trusted_on_others(tmp_path):
    """Noise, of which few pictures show a pattern that is not there."""
    noise = 255.0 * torch.rand((192, *SHAPE), generator=source(4))
    levels = noise.round().to(torch.uint8)
    losses = {}
    for folds in (1, 5):
        recipe = dataclasses.replace(RECIPE, epochs=12, learning_rate=2e-2, folds=folds)
        run = MatchingRun(tmp_path, CONFIG, recipe, levels[:128], levels[128:], 0, "cpu")
        for _ in range(run.steps):
            run.advance()
        losses[folds] = run.measure()["val_loss"]
    assert losses[5] < losses[1] - 0.005


def test_commands(run, tmp_path):
    faces = tmp_path / "faces"
    for index, image in enumerate(smooth_images(24, 3, 8, 8)):
        save_png(faces / f"{index:02}.png", image)

    def trained(name, *more):
        options = ("--kind", "continuous", "--size", 8, "--hidden", "4,6", "--steps", "1,1")
        options = (*options, "--epochs", 1, "--batch", 8, *more)
        return run("train", faces, "--out", tmp_path / name, *options)

    assert trained("plain", "--no-informed").code == 0
    assert trained("informed", "--init", tmp_path / "plain").code == 0
    informed = [
        json.loads((tmp_path / name / "prior.json").read_text())["config"]["informed"]
        for name in ("plain", "informed")
    ]
    assert informed == [False, True]
    outcome = trained("other", "--init", "faces32")
    assert outcome.code == 1
    assert "continuous prior" in outcome.err
    outcome = run("train", faces, "--out", tmp_path / "c", "--init", "x", "--epochs", 1)
    assert outcome.code == 1
    assert "--init is an option of --kind continuous" in outcome.err
