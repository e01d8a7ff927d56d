"""Switches and fixtures of all tests.

Tests run in float64; the fixture `float32` is for those that smoke-test the default precision.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

from simspine_jax.assets import cache_folder, spine_model_path
from simspine_jax.errors import SimspineError

if TYPE_CHECKING:
    from simspine_jax.kinematics.model import SpineModel

# Through the environment, so that child processes (the command line, xdist's workers) share the cache and
# JAX need not be imported to set it.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("jax")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Shapes in signatures are checked at run time where the mathematics is. Two kinds of modules are left out:
# those at the border, which name a wrong argument themselves and whose tests pass wrong ones, and those whose
# dataclasses go through jax.grad, which fills their integers with float0.
CORE = ["geometry", "signal", "solvers.cholesky"]
CORE += [f"kinematics.{part}" for part in ("coordinates", "normal_equations", "rest", "starts")]
install_import_hook([f"simspine_jax.{part}" for part in CORE], "beartype.beartype")


# Linux gives a process 65,530 memory maps and each compiled program takes several; past that XLA crashes.
MANY_MAPS = 8_000


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs() -> Iterator[None]:
    """Drops compiled programs between modules once there are many; the cache on disk brings them back."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def float32() -> Iterator[None]:
    """JAX in its default precision during the test."""
    import jax

    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real trials beside the checkout; tests that need it are skipped where it is not."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real trials (../shared/data beside the checkout) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def arm_osim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model: a free trunk, an arm and a hand whose angle follows the elbow's by a coupler."""
    osim = pytest.importorskip("opensim")
    osim.Logger.setLevelString("Off")
    model = osim.Model()
    model.setName("arm")
    ends = {"trunk": (0, 0.4, 0.2), "humerus": (0, -0.3, 0), "radius": (0, -0.25, 0), "hand": (0, -0.1, 0)}
    joints = [("trunk", osim.FreeJoint), *((name, osim.PinJoint) for name in ("humerus", "radius", "hand"))]
    parent, place = model.getGround(), (0, 0, 0)
    for name, kind in joints:
        body = osim.Body(name, 1.0, osim.Vec3(0), osim.Inertia(1, 1, 1, 0, 0, 0))
        zero = osim.Vec3(0)
        model.addBody(body)
        model.addJoint(kind(f"{name}_joint", parent, osim.Vec3(*place), zero, body, zero, zero))
        parent, place = body, ends[name]
        for i, (x, z) in enumerate(((0.05, 0), (-0.03, 0.04), (0, -0.05))):
            model.addMarker(osim.Marker(f"{name}.{i}", body, osim.Vec3(x, 0.8 * place[1], z)))
    for name, coordinate in (("humerus", "shoulder"), ("radius", "elbow"), ("hand", "wrist")):
        model.updJointSet().get(f"{name}_joint").upd_coordinates(0).setName(coordinate)
    coupler = osim.CoordinateCouplerConstraint()
    coupler.setName("wrist_follows")
    names = osim.ArrayStr()
    names.append("elbow")
    coupler.setIndependentCoordinateNames(names)
    coupler.setDependentCoordinateName("wrist")
    coupler.setFunction(osim.LinearFunction(0.5, 0.1))
    model.addConstraint(coupler)
    model.finalizeConnections()
    path = tmp_path_factory.mktemp("arm") / "arm.osim"
    model.printToXML(str(path))
    return path


@pytest.fixture(scope="session")
def spine_osim() -> Path:
    """The 62-coordinate spine model, fetched once a machine."""
    try:
        return spine_model_path()
    except SimspineError as error:
        pytest.skip(f"the spine model can't be fetched: {error}")


@pytest.fixture(scope="session")
def paper_markers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's marker set as a file."""
    from simspine_jax.skeleton import write_paper_marker_set

    path = tmp_path_factory.mktemp("markers") / "paper_markers.xml"
    write_paper_marker_set(path)
    return path


@pytest.fixture(scope="session")
def spine_model(spine_osim: Path, paper_markers: Path) -> SpineModel:
    """The spine model with the paper's markers, in float64; converted once a machine."""
    from simspine_jax.kinematics.model import load_model

    return load_model(spine_osim, paper_markers)
