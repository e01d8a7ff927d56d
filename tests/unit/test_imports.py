"""Imports go down only, and the command's help waits for nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import simspine_jax as ssj

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "simspine_jax"

# A part may import parts of lower rank and itself. Parts that aren't listed fail the test: give them a place.
RANKS = {
    "interrupts": 0,
    "errors": 0,
    "arrays": 0,
    "schema": 0,
    "assets": 1,
    "io": 1,
    "skeleton": 2,
    "geometry": 3,
    "signal": 3,
    "solvers": 3,
    "datasets": 6,
    "annotations": 3,
    "clips": 5,
    "clip_trials": 6,
    "dataset_statistics": 7,
    "dataset_tables": 8,
    "dataset_export": 10,
    "picture_export": 11,
    "picture_statistics": 7,
    "pictures": 5,
    "tables": 1,
    "reference_values": 1,
    "statistics": 5,
    "validation": 6,
    "merging": 5,
    "kinematics": 4,
    "io.calibration": 4,  # these give what geometry, vocabulary and annotations define
    "io.keypoints": 4,
    "io.release": 5,
    "io.trials": 5,
    "io.layout": 4,
    "io.samples": 5,
    "io.video": 6,
    "dynamics": 5,
    "fitting": 5,
    "quality": 5,
    "metrics": 5,
    "layers": 1,
    "detection": 6,
    "lifting": 7,
    "capture": 6,
    "training": 8,
    "motions": 8,
    "pipeline": 9,
    "evaluation": 10,
    "viz": 10,
    "demo": 11,
    "cli_parsing": 1,
    "cli_dynamics": 11,
    "cli_simulation": 11,
    "cli_fit": 12,
    "cli_training": 11,
    "cli_detection": 11,
    "cli_benchmark": 12,
    "cli_mixing": 12,
    "cli_dataset_export": 12,
    "cli_dataset": 13,
    "cli": 14,
}
# What the pure core may import besides itself and the standard library.
CORE = ("geometry", "signal", "solvers", "kinematics", "dynamics", "metrics")
CORE_PACKAGES = {"jax", "numpy", "scipy", "mujoco", "jaxtyping"}
# Where the library may import the other packages, in a function (`kinematics.isolated` runs one as process).
CONVERTER_USERS = {"cli", "cli_dataset", "demo", "pipeline"}
HEAVY = ("jax", "mujoco", "opensim", "numpy", "scipy", "viser", "matplotlib", "tqdm")


def part_of(path: Path) -> str:
    words = path.relative_to(LIBRARY).with_suffix("").parts
    longer = ".".join(words[:2])
    return longer if longer in RANKS else words[0]


def part_named(name: str) -> str:
    words = name.split(".")[1:]
    longer = ".".join(words[:2])
    return longer if longer in RANKS else words[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a module imports, each with whether a function does it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in lazy
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module or "", id(node) in lazy
            if node.module == "simspine_jax":
                for alias in node.names:
                    yield f"simspine_jax.{alias.name}", id(node) in lazy


MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py")


def test_the_walk_sees_imports_in_functions_and_outside(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("import a.b\nfrom simspine_jax import c\ndef f():\n    from d import e\n")
    assert set(imports(path)) == {
        ("a.b", False), ("simspine_jax", False), ("simspine_jax.c", False), ("d", True),
    }  # fmt: skip
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_imports_go_down(path: Path) -> None:
    part = part_of(path)
    assert part in RANKS, f"{part} has no place in the order of imports"
    for name, _ in imports(path):
        words = name.split(".")
        if words[0] == "simspine_jax" and len(words) > 1 and words[1] in RANKS and part_named(name) != part:
            assert RANKS[part_named(name)] < RANKS[part], f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_the_library_needs_no_other_folder_and_no_opensim(path: Path) -> None:
    for name, lazy in imports(path):
        package = name.split(".")[0]
        assert package not in ("opensim", "benchmarks", "tests", "converters"), f"{path} imports {name}"
        if package in ("osim2mjcf", "torch2flax", "simspine_tfds"):
            assert lazy, f"{path} imports {name} outside a function"
            assert part_of(path) in CONVERTER_USERS


@pytest.mark.parametrize(
    "path", [p for p in MODULES if part_of(p) in CORE], ids=lambda p: str(p.relative_to(LIBRARY))
)
def test_the_core_needs_little(path: Path) -> None:
    for name, _ in imports(path):
        package = name.split(".")[0]
        known = package in CORE_PACKAGES or package in sys.stdlib_module_names or package == "simspine_jax"
        assert known, f"{path} imports {name}"


def test_opensim_stays_in_converters_benchmarks_and_tests() -> None:
    users = {
        path.relative_to(ROOT).parts[:2]
        for folder in ("simspine_jax", "converters", "tfds")
        for path in (ROOT / folder).rglob("*.py")
        if any(name.split(".")[0] == "opensim" for name, _ in imports(path))
    }
    assert users == {("converters", "osim2mjcf")}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["ik", "--help"], []])
def test_the_help_loads_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from simspine_jax.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print('loaded:', *(name for name in {HEAVY} if name in sys.modules))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    )
    assert child.stdout.splitlines()[-1] == "loaded:"


def test_names_of_the_package_exist_and_are_listed() -> None:
    assert set(ssj.__all__) <= set(dir(ssj))
    for name in ssj.__all__:
        assert getattr(ssj, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'solve'"):
        _ = ssj.solve
