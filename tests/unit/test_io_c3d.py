import importlib.util
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simspine_jax.errors import FileFormatError, MissingDependencyError, SimspineError
from simspine_jax.io import MarkerTrajectory, read_c3d, read_markers, write_c3d, zup_to_yup
from simspine_jax.io.c3d_layout import DEC, INTEL, MIPS

# C3D holds float32: half a unit in the last place at 2 m.
FLOAT32_M = 1.2e-7


def dec_bytes(value: float) -> bytes:
    """A VAX float, by its definition: 0.1f · 2^(e - 128), halves swapped."""
    (bits,) = struct.unpack("<I", struct.pack("<f", 4.0 * value))
    return struct.pack("<HH", bits >> 16, bits & 0xFFFF)


class Encoder:
    """Numbers as one of the three processors of the C3D user guide writes them."""

    def __init__(self, processor: int):
        self.processor = processor
        self.order = ">" if processor == MIPS else "<"

    def integers(self, *values: int) -> bytes:
        return b"".join(struct.pack(f"{self.order}H", value % 65536) for value in values)

    def floats(self, *values: float) -> bytes:
        if self.processor == DEC:
            return b"".join(map(dec_bytes, values))
        return struct.pack(f"{self.order}{len(values)}f", *values)

    def parameter(self, name: str, value: Any) -> bytes:
        """One record of group 1."""
        if isinstance(value, list):
            width = max(map(len, value), default=0)
            content = bytes([255, 2, width, len(value)]) + "".join(v.ljust(width) for v in value).encode()
        elif isinstance(value, str):
            content = bytes([255, 1, len(value)]) + value.encode()
        elif isinstance(value, float):
            content = bytes([4, 0]) + self.floats(value)
        else:
            content = bytes([2, 1, len(value)]) + self.integers(*value)
        return self.record(name, 1, content + b"\0")

    def record(self, name: str, group: int, content: bytes) -> bytes:
        head = bytes([len(name), group % 256]) + name.encode()
        return head + self.integers(2 + len(content)) + content


