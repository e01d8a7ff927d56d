"""Pictures and videos of cameras: what is found where, and what every kind of file becomes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.io.video import (
    PictureCamera,
    VideoCamera,
    common_rate,
    find_cameras,
    open_video,
    read_picture,
)

SIZE = (96, 64)
# Of a lossy codec, on pictures of one brightness; frames differ by 10.
LOSS = 4.0


def plain(value: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((size[1], size[0], 3), value, np.uint8)


def save(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), plain(value))
    return path


def film(path: Path, values: list[int], rate_hz: float = 25.0, fourcc: str = "mp4v") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), rate_hz, SIZE)
    for value in values:
        writer.write(plain(value))
    writer.release()
    return path


def names(*paths: Path) -> list[str]:
    return [camera.name for camera in find_cameras(paths).cameras]


def test_pictures_of_all_kinds_are_rgb_of_eight_bits(tmp_path: Path) -> None:
    """Written by Pillow, so that OpenCV's habits are not taken for granted."""
    colors = np.zeros((30, 40, 3), np.uint8)
    colors[:, :20], colors[:, 20:] = (200, 30, 10), (0, 90, 250)
    Image.fromarray(colors).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([colors, np.full((30, 40), 128, np.uint8)])).save(tmp_path / "alpha.png")
    Image.fromarray(colors).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    for name in ("rgb.png", "alpha.png", "palette.png"):
        np.testing.assert_array_equal(read_picture(tmp_path / name), colors)
    ramp = np.linspace(0, 255, 40).round().astype(np.uint8)[None].repeat(30, 0)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey.png", "deep.png"):
        found = read_picture(tmp_path / name)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, ramp[..., None].repeat(3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture(tmp_path: Path, orientation: int) -> None:
    rows, columns = np.mgrid[:48, :80]
    pixels = np.stack([rows * 5, columns * 3, rows * 0 + 90], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=98, subsampling=0)
    found = read_picture(tmp_path / "turned.jpg").astype(int)
    turns = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels),
    }  # fmt: skip
    assert found.shape == turns[orientation].shape
    assert np.abs(found - turns[orientation]).mean() < LOSS


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_what_cannot_be_read_is_named_and_the_rest_is_read(tmp_path: Path, suffix: str) -> None:
    whole = save(tmp_path / f"p_001{suffix}")
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
    cv2.imwrite(str(tmp_path / f"p_002{suffix}"), noise)
    cut = (tmp_path / f"p_002{suffix}").read_bytes()
    (tmp_path / f"p_002{suffix}").write_bytes(cut[: len(cut) * 6 // 10])
    (tmp_path / f"p_003{suffix}").write_bytes(b"")
    (tmp_path / f"p_004{suffix}").write_bytes(b"no picture at all")
    (tmp_path / f"p_005{suffix}").write_bytes(whole.read_bytes())
    (camera,) = find_cameras([tmp_path]).cameras
    frames = list(camera.frames(threads=2))
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 5]
    assert [frame.pixels is None for frame in frames] == [False, True, True, True, False]
    for frame, word in zip(frames[1:4], ("decoded", "empty", "decoded"), strict=True):
        assert frame.name in frame.fault
        assert word in frame.fault
        assert "\n" not in frame.fault


def test_numbers_in_names_are_frames_where_they_count_them(tmp_path: Path) -> None:
    for number in (7, 9, 10):
        save(tmp_path / "a" / f"img_{number}.png", number)
    for number in (8, 9, 10, 11):
        save(tmp_path / "b" / f"{number:05d}.jpg", number)
    a, b = find_cameras([tmp_path]).cameras
    assert (a.numbers, b.numbers) == ((7, 9, 10), (8, 9, 10, 11))
    values = {frame.number: frame.pixels for frame in a.frames(start=9)}
    assert set(values) == {9, 10}
    assert (values[9] == 9).all()
    assert a.stems == {"img_7": 7, "img_9": 9, "img_10": 10}


@pytest.mark.parametrize(
    "b",
    [
        ["x", "y", "z"],  # no numbers
        ["t_100", "t_140", "t_180"],  # of time, not of frames
        ["p_31", "p_32", "p_33"],  # of other frames than the first camera's
        ["p_1", "q_1", "p_2"],  # twice
    ],
)
def test_other_pictures_go_by_their_order_in_all_cameras(tmp_path: Path, b: list[str]) -> None:
    for name in ("p_9", "p_10", "p_11", "p_12"):
        save(tmp_path / "a" / f"{name}.png")
    for name in b:
        save(tmp_path / "b" / f"{name}.png")
    found = find_cameras([tmp_path])
    assert [camera.numbers for camera in found.cameras] == [(0, 1, 2, 3), (0, 1, 2)]
    first = found.cameras[0]
    assert isinstance(first, PictureCamera)
    assert [path.stem for path in first.paths] == ["p_9", "p_10", "p_11", "p_12"]  # not p_10 first
    (note,) = found.notes
    assert "a 4, b 3" in note


def test_a_video_streams_from_any_frame(tmp_path: Path) -> None:
    values = list(range(20, 220, 10))
    for fourcc, suffix in (("mp4v", ".mp4"), ("MJPG", ".avi"), ("mp4v", ".MKV")):
        camera = open_video(film(tmp_path / f"walk{suffix}", values, 29.97, fourcc))
        assert camera.rate_hz == pytest.approx(29.97, rel=1e-3)
        assert camera.numbers == range(20)
        for start in (0, 13):
            frames = list(camera.frames(start))
            assert [frame.number for frame in frames] == list(range(start, 20))
            means = [frame.pixels.mean() for frame in frames if frame.pixels is not None]
            np.testing.assert_allclose(means, values[start:], atol=LOSS)
        reader = camera.frames()
        next(reader)
        reader.close()  # ends its thread


def test_videos_have_their_colours_in_order(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, SIZE)
    for _ in range(2):
        writer.write(np.full((SIZE[1], SIZE[0], 3), (10, 60, 220), np.uint8))  # OpenCV's B, G, R
    writer.release()
    frame = next(open_video(tmp_path / "red.avi").frames())
    assert frame.pixels is not None
    np.testing.assert_allclose(frame.pixels.mean(axis=(0, 1)), (220, 60, 10), atol=LOSS)


def test_a_video_that_is_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    path, random = tmp_path / "cut.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, SIZE)
    for _ in range(20):
        writer.write(random.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8))
    writer.release()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    camera = open_video(path)
    assert camera.numbers == range(20)
    assert 5 < len(list(camera.frames())) < 20


