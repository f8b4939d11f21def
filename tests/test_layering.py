"""Imports go one way, from pixels to the command line, and importing has no side effects."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import flowmend

ROOT = Path(flowmend.__file__).parent

LAYERS = (
    ("errors",),
    ("pixels", "cosines", "tiles", "turns", "least_squares", "thin_root"),
    (
        "files",
        "flow",
        "gaussian",
        "stationary",
        "covariance",
        "provenance",
        "device",
        "chance",
        "linear_operator",
        "linearity",
        "convolution",
        "muon",
    ),
    ("coordinates",),
    ("lowrank_posterior", "lowrank_whitening"),
    ("lowrank",),
    (
        "prior",
        "fsgf",
        "growth",
        "operators",
        "decimation",
        "noise",
        "clipping",
        "objective",
        "kernels",
        "solution",
        "metrics",
        "checkpoint",
        "data",
        "originals",
        "recipes",
        "faces",
    ),
    ("continuous", "patches", "picture_sigma", "guidance"),
    (
        "latent",
        "whitened",
        "guided",
        "items",
        "baselines",
        "sigma",
        "task_table",
        "weights",
        "convert",
        "report",
    ),
    ("methods", "training", "hints", "matching_loss"),
    ("inference", "train", "flowmatching"),
    ("solver",),
    ("tasks", "noise_level"),
    ("restoration",),
    ("batch", "paper", "photographs"),
    ("album",),
    ("cli",),
    ("__main__",),
)
"""A part may import parts of earlier lines only; inside a package its modules are free."""
RANKS = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def modules(root):
    """Names of a package's modules relative to it, like ``flow.layers``, with their files."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name, source, known, is_package=False):
    """Names of the package's modules, relative to it, that a module's source imports.

    The package itself is the empty name. Imports inside functions count too.
    """
    found = set()
    home = name.split(".") if is_package and name else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for item in node.names:
                first, *rest = item.name.split(".")
                if first == "flowmend":
                    found.add(".".join(rest))
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                above = home[: len(home) - node.level + 1]
            elif (node.module or "").split(".")[0] == "flowmend":
                above = []
            else:
                continue
            inside = (node.module or "").split(".")
            inside = inside if node.level else inside[1:]
            base = ".".join([*above, *(part for part in inside if part)])
            for item in node.names:
                whole = f"{base}.{item.name}" if base else item.name
                found.add(whole if whole in known else base)
    return found - {name}


def part_of(module):
    return module.split(".")[0]


def complaints(graph):
    """What is wrong with imports: a mapping from each module to the modules it imports."""
    found = []
    for module, targets in graph.items():
        part = part_of(module)
        if not module:
            continue
        if part not in RANKS:
            found.append(f"'{module}' is missing from the table of layers")
            continue
        for target in sorted(targets):
            if not target:
                found.append(f"'{module}' imports the whole package")
            elif part_of(target) not in RANKS:
                found.append(f"'{module}' imports '{target}', which the table does not know")
            elif part_of(target) != part and RANKS[part_of(target)] >= RANKS[part]:
                found.append(f"'{module}' imports '{target}', which is not below it")
    return found + [f"a cycle of imports: {' > '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph):
    """Chains of imports that come back to where they began."""
    found, done = [], set()

    def visit(module, trail):
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
            return
        if module in done:
            return
        for target in sorted(graph.get(module, ())):
            visit(target, [*trail, module])
        done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


@functools.cache
def real_graph():
    known = modules(ROOT)
    return {
        name: imported(name, path.read_text(), known, path.name == "__init__.py")
        for name, path in known.items()
    }


def test_imports_go_one_way():
    assert complaints(real_graph()) == []


def test_the_table_has_no_part_that_does_not_exist():
    assert set(RANKS) == {part_of(name) for name in modules(ROOT) if name}


def test_the_parser_sees_the_imports_that_are_there():
    graph = real_graph()
    assert {"errors", "prior", "objective", "operators"} <= graph["latent"]
    assert "baselines" in graph["solver"]
    assert "pixels" in graph["flow.layers"]
    assert "flow.bijection" in graph["flow.layers"]
    assert "cli.options" in graph["cli.restore"]
    assert "cli.main" in graph["cli"]
    assert {"tasks", "weights", "prior"} <= graph[""]


def test_the_path_of_the_data_is_the_order_of_the_layers():
    path = ["pixels", "flow", "prior", "latent", "methods", "tasks", "batch", "cli"]
    assert [RANKS[part] for part in path] == sorted({RANKS[part] for part in path})
    assert RANKS["objective"] < RANKS["latent"]
    assert RANKS["operators"] < RANKS["latent"]
    assert RANKS["solution"] < RANKS["report"] < RANKS["batch"]


@pytest.mark.parametrize(
    "name", ["operators", "noise", "objective", "kernels", "solution", "pixels"]
)
def test_what_knows_no_flow(name):
    targets = {part_of(target) for target in real_graph()[name]}
    assert "prior" not in targets
    assert "flow" not in targets or name == "objective"


def test_the_objective_takes_the_normal_density_from_the_flow_and_nothing_else():
    names = {
        item.name
        for node in ast.walk(ast.parse((ROOT / "objective.py").read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flow")
        for item in node.names
    }
    assert names == {"standard_normal_log_prob"}


FABRICATED = {
    "upward": ("pixels", "from .prior import Prior", "is not below it"),
    "upward, absolute": ("files", "from flowmend.items import Item", "is not below it"),
    "upward, plain": ("operators", "import flowmend.methods", "is not below it"),
    "upward, inside a function": (
        "metrics",
        "def f():\n    from .report import panel",
        "is not below it",
    ),
    "upward, as a module": ("latent", "from . import tasks", "is not below it"),
    "upward, from a package": ("flow.layers", "from ..prior import Prior", "is not below it"),
    "sideways": ("operators", "from .objective import Objective", "is not below it"),
    "the package": ("operators", "import flowmend", "the whole package"),
    "the package's names": ("operators", "from . import solve", "the whole package"),
    "unknown part": ("secret", "from .errors import FlowmendError", "missing from the table"),
    "import of an unknown part": ("cli.main", "from .. import secret", "does not know"),
    "cycle": ("flow.bijection", "from .layers import Squeeze", "cycle"),
}


@pytest.mark.parametrize(("name", "source", "phrase"), FABRICATED.values(), ids=FABRICATED)
def test_the_check_notices(name, source, phrase):
    known = {**modules(ROOT), "secret": ROOT / "secret.py"}
    graph = dict(real_graph())
    graph[name] = graph.get(name, set()) | imported(name, source, known)
    found = complaints(graph)
    assert any(phrase in complaint for complaint in found), found


SIDE_EFFECTS = """
import sys
import torch
torch.manual_seed(7)
def state():
    return (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark, torch.get_rng_state().tolist(), sys.getrecursionlimit(),
    )
before, loaded = state(), set(sys.modules)
import flowmend
assert flowmend.__version__
for name in flowmend.__all__:
    getattr(flowmend, name)
assert state() == before, "importing flowmend changes torch's state"
new = {name.split(".")[0] for name in set(sys.modules) - loaded}
heavy = new & {"skimage", "scipy", "bm3d", "matplotlib", "typer", "click", "rich", "deepinv"}
assert not heavy, f"importing flowmend imports {heavy}"
print("clean")
"""


def test_importing_has_no_side_effects():
    process = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "clean\n"
    assert process.stderr == ""
