"""Table 2: what is timed, in which order, and how its text is made."""

import json
import sys

import pytest
import torch

from flowmend.errors import FlowmendError
from flowmend.flow import FlowConfig, InvertibleConv1x1, MultiscaleFlow, Squeeze, build_flow
from flowmend.paper.contenders import CONTENDERS, Contender, NormflowsGlow, build_contender
from flowmend.paper.timing import PRINTED, QUANTITIES, measure_times, table2

SWAP = FlowConfig(height=8, width=8, steps=(1, 1), split=(True, False), hidden=4)
MIXING = FlowConfig(
    height=8, width=8, steps=(2, 1), split=(False, False), hidden=4, permutation="conv1x1"
)
TINY = (
    Contender("paper", SWAP),
    Contender("glow", MIXING, cached=False),
    Contender("glow, inverse cached", MIXING),
)
CPU = torch.device("cpu")
KEYS = {
    *("item", "row", "quantity", "batch", "mean_ms", "sd_ms", "median_ms"),
    *("repeats", "parameters", "library", "threads", "device"),
}


def fixed_row(name, quantity, mean, parameters, batch=32):
    return {
        "item": "table2",
        "row": name,
        "quantity": quantity,
        "batch": batch,
        "mean_ms": mean,
        "sd_ms": 0.5,
        "median_ms": mean,
        "repeats": 5,
        "parameters": parameters,
        "library": "flowmend 0",
        "threads": 2,
        "device": "a computer",
    }


@pytest.fixture(scope="module")
def measured():
    told = []
    rows = measure_times((1, 3), 2, lambda *event: told.append(event), contenders=TINY)
    return rows, told


def test_every_contender_quantity_and_batch_has_one_line(measured):
    rows, _ = measured
    found = [(row["row"], row["quantity"], row["batch"]) for row in rows]
    wanted = [(c.name, q, b) for q in QUANTITIES for b in (1, 3) for c in TINY]
    assert sorted(found) == sorted(wanted)


def test_lines_are_plain_values_with_positive_times(measured):
    rows, _ = measured
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert set(row) == KEYS
        assert row["item"] == "table2"
        assert row["repeats"] == 2
        assert row["mean_ms"] > 0.0
        assert row["median_ms"] == pytest.approx(row["mean_ms"])
        assert row["sd_ms"] >= 0.0
        assert row["threads"] == torch.get_num_threads()


def test_parameters_are_those_of_the_flow(measured):
    rows, _ = measured
    count = {"paper": SWAP, "glow": MIXING, "glow, inverse cached": MIXING}
    for row in rows:
        flow = build_flow(count[row["row"]])
        assert row["parameters"] == sum(p.numel() for p in flow.parameters())


def test_progress_counts_every_round(measured):
    _, told = measured
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert {total for _, total, _ in told} == {len(told)}
    assert told[0][2] == "generation, 1 at a time"


def test_contenders_take_turns(monkeypatch):
    order = []

    def spy(name, original):
        def spied(self, tensor):
            order.append((name, self.config.permutation, len(tensor)))
            return original(self, tensor)

        return spied

    for name in ("decode", "encode"):
        monkeypatch.setattr(MultiscaleFlow, name, spy(name, getattr(MultiscaleFlow, name)))
    measure_times((1, 2), 2, contenders=TINY[:2], quick=True)
    turns = [
        (direction, permutation, batch)
        for direction in ("decode", "decode", "encode")
        for batch in (1, 2)
        for _ in range(3)
        for permutation in ("swap", "conv1x1")
    ]
    assert order == turns


@pytest.mark.parametrize("cached", [False, True])
def test_only_the_uncached_inverts_in_every_decode(monkeypatch, cached):
    timed = build_contender(Contender("glow", MIXING, cached=cached), CPU)
    matrices = sum(isinstance(m, InvertibleConv1x1) for m in timed.network.modules())
    calls = []
    original = torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda a: calls.append(a.dtype) or original(a))
    for _ in range(3):
        timed.decode(torch.zeros(1, MIXING.dimensions))
    assert calls == [torch.float64] * (matrices if cached else 3 * matrices)


def test_timing_inverts_as_often_as_it_says(monkeypatch):
    calls = []
    original = torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda a: calls.append(len(a)) or original(a))
    measure_times((1,), 4, contenders=TINY[2:], quick=True)
    assert len(calls) == sum(MIXING.steps)
    calls.clear()
    measure_times((1,), 4, contenders=TINY[1:2], quick=True)
    assert len(calls) == sum(MIXING.steps) * 5 * 2


def test_weights_are_frozen_the_same_every_time_and_nowhere_zero_in_a_last_layer():
    timed = build_contender(TINY[0], CPU)
    last = [p for name, p in timed.network.named_parameters() if ".last." in name]
    assert last
    assert all(bool(p.any()) for p in last)
    z = torch.randn(2, SWAP.dimensions, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(timed.decode(z)).all())
    assert not any(p.requires_grad for p in timed.network.parameters())
    assert torch.equal(timed.decode(z), build_contender(TINY[0], CPU).decode(z))