def build_c3d(
    points: np.ndarray,
    *,
    processor: int = INTEL,
    scale: float = -1.0,
    parameters: Mapping[str, Any] | None = None,
    group: str = "POINT",
    frames: tuple[int, int] | None = None,
    n_analogue: int = 3,
    rate: float = 50.0,
) -> bytes:
    """A C3D file by hand: points [T, K, 4] in file units, the fourth the residual word."""
    encode = Encoder(processor)
    settings = {"LABELS": [f"M{k}" for k in range(points.shape[1])], "UNITS": ["mm"]} | dict(parameters or {})
    records = b"".join(encode.parameter(name, value) for name, value in settings.items())
    body = bytes([1, 0x50, 0, processor]) + records + encode.record(group, -1, b"\0") + b"\0\0"
    body = body.ljust(-(-len(body) // 512) * 512, b"\0")
    first, last = frames or (1, len(points))
    header = bytes([2, 0x50]) + encode.integers(points.shape[1], n_analogue, first, last, 0)
    header += encode.floats(scale) + encode.integers(2 + len(body) // 512, 1) + encode.floats(rate)
    data = b""
    for frame in points:
        if scale < 0:
            data += encode.floats(*frame.ravel(), *[7.0] * n_analogue)
        else:
            whole = frame * [1 / scale, 1 / scale, 1 / scale, 1]
            data += encode.integers(*np.rint(whole).astype(int).ravel().tolist(), *[7] * n_analogue)
    return header.ljust(512, b"\0") + body + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "walk.c3d"


@pytest.fixture
def points() -> np.ndarray:
    """Four frames of three markers in mm, one of them missing in one frame."""
    points = np.zeros((4, 3, 4))
    points[..., :3] = np.random.default_rng(0).integers(-20_000, 20_000, size=(4, 3, 3)) / 10
    points[1, 2] = [0.0, 0.0, 0.0, -1.0]
    return points


def clip(**changes: Any) -> MarkerTrajectory:
    positions = np.random.default_rng(1).uniform(-2, 2, size=(5, 2, 3))
    positions[2, 1] = np.nan
    values = {
        "names": ("C7", "Left heel"),
        "times": np.arange(3, 8) / 50,
        "positions": positions,
        "rate": 50.0,
    }
    return MarkerTrajectory(**(values | changes))


@pytest.mark.parametrize("processor", [INTEL, DEC, MIPS])
@pytest.mark.parametrize("scale", [-1.0, 0.1])
def test_reads_all_number_formats(path: Path, points: np.ndarray, processor: int, scale: float) -> None:
    path.write_bytes(build_c3d(points, processor=processor, scale=scale, frames=(11, 14)))
    back = read_c3d(path)
    assert back.names == ("M0", "M1", "M2")
    assert back.rate == 50.0
    np.testing.assert_allclose(back.times, np.arange(10, 14) / 50, rtol=1e-15)
    expected = np.where(points[..., 3:] < 0, np.nan, points[..., :3] / 1000)
    np.testing.assert_allclose(back.positions, expected, rtol=0, atol=FLOAT32_M)
    assert (~back.present).sum() == 1


# ezc3d does not read MIPS files.
@pytest.mark.parametrize("processor", [INTEL, DEC])
@pytest.mark.parametrize("scale", [-1.0, 0.1])
def test_agrees_with_ezc3d(path: Path, points: np.ndarray, processor: int, scale: float) -> None:
    ezc3d = pytest.importorskip("ezc3d")
    parameters = {"USED": (3,), "FRAMES": (4,), "SCALE": scale, "RATE": 50.0, "DATA_START": (3,)}
    path.write_bytes(
        build_c3d(
            points, processor=processor, scale=scale, parameters=parameters, frames=(11, 14), n_analogue=0
        )
    )
    theirs, back = ezc3d.c3d(str(path)), read_c3d(path)
    positions = theirs["data"]["points"][:3].transpose(2, 1, 0) / 1000
    np.testing.assert_allclose(back.positions, positions, rtol=0, atol=FLOAT32_M)
    assert (theirs["data"]["meta_points"]["residuals"][0].T < 0).tolist() == (~back.present).tolist()
    assert theirs["header"]["points"]["first_frame"] == round(back.times[0] * back.rate)


@pytest.mark.parametrize(("units", "metres"), [("m", 1.0), ("cm", 0.01), ("mm", 0.001), ("MM  ", 0.001)])
def test_units_become_metres(path: Path, points: np.ndarray, units: str, metres: float) -> None:
    points = points / 10  # so that metres are believable
    path.write_bytes(build_c3d(points, parameters={"UNITS": [units]}))
    np.testing.assert_allclose(read_c3d(path).positions[0], points[0, :, :3] * metres, rtol=1e-6)


@pytest.mark.parametrize(
    ("up", "y_up", "turned"),
    [
        (None, None, False),
        ("+Y", None, False),
        ("+Z", None, True),
        (" +z ", None, True),
        ("+Z", True, False),
        ("+Y", False, True),
        ("-X", False, True),
    ],
)
def test_axes_follow_the_screen_or_the_caller(
    path: Path, points: np.ndarray, up: str | None, y_up: bool | None, turned: bool
) -> None:
    path.write_bytes(build_c3d(points))
    plain = read_c3d(path)
    parameters = {} if up is None else {"X_SCREEN": "+X", "Y_SCREEN": up}
    path.write_bytes(build_c3d(points, parameters=parameters))
    expected = zup_to_yup(plain) if turned else plain
    np.testing.assert_array_equal(read_c3d(path, y_up=y_up).positions, expected.positions)


def test_outputs_of_models_are_no_markers(path: Path, points: np.ndarray) -> None:
    points[:, 1, :3] = 1e6  # an angle, a force, whatever: not millimetres
    path.write_bytes(build_c3d(points, parameters={"ANGLES": ["M1  "], "SCALARS": "other"}))
    assert read_c3d(path).names == ("M0", "M2")


def test_labels_go_on_in_numbered_parameters(path: Path) -> None:
    points = np.ones((1, 300, 4))
    names = [f"M{k}" for k in range(300)]
    labels = {"LABELS": names[:255], "LABELS2": names[255:]}
    path.write_bytes(build_c3d(points, parameters=labels))
    assert read_c3d(path).names == tuple(names)


@pytest.mark.parametrize(
    "parameters",
    [
        {"LONG_FRAMES": 65540.0},
        {"FRAMES": 65540.0},
        {"FRAMES": (65535,)},
        {"LONG_FRAMES": 65540.0, "FRAMES": (65535,)},
    ],
)
def test_long_recordings_count_frames_in_parameters(path: Path, parameters: dict) -> None:
    points = np.ones((65540, 1, 4))
    points[:, 0, 0] = np.arange(65540) / 100
    raw = build_c3d(points[:1], parameters=parameters, frames=(1, 65535), n_analogue=0)
    path.write_bytes(raw[:-16] + points.astype("<f4").tobytes())
    back = read_c3d(path)
    assert back.n_frames == (65540 if "LONG_FRAMES" in parameters else int(*np.ravel(parameters["FRAMES"])))
    assert back.positions[-1, 0, 0] == pytest.approx((back.n_frames - 1) / 1e5)


def test_the_trial_group_counts_frames_too(path: Path) -> None:
    encode = Encoder(INTEL)
    trial = b"".join(
        encode.record(name, 2, bytes([2, 1, 2]) + encode.integers(*words) + b"\0")
        for name, words in (
            ("ACTUAL_START_FIELD", (70_000 - 65536, 1)),
            ("ACTUAL_END_FIELD", (70_002 - 65536, 1)),
        )
    )
    raw = build_c3d(np.ones((3, 1, 4)), frames=(65535, 65535))
    end = raw.index(b"\x05\xffPOINT")
    record = trial + encode.record("TRIAL", -2, b"\0")
    path.write_bytes(raw[:end] + record + raw[end : 1024 - len(record)] + raw[1024:])
    np.testing.assert_allclose(read_c3d(path).times, np.arange(69_999, 70_002) / 50)


def patched(raw: bytes, at: int, new: bytes) -> bytes:
    return raw[:at] + new + raw[at + len(new) :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: b"x", "no C3D header"),
        (lambda raw: b"", "no C3D header"),
        (lambda raw: patched(raw, 1, b"x"), "no C3D header"),
        (lambda raw: patched(raw, 0, b"\x00"), "no C3D parameters"),
        (lambda raw: patched(raw, 0, b"\xff"), "no C3D parameters"),
        (lambda raw: patched(raw, 515, b"\x00"), "processor type is 0"),
        (lambda raw: raw[:-1], "there are"),
        (lambda raw: patched(raw, 2, b"\xff\xff"), "65535 points"),
        (lambda raw: patched(raw, 2, b"\x00\x00"), "0 points"),
        (lambda raw: patched(raw, 8, b"\xfe\xff"), "65534 frames"),
        (lambda raw: patched(raw, 8, b"\xff\xff"), "unknown number"),
        (lambda raw: patched(raw, 6, b"\x09\x00"), "-4 frames"),
        (lambda raw: patched(raw, 12, b"\x00\x00\x00\x00"), "scale"),
        (lambda raw: patched(raw, 20, b"\x00\x00\x00\x00"), "rate is 0 Hz"),
        (lambda raw: patched(raw, 20, b"\x00\x00\x80\xff"), "rate is -inf Hz"),
        (lambda raw: raw.replace(b"LABELS", b"LABELZ"), "0 labels for 3 points"),
        (lambda raw: raw.replace(b"M1", b"M0"), "'M0' is labelled twice"),
        (lambda raw: raw.replace(b"M1", b"  "), "'' is no marker label"),
        (lambda raw: raw.replace(b"\x02mm", b"\x02xx").replace(b"mm", b"xx"), "'xx'; valid is one of m"),
        (lambda raw: raw.replace(b"UNITS", b"UNITZ"), "POINT:UNITS is ''"),
        (lambda raw: patched(raw, 516 + 10, b"\x09"), "a parameter has the type 9"),
        (lambda raw: patched(raw, 516 + 8, b"\xff\x7f"), "its parameters are cut off"),
        (lambda raw: patched(raw, 516 + 11, b"\x07" + b"\xff" * 7), "its parameters are cut off"),
        (lambda raw: patched(raw, 1024, b"\x00\x00\x80\x7f"), "'M0' is at x = inf m in frame 1"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(path: Path, points: np.ndarray, change: Any, reason: str) -> None:
    raw = build_c3d(points)
    assert len(raw) == 1024 + 4 * 15 * 4
    path.write_bytes(change(raw))
    with pytest.raises(FileFormatError) as caught:
        read_c3d(path)
    assert f"{path}: " in str(caught.value)
    assert reason in str(caught.value)
    assert "; valid is " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_ways_up_are_refused(path: Path, points: np.ndarray) -> None:
    path.write_bytes(build_c3d(points, parameters={"Y_SCREEN": "-X"}))
    with pytest.raises(FileFormatError, match=r"Y_SCREEN is '-X'; valid is \+Y or \+Z"):
        read_c3d(path)


@pytest.mark.parametrize("units", ["m", "mm"])
def test_round_trip(path: Path, units: Any) -> None:
    pytest.importorskip("ezc3d")
    write_c3d(path, clip(), units=units)
    assert list(path.parent.iterdir()) == [path]
    back = read_markers(path)
    assert back.names == clip().names
    assert back.rate == 50.0
    np.testing.assert_allclose(back.times, clip().times, rtol=1e-12)
    np.testing.assert_allclose(back.positions, clip().positions, rtol=0, atol=FLOAT32_M)
    np.testing.assert_array_equal(back.present, clip().present)


def test_ezc3d_reads_what_is_written(path: Path) -> None:
    ezc3d = pytest.importorskip("ezc3d")
    write_c3d(path, clip())
    file = ezc3d.c3d(str(path))
    assert file["header"]["points"]["first_frame"] == 3
    assert file["parameters"]["POINT"]["LABELS"]["value"] == ["C7", "Left heel"]
    theirs = file["data"]["points"][:3].transpose(2, 1, 0) / 1000
    np.testing.assert_allclose(theirs, clip().positions, rtol=0, atol=FLOAT32_M)
    assert file["data"]["meta_points"]["residuals"][0, 1].tolist() == [0, 0, -1, 0, 0]


def test_writing_stands_opensims_vectors_of_strings(path: Path) -> None:
    """In one process ezc3d would take OpenSim's type for its own and refuse every text."""
    pytest.importorskip("ezc3d")
    osim = pytest.importorskip("opensim")
    labels = osim.StdVectorString()
    labels.append("C7")
    osim.TimeSeriesTable().setColumnLabels(labels)
    write_c3d(path, clip())
    assert read_markers(path).names == clip().names


def test_rounded_times_can_be_written_and_others_not(path: Path) -> None:
    pytest.importorskip("ezc3d")
    rounded = clip(times=[0.06, 0.083, 0.099, 0.12, 0.141])
    write_c3d(path, rounded)
    np.testing.assert_allclose(read_c3d(path).times, np.arange(3, 8) / 50)
    for times in ([0.06, 0.08, 0.1, 0.12, 1.0], np.arange(5) / 50 - 1, np.arange(5) / 100):
        with pytest.raises(SimspineError, match="evenly spaced"):
            write_c3d(path, clip(times=times))
    with pytest.raises(SimspineError, match="reaches frame 65536"):
        write_c3d(path, clip(times=(np.arange(5) + 65531) / 50))
    with pytest.raises(ValueError, match="'m' or 'mm'"):
        write_c3d(path, clip(), units="in")  # pyright: ignore[reportArgumentType]


def test_a_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ezc3d" else plain(name))
    with pytest.raises(MissingDependencyError, match=r"pip install 'simspine-jax\[c3d\]'"):
        write_c3d(path, clip())
    assert not path.exists()


def test_mutants_load_or_are_refused_in_one_sentence(path: Path, points: np.ndarray) -> None:
    valid = build_c3d(points, parameters={"Y_SCREEN": "+Z", "RATE": 50.0, "ANGLES": ["M1"]})
    used = [*range(24), *range(512, 700), *range(1024, len(valid))]
    outcomes = {"loaded": 0, "refused": 0}
    for seed in range(600):
        rng = np.random.default_rng(seed)
        mutant = bytearray(valid)
        for _ in range(rng.integers(1, 4)):
            mutant[rng.choice(used)] = rng.integers(256)
        end = len(mutant) if rng.random() < 0.7 else int(rng.integers(len(mutant)))
        path.write_bytes(mutant[:end])
        try:
            read_c3d(path)
            message = None
        except SimspineError as error:
            message = str(error)
        assert message is None or message.isprintable(), f"seed {seed}"
        outcomes["loaded" if message is None else "refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
