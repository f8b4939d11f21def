"""The pages of benchmarks are what their scripts write from the results beside them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
PAGES = (
    "against_author",
    "clipping",
    "colours",
    "compiled",
    "kinds",
    "lowrank",
    "precision",
    "race",
    "sigma_photographs",
    "supervised",
)


def script(name):
    if not (FOLDER / f"{name}.py").is_file():
        pytest.skip("the benchmarks are not here: a package without the repository")
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def changed(value):
    """The same results with the first floating-point number found moved by 10."""
    text = json.dumps(value)
    moved = []

    def move(number):
        moved.append(float(number))
        return float(number) + (10.0 if len(moved) == 1 else 0.0)

    found = json.loads(text, parse_float=move)
    assert moved
    return found


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_written_from_the_results(name):
    page = script(name).page
    results = json.loads((FOLDER / "results" / f"{name}.json").read_text())
    written = (FOLDER / "results" / f"{name}.md").read_text()
    assert page(results) == written
    assert page(changed(results)) != written
    assert "/tmp" not in written
