"""Estimates from losses that can be worked out by hand; tables and JSON of them."""

import dataclasses
import json
import math

import numpy as np
import pytest
from rich.console import Console

from megacontext_vllm.eval.gists.layouts import GistLayout
from megacontext_vllm.eval.gists.measure import Measured, Way
from megacontext_vllm.eval.gists.report import GistReport, tables
from megacontext_vllm.eval.gists.showing import Positions
from megacontext_vllm.eval.gists.summary import ALL, difference, recovered_fraction

HALF, POISON = Way("half"), Way("poison", Positions.SPAN)
FULL = np.array([2.0, 3.0, 2.5, 3.5])
DROPPED = FULL + np.array([0.4, 0.2, 0.1, 0.3])
MEASURED = Measured(
    layout=GistLayout("hard", 1, 28, 128),
    sources=("a", "b", "a", "b"),
    documents=("a/0", "b/0", "a/0", "b/1"),
    full=FULL,
    dropped=DROPPED,
    shown={HALF: (FULL + DROPPED) / 2, POISON: DROPPED + np.array([6.0, 5.0, 7.0, 6.0])},
)
REPORT = GistReport.of("model", 0, [MEASURED])


def test_recovered_fraction_is_of_the_means() -> None:
    """Gains 0.2 and 0, gaps 0.4 and 0.1: (0.2 + 0) / (0.4 + 0.1), not the mean of 1/2 and 0."""
    found = recovered_fraction(np.array([2.2, 3.1]), dropped=np.array([2.4, 3.1]), full=np.array([2.0, 3.0]))
    assert found.value == pytest.approx(0.4)
    assert found.low == pytest.approx(0.0) and found.high == pytest.approx(0.5)


def test_no_gap() -> None:
    assert math.isnan(recovered_fraction(FULL, FULL, FULL).value)


def test_a_difference_is_paired() -> None:
    found = difference(FULL + 0.25, FULL)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_cells_by_hand() -> None:
    half = REPORT.cell("hard", HALF)
    assert half is not None and half.delta is not None and half.recovered is not None
    assert half.delta.value == pytest.approx(0.125)
    assert (half.recovered.value, half.recovered.low, half.recovered.high) == pytest.approx((0.5, 0.5, 0.5))
    assert half.harm.value == pytest.approx(-0.125) and not half.harmful
    assert half.windows == 4 and half.documents == 3
    poison = REPORT.cell("hard", POISON)
    assert poison is not None and poison.recovered is not None and poison.harmful
    assert poison.recovered.value == pytest.approx(-24.0)


def test_groups_are_sources() -> None:
    cell = REPORT.cell("hard", HALF, "b")
    assert cell is not None and (cell.windows, cell.documents) == (2, 2)
    assert cell.harm.value == pytest.approx(-0.125) and cell.harm.low == pytest.approx(-0.15)
    assert {cell.group for cell in REPORT.cells} == {ALL, "a", "b"}
    assert REPORT.cell("hard", HALF, "c") is None


def test_json_holds_everything_and_no_nan() -> None:
    one = dataclasses.replace(
        MEASURED,
        full=None,
        sources=("a",),
        documents=("a/0",),
        dropped=DROPPED[:1],
        shown={HALF: FULL[:1]},
        layout=GistLayout("single", 1, 1, 32, full=False),
    )
    data = GistReport.of("model", 3, [MEASURED, one]).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    hard, single = data["layouts"]
    assert hard["full"] == FULL.tolist() and hard["gists"] == 28 and single["full"] is None
    assert hard["shown"][1] == {"maker": "poison", "positions": "span", "losses": MEASURED.shown[POISON].tolist()}
    cell = next(cell for cell in data["cells"] if cell["layout"] == "single")
    assert cell["maker"] == "half" and cell["group"] == "all" and cell["recovered"] is None
    assert cell["harm"]["low"] is None and cell["harmful"] is False


def test_tables() -> None:
    rest = dataclasses.replace(MEASURED, full=None, layout=GistLayout("64 × LOD1", 1, 64, 32, full=False))
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in tables(GistReport.of("model", 0, [MEASURED, rest])):
        console.print(table)
    text = console.export_text()
    for expected in (
        "2.750 → 3.000",
        "+0.50 [+0.50, +0.50]",
        "ΔNLL +0.125",
        "poison (positions: span)",
        "N = 4",
        "64 × LOD1",
        "+6.000 [",
        "by source",
        "N = 2",
    ):
        assert expected in text, (expected, text)
