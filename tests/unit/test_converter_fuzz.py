"""Damaged OpenSim and converted models: each loads, or is refused in one sentence."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

osim = pytest.importorskip("opensim")

from osim2mjcf import convert  # noqa: E402

from simspine_jax import errors  # noqa: E402
from simspine_jax.io.sidecar import read_sidecar  # noqa: E402
from simspine_jax.kinematics.isolated import convert_isolated  # noqa: E402
from simspine_jax.kinematics.model import load_model  # noqa: E402


@pytest.fixture(scope="module")
def fuzzing():
    """`benchmarks` is no package that tests can import, so its file is loaded by its path."""
    path = Path(__file__).parents[2] / "benchmarks" / "fuzzing.py"
    spec = importlib.util.spec_from_file_location("fuzzing", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["fuzzing"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzzing"]


@pytest.fixture(scope="module")
def real_osim(spine_osim, tmp_path_factory):
    """The simple model without its muscles, which the converter doesn't read."""
    osim.Logger.setLevelString("Off")
    model = osim.Model(str(spine_osim.parent / "Model_Pose2Sim_simple.osim"))
    model.updForceSet().clearAndDestroy()
    model.finalizeConnections()
    path = tmp_path_factory.mktemp("real") / "simple.osim"
    model.printToXML(str(path))
    return path


def check(counts, n, fuzzing):
    assert counts.mutants == n
    assert counts.escaped == []
    assert counts.hung == []
    # The mutants reached both ends.
    assert counts.changed > 0.9 * n
    assert counts.loaded > 0.1 * n
    assert counts.refused > 0.1 * n
    # OpenSim may crash; isolation is for that.
    assert len(counts.crashed) < 0.02 * n


def check_crashes(counts, path, tmp_path, fuzzing):
    """Isolated conversion makes an error of each crash."""
    for seed in counts.crashed[:1]:
        broken = tmp_path / "broken.osim"
        broken.write_bytes(fuzzing.mutant(path.read_bytes(), seed))
        with pytest.raises(errors.SimspineError):
            convert_isolated(broken, tmp_path / "broken.xml")


def test_mutants_of_a_small_model(arm_osim, fuzzing, tmp_path):
    counts = fuzzing.fuzz_converter(400, 0, arm_osim)
    check(counts, 400, fuzzing)
    check_crashes(counts, arm_osim, tmp_path, fuzzing)


def test_mutants_of_a_real_model(real_osim, fuzzing, tmp_path):
    counts = fuzzing.fuzz_converter(150, 10_000, real_osim)
    check(counts, 150, fuzzing)
    check_crashes(counts, real_osim, tmp_path, fuzzing)


def test_a_crash_of_opensim_is_an_error(real_osim, tmp_path):
    """OpenSim 4.6 dies of joints whose list of coordinates has another name; the caller lives on."""
    broken = tmp_path / "broken.osim"
    broken.write_text(real_osim.read_text().replace("coordinates>", "scale_factors>"))
    with pytest.raises(errors.FileFormatError, match=r"OpenSim crashed on .*broken\.osim \(SIGSEGV\)"):
        convert_isolated(broken, tmp_path / "out" / "broken.xml")
    assert list((tmp_path / "out").iterdir()) == []


def test_mutants_of_a_converted_model(arm_osim, fuzzing, tmp_path):
    counts = fuzzing.fuzz_sidecar(400, 0, convert(arm_osim, tmp_path))
    check(counts, 400, fuzzing)
    assert counts.crashed == []


def tag(name, value):
    """Puts ``value`` into the first element called ``name``."""
    return lambda text: re.sub(rf"(?<=<{name}>)[^<]*", value, text, count=1)


def rename(old, new):
    return lambda text: text.replace(f'name="{old}"', f'name="{new}"', 1)


REFUSED = {
    "mass is no number": tag("mass", "nan"),
    "mass is negative": tag("mass", "-1"),
    "mass is endless": tag("mass", "inf"),
    "mass is enormous": tag("mass", "1e308"),
    "mass centre is no number": tag("mass_center", "nan 0 0"),
    "inertia is no number": tag("inertia", "nan nan nan 0 0 0"),
    "frame is no number": tag("translation", "nan 0 0"),
    "frame is far away": tag("translation", "1e300 0 0"),
    "turn is no number": tag("orientation", "0 inf 0"),
    "marker is no number": tag("location", "nan 0 0"),
    "name with a slash": rename("trunk.0", "a/b"),
    "body without a name": rename("hand", ""),
    "two bodies of one name": rename("hand", "radius"),
    "two coordinates of one name": rename("elbow", "shoulder"),
    "no socket": lambda text: re.sub(r"<socket_parent>[^<]*</socket_parent>", "", text, count=1),
    "frame on nothing": lambda text: text.replace(
        '<Body name="hand">',
        '<Body name="hand"><components><PhysicalOffsetFrame name="loose" /></components>',
    ),
    "name that is not UTF-8": rename("trunk.0", "\udce8trunk"),
    "socket to nowhere": tag("socket_parent", "nowhere"),
    "socket to itself": tag("socket_parent", "/jointset/trunk_joint/ground_offset"),
    "body called ground": lambda text: text.replace('"hand"', '"ground"').replace("/bodyset/hand", "/ground"),
    "body called world": lambda text: text.replace('"hand"', '"world"').replace(
        "bodyset/hand", "bodyset/world"
    ),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_what_no_model_can_have_is_refused(change, arm_osim, tmp_path):
    text = arm_osim.read_text()
    path = tmp_path / "broken.osim"
    changed = change(text)
    assert changed != text
    path.write_bytes(changed.encode(errors="surrogateescape"))
    with pytest.raises(errors.SimspineError, match=r"broken\.osim") as caught:
        convert_isolated(path, tmp_path / "out" / "broken.xml")
    assert str(caught.value).isprintable()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_range_is_refused_only_if_it_is_no_number(arm_osim, tmp_path):
    text = arm_osim.read_text().replace(
        '<Coordinate name="elbow">', '<Coordinate name="elbow"><range>-inf inf</range>'
    )
    path = tmp_path / "wide.osim"
    path.write_text(text)
    description = read_sidecar(convert(path, tmp_path).with_suffix(".json"))
    (elbow,) = (c for c in description.coordinates if c.name == "elbow")
    assert elbow.maximum == float("inf")
    path.write_text(text.replace("-inf inf", "nan nan"))
    with pytest.raises(errors.UnsupportedModelError, match="range of elbow"):
        convert(path, tmp_path)


def test_massless_bodies_are_adjusted_in_the_mjcf_only(arm_osim, tmp_path):
    path = tmp_path / "light.osim"
    path.write_text(tag("mass", "0")(arm_osim.read_text()))
    description = read_sidecar(convert(path, tmp_path).with_suffix(".json"))
    assert description.bodies[0].mass == 0.0
    assert description.bodies[0].mjcf_inertia_adjusted
    assert not description.bodies[1].mjcf_inertia_adjusted


@pytest.mark.parametrize("attribute", ["pos", "quat", "axis"])
def test_an_mjcf_with_a_number_that_is_none_is_refused(attribute, arm_osim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log there
    converted = convert(arm_osim, tmp_path / "out")
    start, name, end = converted.read_text().rpartition(f' {attribute}="')
    rest = end.partition(" ")[2]
    converted.write_text(f"{start}{name}nan {rest}")
    with pytest.raises(errors.FileFormatError, match=r"arm\.xml"):
        load_model(converted)