def test_videos_that_cannot_be_opened_are_named_and_the_others_are_found(tmp_path: Path) -> None:
    whole = film(tmp_path / "good.mp4", [50] * 5)
    (tmp_path / "headless.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "zero.mov").write_bytes(b"")
    found = find_cameras([tmp_path])
    assert [camera.name for camera in found.cameras] == ["good"]
    assert len(found.failed) == 2
    assert "headless.mp4" in found.failed[0]
    assert "zero.mov" in found.failed[1]
    assert "empty" in found.failed[1]
    with pytest.raises(FileFormatError, match=r"zero\.mov"):
        find_cameras([tmp_path / "zero.mov"])


def test_cameras_are_called_as_their_folders_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "one" / "a.png")
    save(tmp_path / "one" / "b.PNG")
    assert names(tmp_path / "one") == ["one"]
    assert names(tmp_path / "one" / "a.png") == ["a"]
    assert names(tmp_path / "one" / "a.png", tmp_path / "one" / "b.PNG") == ["one"]
    film(tmp_path / "many" / "cam2.mp4", [50] * 3)
    film(tmp_path / "many" / "cam1" / "GX010023.mp4", [50] * 3)
    save(tmp_path / "many" / "cam3" / "0001.jpg")
    (tmp_path / "many" / "notes").mkdir()
    save(tmp_path / "many" / ".hidden" / "0001.jpg")
    assert names(tmp_path / "many") == ["cam1", "cam2", "cam3"]
    assert names(tmp_path / "many" / "cam2.mp4", tmp_path / "one") == ["cam2", "one"]
    monkeypatch.chdir(tmp_path / "one")
    assert names(Path(".")) == ["one"]


def test_what_is_no_camera_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "both" / "a.png")
    film(tmp_path / "both" / "b.mp4", [50] * 3)
    for inner in ("b", "c"):
        film(tmp_path / "two" / "a" / f"{inner}.mp4", [50] * 3)
    film(tmp_path / "same" / "a.mp4", [50] * 3)
    save(tmp_path / "same" / "a" / "p.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("text")
    for path, words in (
        ("both", "pictures beside videos"), ("two", "2 videos"), ("same", "one name"),
        ("empty", "holds no pictures"), ("a.txt", "the ending is '.txt'"), ("gone", "no such file"),
    ):  # fmt: skip
        with pytest.raises(SimspineError, match=words) as caught:
            find_cameras([tmp_path / path])
        assert "valid" in str(caught.value)


def test_rates_are_one(tmp_path: Path) -> None:
    cameras = [VideoCamera(name, tmp_path, range(3), rate) for name, rate in
               (("a", 59.94), ("b", 59.95), ("c", None))]  # fmt: skip
    assert common_rate(cameras) == 59.94
    assert common_rate(cameras, 50.0) == 50.0
    assert common_rate(cameras[2:]) is None
    other = VideoCamera("d", tmp_path, range(3), 60.0)
    assert common_rate([*cameras, other], 60.0) == 60.0
    with pytest.raises(SimspineError, match=r"a and d have 59\.94 and 60 frames per second"):
        common_rate([*cameras, other])
