"""The sidecar: every digit survives, and what doesn't fit together is refused by name."""

import dataclasses
import json
import math

import pytest

from simspine_jax.errors import FileFormatError
from simspine_jax.io.sidecar import (
    Affine,
    BodyDescription,
    CoordinateDescription,
    JointPosition,
    MarkerDescription,
    ModelDescription,
    PiecewisePolynomial,
    Sinusoid,
    Term,
    read_sidecar,
    write_sidecar,
)

ZERO = (0.0, 0.0, 0.0)
FOLLOWED = Affine(0.1, {"hip": 1 / 3}, {"curve": -2.0})
MODEL = ModelDescription(
    name="leg",
    mjcf="leg.xml",
    source="leg.osim",
    source_sha256="0" * 64,
    opensim_version="4.6",
    gravity=(0.0, -9.80665, 0.0),
    coordinates=(
        CoordinateDescription(
            "hip", "j", "rotational", "free", 0.1, -math.inf, 2.0, True, False, Affine(0, {"hip": 1})
        ),
        CoordinateDescription("knee", "k", "rotational", "coupled", 0.0, -1.0, 1.0, False, False, FOLLOWED),
    ),
    bodies=(
        BodyDescription("thigh", "ground", ZERO, (0.1, 0.2, 1 / 7), 1.0, ZERO, (*ZERO, *ZERO)),
        BodyDescription("shank", "thigh", ZERO, ZERO, 1.0, ZERO, (*ZERO, *ZERO), True),
    ),
    markers=(MarkerDescription("m", "shank", (1e-17, 2.0, 3.0)),),
    joint_positions=(
        JointPosition("hip", "thigh", "hinge", Affine(0, {"hip": 1})),
        JointPosition("slide", "shank", "slide", FOLLOWED, (1.0, 0.0, 0.0)),
    ),
    terms=(
        Term(
            "curve",
            Affine(0, {"hip": 2.0}),
            PiecewisePolynomial((0.0, 1.0), ((1.0,), (1.0, 2.0)), "SimmSpline"),
        ),
        Term("wave", Affine(0, {}, {"curve": 1.0}), None, Sinusoid(1.0, 2.0, 3.0, 4.0, "Sine")),
    ),
)


def test_round_trip_is_exact(tmp_path):
    write_sidecar(tmp_path / "leg.json", MODEL)
    assert read_sidecar(tmp_path / "leg.json") == MODEL


def put(*path, value):
    """Sets the entry at ``path`` of the document."""

    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def drop(name):
    return lambda document: document.pop(name)


BROKEN = {
    "lacks the field 'bodies'": drop("bodies"),
    'it lacks "format"': drop("format"),
    "has version 2; this program reads version 1": put("version", value=2),
    "unknown field 'colour'": put("colour", value=1),
    r"bodies\[0\].mass must be a number": put("bodies", 0, "mass", value="1"),
    r"coordinates\[0\].clamped must be true or false": put("coordinates", 0, "clamped", value=1),
    "body 'thigh' stands twice": put("bodies", 1, "name", value="thigh"),
    "hangs from 'pelvis'": put("bodies", 0, "parent", value="pelvis"),
    "an offset that is not a finite number": put("bodies", 0, "child_offset", value=[0, math.nan, 0]),
    "three numbers for each offset": put("bodies", 0, "child_offset", value=[0, 0]),
    "marker 'm' is on 'hand'": put("markers", 0, "body", value="hand"),
    "location of three finite numbers": put("markers", 0, "location", value=[0, 0, math.inf]),
    "gravity needs three finite numbers": put("gravity", value=[0, math.nan, 0]),
    "two coordinates have one name": put("coordinates", 1, "name", value="hip"),
    "has the role 'loose'": put("coordinates", 1, "role", value="loose"),
    "has the motion 'screw'": put("coordinates", 1, "motion", value="screw"),
    "minimum above its maximum": put("coordinates", 0, "minimum", value=3),
    "default or range that is not a number": put("coordinates", 0, "default", value=math.nan),
    "uses 'ankle', which is not a free": put("coordinates", 1, "value", "coefficients", value={"ankle": 1}),
    "term 'wave', which is not defined before it": put("terms", 0, "argument", "terms", value={"wave": 1}),
    "coefficient that is not a finite number": put("coordinates", 1, "value", "constant", value=math.nan),
    "term 'curve' stands twice": put("terms", 1, "name", value="curve"),
    "increasing breaks": put("terms", 0, "polynomial", "breaks", value=[1, 0]),
    "term 'curve' has a number that is not finite": put(
        "terms", 0, "polynomial", "coefficients", 1, value=[math.nan]
    ),
    "term 'wave' has a number that is not finite": put("terms", 1, "sinusoid", "phase", value=math.inf),
    "either a polynomial or a sinusoid": put("terms", 1, "sinusoid", value=None),
    "has the kind 'ball'": put("joint_positions", 0, "kind", value="ball"),
    "three finite numbers for its scale axis": put("joint_positions", 1, "scale_axis", value=[1, 0]),
    "two joint positions have one name": put("joint_positions", 1, "name", value="hip"),
}


@pytest.mark.parametrize(("message", "change"), BROKEN.items(), ids=BROKEN.keys())
def test_what_does_not_fit_is_refused_by_name(message, change, tmp_path):
    path = tmp_path / "leg.json"
    write_sidecar(path, MODEL)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match=message) as caught:
        read_sidecar(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "[" * 100_000], ids=["empty", "open", "list", "null", "deep"]
)
def test_other_files_are_refused(text, tmp_path):
    path = tmp_path / "leg.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"leg\.json"):
        read_sidecar(path)


def test_optional_fields_may_be_missing(tmp_path):
    path = tmp_path / "leg.json"
    write_sidecar(path, MODEL)
    document = json.loads(path.read_text())
    for name in ("geometry", "scalable", "notes"):
        del document[name]
    path.write_text(json.dumps(document))
    assert read_sidecar(path) == dataclasses.replace(MODEL)
