"""What the figures say of the paper's claims: holds, holds in part, does not hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from .ablation import FAMILIES
from .plan import ENTRIES, TASKS
from .tables import Cell, curves, paired

__all__ = ["Claim", "verdicts"]

HOLDS, PARTLY, FAILS, OPEN = "holds", "holds in part", "does not hold", "not measured"
TIE = 0.05
"""Smallest difference in PSNR, in dB, that counts as one even if it is significant."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what became of it.

    Args:
        where: Where the paper makes it.
        text: The claim, in our words.
        verdict: What the figures say.
        because: The figures.
    """

    where: str
    text: str
    verdict: str
    because: str


def _won(one: Cell, other: Cell) -> int:
    """1 where one is better by more than chance and a tie, -1 where it is worse, else 0."""
    test = paired(one, other)
    if test is None or abs(test[0]) < TIE or test[2] >= 0.05:
        return 0
    return 1 if test[0] > 0 else -1


def _verdict(wins: Sequence[int]) -> str:
    if not wins:
        return OPEN
    if all(win > 0 for win in wins):
        return HOLDS
    return PARTLY if any(win > 0 for win in wins) else FAILS


def _difference(one: Cell, other: Cell) -> str:
    test = paired(one, other)
    if test is None:
        return f"{one.task} no difference"
    return f"{one.task} {test[0]:+.2f} ± {test[1]:.2f} dB"


def _against(
    where: str, text: str, table: dict[tuple[str, str], Cell], rival: str, tasks: Sequence[str]
) -> Claim:
    pairs = [
        (table["eq7", task], table[rival, task])
        for task in tasks
        if ("eq7", task) in table and (rival, task) in table
    ]
    because = f"Eq. 7 against {ENTRIES[rival].title}: "
    because += "; ".join(_difference(*pair) for pair in pairs) + "."
    return Claim(where, text, _verdict([_won(*pair) for pair in pairs]), because)


def _ablated(where: str, text: str, ablation: dict[tuple[str, str], Cell], change: str) -> Claim:
    pairs = []
    for task in TASKS:
        best = [
            max(
                (ablation[name, task] for name in FAMILIES[family] if (name, task) in ablation),
                key=lambda cell: cell.mean("psnr") or 0.0,
                default=None,
            )
            for family in ("Eq. 7", change)
        ]
        if None not in best:
            pairs.append(tuple(best))
    because = f"Eq. 7 against itself with the change '{change}', each at its best weight: "
    because += "; ".join(_difference(*pair) for pair in pairs) + "."
    return Claim(where, text, _verdict([_won(*pair) for pair in pairs]), because)


RIVALS = {
    "glow": "the inverse computed in every decode",
    "glow, inverse cached": "the inverse kept",
    "glow (normflows)": "Glow of normflows",
}


def _speed(rows: Sequence[dict]) -> list[Claim]:
    times = {
        (row["row"], row["batch"]): row["mean_ms"]
        for row in rows
        if row.get("quantity") == "generation"
    }
    wins, texts = [], []
    for name, label in RIVALS.items():
        ratios = []
        for (row, batch), ours in sorted(times.items(), key=lambda item: item[0][1]):
            theirs = times.get((name, batch)) if row == "paper" else None
            if theirs is not None:
                ratios.append(f"{theirs / ours:.2f} at batch {batch}")
                wins.append(1 if theirs > 1.02 * ours else -1)
        if ratios:
            texts.append(f"{label}: {', '.join(ratios)}")
    return [
        Claim(
            "abstract, §3.2, Table 2",
            "Generation is faster with swap and 1x1 coupling functions than with invertible 1x1 "
            "convolutions (printed: 2.43 times).",
            _verdict(wins),
            "Time of the rival over time of the paper's flow: " + "; ".join(texts) + ".",
        )
    ]


def verdicts(
    table1: Sequence[Cell], ablation: Sequence[Cell], table2: Sequence[dict]
) -> list[Claim]:
    """Judges each claim by the cells that decide it."""
    table = {(cell.entry, cell.task): cell for cell in table1}
    changes = {(cell.variant, cell.task): cell for cell in ablation}
    claims = [
        _against(
            "abstract, §6",
            "One pre-trained flow serves every task without training for it.",
            table,
            "measurement",
            TASKS,
        ),
        _against("§5, Table 1", "Eq. 7 is better than CSGM on every task.", table, "csgm", TASKS),
        _against(
            "§5, Table 1",
            "Eq. 7 is better than GlowIP on every task (the paper itself: not in colourisation).",
            table,
            "glowip",
            TASKS,
        ),
        _against("§5.1", "Eq. 7 denoises better than MAP.", table, "map", ("denoise",)),
        _against("§5.1", "Eq. 7 denoises better than BM3D.", table, "bm3d", ("denoise",)),
        _ablated(
            "abstract, §3.1",
            "The likelihood of the image regularises better than the norm of the latent: the "
            "Jacobian term helps.",
            changes,
            "without the Jacobian",
        ),
        _ablated("Eq. 7", "The 1-norm is the better data term.", changes, "2-norm"),
        _against(
            "not in the paper",
            "Eq. 7 is better than a Gaussian prior (LMMSE, closed form) on every task.",
            table,
            "lmmse",
            TASKS,
        ),
        _against(
            "not in the paper",
            "Eq. 7 is better than the pseudo-inverse, which knows no images, in deblurring.",
            table,
            "pinv",
            ("deblur",),
        ),
    ]
    stops = []
    for task in TASKS:
        cell = table.get(("eq7", task))
        path = curves(cell) if cell is not None else {}
        if path:
            best = max(path, key=path.get)
            gap = path[best] - path[cell.steps]
            stops.append(
                (gap, f"{task} best {path[best]:.2f} dB at step {best}, {gap:.2f} above the last")
            )
    if stops:
        good = [1 if gap <= TIE else -1 for gap, _ in stops]
        because = "; ".join(text for _, text in stops) + "."
        text = "The last iterate is the one to return: stopping earlier gains nothing."
        claims.append(Claim("§5", text, _verdict(good), because))
    return claims + (_speed(table2) if table2 else [])
