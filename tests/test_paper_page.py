"""The paper's evidence: the page, its verdicts and the command."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import save_png, smooth_images

import flowmend as fm
from flowmend.paper import lines, page, runs
from flowmend.paper.plan import ENTRIES, PRINTED, TASKS, Job, grid_of
from flowmend.paper.tables import cells, curves, paired, table1
from flowmend.paper.verdict import verdicts

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "paper"


# Tables and verdicts
def rows_of(entry, task, values, steps=0, **changes):
    base = {
        "item": "table1",
        "split": "test",
        "task": task,
        "method": entry,
        "ssim": 0.9,
        "mse_5bit": 100.0,
        "ssim_5bit": 0.89,
        "seconds": 1.0,
        "steps": steps,
        "weight": None,
        "variant": "",
        "prior": "p",
        "prior_sha256": "0",
    }
    job = Job(
        changes.pop("item", "table1"),
        task,
        entry,
        ENTRIES[entry].method,
        ENTRIES[entry].start,
        len(values),
        steps=steps,
        variant=changes.get("variant", ""),
    )
    base["job"] = list(job.key())
    return [base | {"image": f"{i:02}", "psnr": v} | changes for i, v in enumerate(values)]


BASE = [25.0, 27.0, 24.0, 29.0, 26.5, 28.0]


def shifted(step):
    return [value + step + 0.01 * (index % 3) for index, value in enumerate(BASE)]


def test_paired_test_agrees_with_scipy():
    from scipy.stats import ttest_rel

    one, other = cells(rows_of("lmmse", "denoise", shifted(0.3)) + rows_of("eq7", "denoise", BASE))
    mean, half, p = paired(other, one)
    result = ttest_rel(BASE, shifted(0.3))
    interval = result.confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(BASE) - np.mean(shifted(0.3)))
    assert mean - half == pytest.approx(interval.low)
    assert mean + half == pytest.approx(interval.high)
    assert p == pytest.approx(result.pvalue)


def test_an_infinite_psnr_is_left_out_of_mean_and_pairs():
    one, other = cells(
        rows_of("lmmse", "denoise", [*BASE[:-1], None]) + rows_of("eq7", "denoise", shifted(1.0))
    )
    assert one.mean("psnr") == pytest.approx(np.mean(BASE[:-1]))
    assert paired(other, one)[0] == pytest.approx(np.mean(np.subtract(shifted(1.0), BASE)[:-1]))


def test_the_oracle_step_is_shown_where_it_is_not_the_last():
    rows = rows_of("eq7", "denoise", BASE, steps=20)
    for row in rows:
        row["psnr_at"] = {"0": 10.0, "10": 30.0}
    (cell,) = cells(rows)
    assert curves(cell) == {0: 10.0, 10: 30.0, 20: pytest.approx(np.mean(BASE))}
    assert "30.00 at 10" in table1([cell], [])


def test_the_table_shows_the_printed_figure_and_its_conversion():
    text = table1(cells(rows_of("bm3d", "denoise", BASE)), [])
    assert "37.65 / 0.905 | 27.17" in text


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((1, 1, 1, 1), "holds"),
        ((1, -1, 1, 1), "holds in part"),
        ((-1, -1, 0, -1), "does not hold"),
    ],
)
def test_verdicts_follow_the_lines(steps, expected):
    rows = []
    for task, step in zip(TASKS, steps, strict=True):
        rows += rows_of("csgm", task, BASE) + rows_of("eq7", task, shifted(step))
    claims = {claim.text: claim for claim in verdicts(cells(rows), [], [])}
    assert claims["Eq. 7 is better than CSGM on every task."].verdict == expected


def test_a_claim_without_lines_is_not_judged():
    claims = verdicts(cells(rows_of("eq7", "denoise", BASE)), [], [])
    assert {c.verdict for c in claims if "BM3D" in c.text} == {"not measured"}


def test_the_speed_claim_counts_the_wins():
    def rows(glow):
        return [
            {"row": name, "quantity": "generation", "batch": 1, "mean_ms": ms}
            for name, ms in (("paper", 10.0), ("glow", glow))
        ] + [{"row": "glow (normflows)", "skipped": "not installed"}]

    found = {glow: verdicts([], [], rows(glow))[-1] for glow in (20.0, 9.0)}
    assert found[20.0].verdict == "holds"
    assert "2.00 at batch 1" in found[20.0].because
    assert found[9.0].verdict == "does not hold"


def test_grids_hold_the_paper_s_own_weights():
    for name in ("csgm", "glowip", "likelihood"):
        entry = next(e for e in ENTRIES.values() if e.method == name)
        for task in TASKS:
            weight = fm.TASKS[task].presets[name]["weight"]
            assert any(math.isclose(weight, w) for w in grid_of(entry, task)), (name, task)


def test_printed_figures_fit_the_lines():
    assert {task for _, task in PRINTED} == set(TASKS)
    assert all(task in ENTRIES[name].tasks for name, task in PRINTED)


# The page
def test_the_published_page_is_what_its_lines_say(tmp_path):
    """Fails if a number of docs/results.md is edited, or the lines change without the page."""
    shutil.copytree(RESULTS, tmp_path / "benchmarks" / "paper")
    (tmp_path / "docs").mkdir()
    made = page.assemble(tmp_path / "benchmarks" / "paper", tmp_path / "docs" / "results.md")
    assert made.read_text() == (ROOT / "docs" / "results.md").read_text()


def test_a_changed_line_changes_the_page(tmp_path):
    folder = tmp_path / "paper"
    folder.mkdir()
    rows = rows_of("eq7", "denoise", BASE) + rows_of("bm3d", "denoise", shifted(1))
    lines.append(folder / "table1.jsonl", rows)
    before = page.assemble(folder).read_text()
    assert f"{np.mean(BASE):.2f} ±" in before
    (folder / "table1.jsonl").write_text("")
    rows[0]["psnr"] += 1.0
    lines.append(folder / "table1.jsonl", rows)
    assert page.assemble(folder).read_text() != before


# The command
@pytest.fixture
def pictures(tmp_path):
    for split, count in (("test", 2), ("val", 3)):
        for index, image in enumerate(smooth_images(count, 3, 16, 16, seed=count)):
            save_png(tmp_path / "data" / split / f"{index}.png", image)
    return tmp_path / "data"


def test_the_command_measures_draws_and_resumes(run, pictures, tiny_prior_path, tmp_path):
    out = tmp_path / "out"
    words = ["--data", pictures, "--prior", tiny_prior_path, "--out", out, "--images", 2]
    words += ["--steps", 4, "--tasks", "denoise,colorize", "--methods", "measurement,lmmse,eq7"]
    for item in ("table1", "steps", "ablation", "figure1", "figure2", "figure3", "figure6"):
        outcome = run("paper", item, *words)
        assert outcome.code == 0, outcome.err
    kept = {path.name: path.read_text() for path in out.glob("*.jsonl")}
    assert set(kept) == {"table1.jsonl", "tune.jsonl", "steps.jsonl", "ablation.jsonl"}
    assert run("paper", "table1", *words).code == 0
    assert {path.name: path.read_text() for path in out.glob("*.jsonl")} == kept
    text = (out / "results.md").read_text()
    assert "## Table 1" in text
    assert "## Ablation" in text
    for name in ("table1.md", "table1.csv", "ablation.csv", "steps.png", "figure3.png"):
        assert (out / name).stat().st_size > 0, name


def test_weights_are_never_chosen_on_the_compared_images(pictures, tiny_prior_path, tmp_path):
    from flowmend.paper.evidence import gather

    evidence = gather(pictures, str(tiny_prior_path), tmp_path / "out", 2, steps=4)
    evidence.job("eq7", "denoise")
    rows = lines.read(tmp_path / "out" / "tune.jsonl")
    assert rows
    assert {row["split"] for row in rows} == {"val"}
    single = gather(pictures / "val", str(tiny_prior_path), tmp_path / "other", 1, steps=4)
    assert not set(single.test.names) & set(single.val.names)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["table9"], "Unknown item 'table9'"),
        (["table1"], "needs pictures"),
        (["table1", "--data", "nowhere"], "is not a folder"),
        (["table1", "--methods", "magic"], "Unknown name 'magic' in --methods"),
        (["table1", "--tasks", "fly"], "Unknown name 'fly' in --tasks"),
        (["page", "--out", "nowhere"], "There are no results"),
    ],
)
def test_a_wrong_command_gets_one_sentence(run, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("paper", *words)
    assert outcome.code == 1
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err


def test_too_few_pictures_are_refused_before_any_work(run, pictures, tiny_prior_path, tmp_path):
    outcome = run(
        "paper", "table1", "--data", pictures, "--prior", tiny_prior_path, "--out", tmp_path / "o"
    )
    assert outcome.code == 1
    assert "192 images are asked for and there are 2" in outcome.err
    assert not (tmp_path / "o").exists()


def test_the_page_says_where_more_steps_change_the_answer(tmp_path):
    table = rows_of("eq7", "denoise", BASE, steps=20)
    same = rows_of("eq7", "denoise", BASE, steps=20, item="steps")
    for shift, sentence in (
        (0.5, "**Not converged.** More steps gain more than 0.02 dB for Eq. 7 (the paper's)"),
        (0.01, "gain no more than 0.02 dB for Eq. 7 (the paper's) (denoise)"),
    ):
        values = [value + shift for value in BASE]
        more = rows_of("eq7", "denoise", values, steps=40, item="steps")
        folder = tmp_path / str(shift)
        lines.append(folder / "table1.jsonl", table)
        lines.append(folder / "steps.jsonl", same + more)
        text = page.assemble(folder).read_text()
        assert sentence in text
        assert f"{shift:+.2f} at 40" in text
    untried = tmp_path / "untried"
    lines.append(untried / "table1.jsonl", table)
    assert "were not tried for Eq. 7" in page.assemble(untried).read_text()


def test_the_number_of_steps_is_the_smallest_after_which_more_gain_nothing(
    pictures, tiny_prior_path, tmp_path, monkeypatch
):
    from flowmend.paper.evidence import gather

    for values, expected in (
        ({300: 26.0, 600: 26.01, 1500: 30.0}, 300),
        ({300: 26.0, 600: 27.0, 1500: 27.01}, 600),
        ({300: 26.0, 600: 27.0, 1500: 28.0}, 1500),
        ({300: 26.0, 600: 25.0, 1500: 28.0}, 300),
    ):
        tried = []

        def measured(self, job, progress=None, values=values, tried=tried):
            assert self.split == "val"
            tried.append(job)
            return [{"psnr": values[job.steps] if job.item == "steps" else 20.0}]

        monkeypatch.setattr(runs.Bench, "run", measured)
        evidence = gather(pictures, str(tiny_prior_path), tmp_path / "out", 2)
        assert evidence.job("eq7", "inpaint").steps == expected
        assert {job.steps for job in tried if job.item == "tune"} == {300}
        assert evidence.job("eq7", "deblur").steps == 1500


def test_rate_and_weight_are_those_with_the_best_psnr(
    pictures, tiny_prior_path, tmp_path, monkeypatch
):
    from flowmend.paper.evidence import gather

    def measured(self, job, progress=None):
        return [{"psnr": 20.0 - abs(job.weight - 0.01) + (job.learning_rate == 0.04)}]

    monkeypatch.setattr(runs.Bench, "run", measured)
    evidence = gather(pictures, str(tiny_prior_path), tmp_path / "out", 2)
    job = evidence.job("glowip", "inpaint")
    assert (job.weight, job.learning_rate) == (0.01, 0.04)


def test_noisy_measurements_may_stop_early(pictures, tiny_prior_path, tmp_path, monkeypatch):
    from flowmend.paper.evidence import gather

    for early, expected in ((1.0, 150), (-1.0, 300)):

        def measured(self, job, progress=None, early=early):
            return [{"psnr": 20.0 + early * (job.steps == 150) - (job.steps > 300)}]

        monkeypatch.setattr(runs.Bench, "run", measured)
        evidence = gather(pictures, str(tiny_prior_path), tmp_path / "out", 2)
        assert evidence.job("glowip", "denoise").steps == expected
        assert evidence.job("glowip", "inpaint").steps == 300


def test_objectives_are_compared_at_their_best_weights():
    def line(name, values):
        rows = rows_of("eq7", "denoise", values, steps=20, variant=name)
        return [row | {"psnr_at": {"0": 1.0}} for row in rows]

    rows = line("Eq. 7", BASE) + line("without the Jacobian", shifted(-2))
    claim = next(c for c in verdicts([], cells(rows), []) if "Jacobian" in c.text)
    assert claim.verdict == "holds"
    rows += line("without the Jacobian, 3 times alpha", shifted(0.5))
    claim = next(c for c in verdicts([], cells(rows), []) if "Jacobian" in c.text)
    assert claim.verdict == "does not hold"
