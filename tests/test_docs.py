"""What the documentation shows works as printed."""

import json
import re
from pathlib import Path

import pytest

import flowmend as fm
from flowmend.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), {})


def test_some_page_has_a_python_example():
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_readme_names_every_task_and_method():
    text = (ROOT / "README.md").read_text()
    for name in [*fm.TASKS, *fm.METHODS]:
        assert f"`{name}`" in text


def test_demo_writes_its_pictures_and_table(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--steps", "2", "--out", str(tmp_path / "demo")])
    assert stop.value.code == 0
    assert (tmp_path / "demo" / "report.png").is_file()
    assert (tmp_path / "demo" / "denoise" / "collins.png").is_file()
    printed = capsys.readouterr().out
    assert "one prior (faces32-continuous) for all tasks" in printed
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    steps = {entry["task"]: entry["steps"] for entry in results["tasks"]}
    assert steps["deblur"] == 2
    assert "colorize" in printed