def test_the_real_contenders_are_the_paper_s():
    configs = {c.name: c for c in CONTENDERS}
    for name in ("paper", "glow"):
        flow = build_flow(configs[name].config)
        millions = sum(p.numel() for p in flow.parameters()) / 1e6
        assert round(millions, 1) == PRINTED[name][2]
    assert not configs["glow"].cached
    assert configs["glow, inverse cached"].cached


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"repeats": 1}, "2 or more"),
        ({"repeats": 0}, "2 or more"),
        ({"batches": ()}, "choose batches"),
        ({"batches": (0,)}, "choose batches"),
        ({"batches": (64,), "quick": True}, "at most 32"),
    ],
)
def test_what_cannot_be_measured_raises(arguments, phrase):
    with pytest.raises(FlowmendError, match=phrase):
        measure_times(contenders=TINY, **arguments)


def test_contenders_that_cannot_be_built_raise():
    with pytest.raises(FlowmendError, match="Unknown library"):
        Contender("other", MIXING, library="other")
    with pytest.raises(FlowmendError, match="no swap"):
        Contender("other", SWAP, library="normflows")


def test_a_missing_library_is_said_and_the_others_are_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "normflows", None)
    both = (TINY[0], Contender("glow (normflows)", MIXING, library="normflows"))
    rows = measure_times((1,), 2, contenders=both, quick=True)
    *times, note = rows
    assert {row["row"] for row in times} == {"paper"}
    assert note == {
        "item": "table2",
        "row": "glow (normflows)",
        "skipped": "normflows is not installed: pip install normflows",
    }
    assert "No line for glow (normflows): normflows is not installed" in table2(rows)


def test_the_table_holds_the_measurements_and_the_printed_figures():
    rows = [
        fixed_row("paper", "generation", 50.0, 1000),
        fixed_row("glow", "generation", 75.0, 1100),
        fixed_row("paper", "training step", 200.0, 1000),
        fixed_row("glow", "training step", 250.0, 1100),
        fixed_row("paper", "generation", 10.0, 1000, batch=1),
        fixed_row("glow", "generation", 30.0, 1100, batch=1),
    ]
    lines = table2(rows).splitlines()
    assert "a computer" in lines[0]
    assert "| paper | 1,000 | 32 | 50.00 ± 0.50 | - | 200 ± 0 |" in lines
    assert "| glow | 1,100 | 1 | 30.00 ± 0.50 | - | - |" in lines
    assert "| glow | 1.10 | 32 | 1.50 | - | 1.25 |" in lines
    assert "| glow | 1.10 | 1 | 3.00 | - | - |" in lines
    assert "| glow, as printed | 33.8 M | - | 10.86 ± 0.18 | - | - |" in lines
    assert "| paper, as printed | 32.7 M | - | 4.46 ± 0.03 | - | - |" in lines
    assert "| glow, as printed | 1.03 | - | 2.43 | - | - |" in lines


def test_the_table_of_a_real_run_has_a_ratio_for_every_rival(measured):
    rows, _ = measured
    text = table2(rows)
    times = {(r["row"], r["batch"], r["quantity"]): r["mean_ms"] for r in rows}
    for name in ("glow", "glow, inverse cached"):
        for batch in (1, 3):
            ratios = [times[name, batch, q] / times["paper", batch, q] for q in QUANTITIES]
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            assert any(
                line.startswith(f"| {name} | ") and line.endswith(f" | {batch} | {cells} |")
                for line in text.splitlines()
            )


def test_rows_of_two_runs_or_of_none_make_no_table():
    row = fixed_row("paper", "generation", 50.0, 1000)
    with pytest.raises(FlowmendError, match="one run"):
        table2([row, row])
    with pytest.raises(FlowmendError, match="measure it first"):
        table2([])


@pytest.mark.parametrize("split", [(False, False), (True, False)])
def test_the_other_library_s_glow_is_a_flow_of_the_same_shape(split):
    normflows = pytest.importorskip("normflows", reason="normflows is not installed")
    config = FlowConfig(
        height=8, width=8, steps=(2, 1), split=split, hidden=4, permutation="conv1x1"
    )
    timed = build_contender(Contender("glow (normflows)", config, library="normflows"), CPU)
    assert isinstance(timed, NormflowsGlow)
    blocks = [m for m in timed.network.modules() if isinstance(m, normflows.flows.GlowBlock)]
    assert len(blocks) == sum(config.steps)
    z = torch.randn(3, config.dimensions, generator=torch.Generator().manual_seed(0))
    x = timed.decode(z)
    assert x.shape == (3, *config.shape)
    parts, _ = timed.network.inverse_and_log_det(x)
    back = torch.cat([part.flatten(1) for part in reversed(parts)], dim=1)
    torch.testing.assert_close(back, z, atol=1e-4, rtol=1e-4)
    nats = timed.loss(x)
    assert nats.shape == ()
    assert bool(torch.isfinite(nats))


def test_the_other_library_squeezes_in_the_same_order():
    normflows = pytest.importorskip("normflows", reason="normflows is not installed")
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    assert torch.equal(normflows.flows.Squeeze().inverse(x)[0], Squeeze().encode(x)[0])


def test_the_other_library_is_timed():
    pytest.importorskip("normflows", reason="normflows is not installed")
    both = (TINY[0], Contender("glow (normflows)", MIXING, library="normflows"))
    rows = measure_times((1,), 2, contenders=both, quick=True)
    assert [row["row"] for row in rows] == ["paper", "glow (normflows)"] * len(QUANTITIES)
    assert rows[1]["library"].startswith("normflows ")
    assert rows[1]["mean_ms"] > 0.0
