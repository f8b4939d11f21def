"""The paper's evidence: right measures, honest resuming."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import smooth_images, tiny_prior
from paper_cases import job

import flowmend as fm
from flowmend.paper import lines, runs
from flowmend.paper.ablation import VARIANTS, _PixelObjective, _PixelSpace, ablation_jobs
from flowmend.paper.author import five_bit_errors, pooled_psnr
from flowmend.paper.plan import true_psnr


def noisy(count=3, amount=0.1, seed=0):
    x = smooth_images(count, 3, 32, 32, seed).float()
    generator = torch.Generator().manual_seed(seed)
    return (x + amount * torch.randn(x.shape, generator=generator)).clamp(0, 1), x


# The author's measures
def test_the_printed_figure_converts_to_the_true_psnr():
    """The paper's formula, written out, on errors over four decades."""
    for error in (0.3, 7.0, 120.0, 4000.0):
        printed = 20 * math.log10(255 / math.sqrt(math.sqrt(error)))
        assert true_psnr(printed) == pytest.approx(
            20 * math.log10(255 / math.sqrt(error)), abs=1e-4
        )


def test_the_author_s_errors_are_those_of_five_bit_images():
    noise, x = noisy()
    errors, similar = five_bit_errors(noise, x)

    def levels(images):
        eight = np.round(images.numpy().astype(np.float64) * 255)
        return np.clip(np.floor(eight / 256 * 32) * 8, 0, 255)

    expected = ((levels(noise) - levels(x)) ** 2).mean(axis=(1, 2, 3))
    assert errors == pytest.approx(expected.tolist(), rel=1e-9)
    assert all(0 < value < 1 for value in similar)


def test_the_author_s_ssim_is_that_of_pytorch_msssim():
    msssim = pytest.importorskip("pytorch_msssim", reason="pytorch-msssim is not installed")
    noise, x = noisy()
    five = [(image * 255).round().div(8, rounding_mode="floor") * 8 for image in (noise, x)]
    expected = msssim.ssim(*five, data_range=255, size_average=False)
    assert five_bit_errors(noise, x)[1] == pytest.approx(expected.tolist(), abs=2e-5)


def test_errors_are_pooled_in_batches_of_thirty_two():
    errors = [4.0] * 16 + [8.0] * 16 + [100.0] * 5
    expected = (10 * math.log10(255**2 / 6) + 10 * math.log10(255**2 / 100)) / 2
    assert pooled_psnr(errors) == pytest.approx(expected)
    assert pooled_psnr(errors) != pytest.approx(
        np.mean([10 * math.log10(255**2 / e) for e in errors])
    )


def test_measurements_of_the_paper():
    x = smooth_images(4, 3, 32, 32).float()
    noise = runs.measurements(runs.paper_task("denoise", (3, 32, 32)), x, 0)
    assert torch.equal((noise * 255).round(), (noise * 255).round().clamp(0, 255))
    assert torch.allclose(noise * 255, (noise * 255).round(), atol=1e-4)
    bias = float(((noise - x) * 255).mean())
    assert -1.0 < bias < -0.1  # rounded down, not to the nearest level
    assert float((noise - x).std()) == pytest.approx(0.1, abs=0.003)
    hole = runs.measurements(runs.paper_task("inpaint", (3, 32, 32)), torch.ones(1, 3, 32, 32), 0)
    assert int((hole[0, 0] == 0).sum()) == 13 * 13
    blurred = runs.measurements(
        runs.paper_task("deblur", (3, 32, 32)), torch.ones(1, 3, 32, 32), 0
    )
    assert float(blurred[0, 0, 16, 16]) == pytest.approx(1.0)
    assert float(blurred[0, 0, 0, 0]) == pytest.approx((4 * 1.0 + 5 * 0.5) / 9)  # mid-grey border
    one = runs.measurements(runs.paper_task("denoise", (3, 32, 32)), x[:1], 0)
    assert torch.equal(one, noise[:1])


# Lines
def test_a_torn_last_line_is_left_out_and_the_next_append_survives_it(tmp_path):
    path = tmp_path / "a.jsonl"
    lines.append(path, [{"a": 1}, {"a": 2}])
    path.write_text(path.read_text() + '{"a": 3, "b')
    assert lines.read(path) == [{"a": 1}, {"a": 2}]
    lines.append(path, [{"a": 4}])
    assert lines.read(path) == [{"a": 1}, {"a": 2}, {"a": 4}]


def test_a_broken_line_inside_a_file_is_refused_by_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(fm.FlowmendError, match="Line 2"):
        lines.read(path)


# Runs
def bench(folder, count=5):
    prior = tiny_prior()
    x = smooth_images(count, 3, 16, 16, seed=3).float()
    names = [f"{index}.png" for index in range(count)]
    return runs.Bench(x, names, "test", prior, "tiny", "0" * 64, folder, made_with={"commit": "c"})


def test_a_run_that_was_cut_off_goes_on_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BATCH", 2)
    whole = bench(tmp_path / "whole").run(job())
    solved = []
    real = runs.solve
    monkeypatch.setattr(
        runs, "solve", lambda y, *a, **k: solved.append(len(y)) or real(y, *a, **k)
    )
    cut = bench(tmp_path / "cut")
    cut.run(job(images=2))
    assert solved == [2]
    again = cut.run(job())
    assert solved == [2, 2, 1]
    assert cut.run(job()) == again
    assert solved == [2, 2, 1]
    for row, other in zip(whole, again, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in other.items() if k != "seconds"
        }


def test_another_setting_is_another_job(tmp_path):
    one = bench(tmp_path)
    first = one.run(job(images=2))
    assert one.rows(dataclasses.replace(job(images=2), weight=0.5)) == []
    assert dataclasses.replace(one, seed=1).rows(job(images=2)) == []
    assert dataclasses.replace(one, sha256="1" * 64).rows(job(images=2)) == []
    assert one.rows(job(images=2)) == first


def test_rows_hold_what_a_reader_needs(tmp_path):
    rows = bench(tmp_path).run(job(images=2))
    for row in rows:
        for name in (
            "psnr",
            "ssim",
            "seconds",
            "steps",
            "seed",
            "commit",
            "prior_sha256",
            "image",
        ):
            assert row[name] is not None, name
        assert set(row["psnr_at"]) == {"0", "1", "2"}
    assert (tmp_path / "strips" / "denoise-eq7.png").is_file()
    assert json.loads((tmp_path / "table1.jsonl").read_text().splitlines()[0]) == rows[0]


def test_the_measures_of_a_row_are_those_of_the_metrics(tmp_path):
    one = bench(tmp_path)
    row = one.run(job("lmmse", "inpaint", 1))[0]
    task = runs.paper_task("inpaint", one.prior.shape)
    y = runs.measurements(task, one.x[:1], 0)
    restored = fm.solve(y, task.operator, one.prior, method="lmmse").x
    assert row["psnr"] == fm.psnr(restored, one.x[:1])[0]
    assert row["ssim"] == fm.ssim(restored, one.x[:1])[0]


# The ablation
def test_every_variant_runs_and_changes_what_it_says(tmp_path):
    one = bench(tmp_path, 2)
    reference = dataclasses.replace(job(images=2), weight=0.05, steps=8)
    found = {j.variant: one.run(j) for j in ablation_jobs(reference)}
    assert list(found) == list(VARIANTS)
    values = [tuple(row["psnr"] for row in rows) for rows in found.values()]
    assert len(set(values)) == len(values)


def test_map_in_pixel_space_with_a_gaussian_is_the_closed_form():
    """The ablation's pixel-space search, whose answer is known for a Gaussian prior."""
    images = (smooth_images(64, 1, 8, 8) * 255).round().to(torch.uint8)
    prior = fm.GaussianPrior.fit(images).double()
    task = fm.make_task("denoise", prior.shape, sigma=0.1)
    y = task.measure(smooth_images(2, 1, 8, 8, seed=5), torch.Generator().manual_seed(0))
    expected = fm.solve(y, task.operator, prior, method="lmmse", sigma=0.1).x
    objective = _PixelObjective(fm.objective.map_estimate(0.1), prior)
    v = fm.latent.minimise(
        objective,
        y,
        task.operator,
        _PixelSpace(prior.shape),
        y.flatten(1),
        steps=1500,
        learning_rate=0.02,
        cosine=True,
    )[0]
    assert float((v.view_as(expected).clamp(0, 1) - expected).abs().max()) < 1e-3
