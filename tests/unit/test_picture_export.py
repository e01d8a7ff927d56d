"""Pictures as COCO files and as a card: read back by pycocotools, OpenCV and NumPy."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.image import imread

from simspine_jax import cli_dataset_export as commands
from simspine_jax.dataset_export import AREA_OF_BOX, coco_category
from simspine_jax.errors import ShapeError, SimspineError, UnknownNameError
from simspine_jax.picture_export import export_pictures
from simspine_jax.picture_statistics import (
    RENDERED,
    PictureStatistics,
    box_table,
    gather_pictures,
    picture_counts_table,
    true_visibility_table,
)
from simspine_jax.pictures import OCCLUDED, OUTSIDE, VISIBLE, Picture, encode_jpeg
from simspine_jax.skeleton import KEYPOINT_NAMES
from simspine_jax.statistics import BIN
from simspine_jax.viz.card import PAGE, CardFacts
from simspine_jax.viz.picture_card import SHEET_COLUMNS, SHEET_PICTURES, write_picture_card

# Half of the last decimal that is written, and the rounding of float32 at a thousand pixels.
COCO_PX = 0.5e-3 + 1e-4
WIDTH, HEIGHT = 120, 96
NAMES = (("S1", "Walking"), ("S1", "Sitting"), ("S9", "Walking"), ("S11", "Walking"))


def picture(i: int, **changes: Any) -> Picture:
    """One of noise, with keypoints of all three kinds of visibility and one that is not known."""
    random = np.random.default_rng(i)
    subject, action = NAMES[i % len(NAMES)]
    visibility = random.choice([OUTSIDE, OCCLUDED, VISIBLE], len(KEYPOINT_NAMES), p=[0.2, 0.3, 0.5])
    keypoints = random.uniform((5, 5), (WIDTH - 5, HEIGHT - 5), (len(KEYPOINT_NAMES), 2))
    keypoints[visibility == OUTSIDE] += (WIDTH, 0)
    keypoints[5], visibility[5] = np.nan, OUTSIDE
    values = {
        "jpeg": encode_jpeg(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)),
        "width": WIDTH, "height": HEIGHT, "subject": subject, "action": action, "camera": "free",
        "frame": 10 * i, "is_synthetic": True, "appearance_seed": i, "box": [-0.5, 9.5, 40 + i, 60],
        "area": 1000.0 + i, "keypoints_2d": keypoints, "visibility": visibility,
        "keypoints_3d": np.ones((len(KEYPOINT_NAMES), 3)), "camera_matrix": np.eye(3),
        "camera_rotation": np.eye(3), "camera_translation": np.zeros(3), "camera_distortion": np.zeros(8),
    }  # fmt: skip
    return Picture(**(values | changes))


PICTURES = [picture(i) for i in range(14)]


def loaded(path: Path) -> Any:
    return pytest.importorskip("pycocotools.coco").COCO(str(path))


def test_coco_holds_the_records(tmp_path: Path) -> None:
    counts = export_pictures(tmp_path / "a.json", tmp_path / "pictures", PICTURES)
    assert (counts.images, counts.annotations, counts.detections) == (14, 14, 0)
    found = loaded(tmp_path / "a.json")
    assert found.loadCats(1) == [coco_category()]
    assert set(tmp_path.rglob("*.*")) == {
        tmp_path / "a.json", *(tmp_path / "pictures" / i["file_name"] for i in found.imgs.values())
    }  # fmt: skip
    for number, one in enumerate(PICTURES, start=1):
        image = found.imgs[number]
        path = tmp_path / "pictures" / image["file_name"]
        assert path.read_bytes() == one.jpeg
        assert cv2.imread(str(path)).shape == (image["height"], image["width"], 3) == (HEIGHT, WIDTH, 3)
        assert (image["subject"], image["action"], image["frame"]) == (one.subject, one.action, one.frame)
        (person,) = found.loadAnns(found.getAnnIds(imgIds=[number]))
        table = np.reshape(person["keypoints"], (-1, 3))
        np.testing.assert_array_equal(table[:, 2], one.visibility)
        told = one.visibility > 0
        np.testing.assert_allclose(table[told, :2], one.keypoints_2d[told], atol=COCO_PX)
        assert not table[~told].any()
        assert person["num_keypoints"] == told.sum()
        assert person["bbox"] == [0, 9.5, 39.5 + number - 1, 60]
        assert person["area"] == one.area
    assert {*np.concatenate([p["keypoints"][2::3] for p in found.anns.values()])} == {0, 1, 2}


def test_annotations_score_one_against_themselves(tmp_path: Path) -> None:
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    export_pictures(tmp_path / "a.json", tmp_path / "a", PICTURES)
    truth = loaded(tmp_path / "a.json")
    keys = ("image_id", "category_id", "keypoints")
    same = [{**{k: a[k] for k in keys}, "score": 1.0} for a in truth.anns.values()]
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(same), "keypoints")
    evaluation.params.kpt_oks_sigmas = np.array(truth.loadCats(1)[0]["sigmas"])
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0, abs=1e-12)


def test_what_is_not_seen_and_not_known(tmp_path: Path) -> None:
    """Nobody is annotated of whom nothing is seen; an area that is not known is taken from the box."""
    none = np.full(len(KEYPOINT_NAMES), OUTSIDE)
    found = [picture(0, visibility=none), picture(1, area=0.0), picture(2, area=np.nan, box=[10, 20, 30, 40])]
    assert export_pictures(tmp_path / "a.json", tmp_path / "a", found).annotations == 1
    (person,) = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert (person["image_id"], person["area"]) == (3, AREA_OF_BOX * 1200)


def test_pictures_are_selected(tmp_path: Path) -> None:
    export_pictures(tmp_path / "a.json", tmp_path / "a", PICTURES, ["S1", "S9"], ["Walking"])
    images = json.loads((tmp_path / "a.json").read_text())["images"]
    assert {(i["subject"], i["action"]) for i in images} == {("S1", "Walking"), ("S9", "Walking")}
    assert [i["id"] for i in images] == list(range(1, len(images) + 1))
    with pytest.raises(UnknownNameError, match="Subject 'S5' is not in the dataset"):
        export_pictures(tmp_path / "b.json", tmp_path / "b", PICTURES, ["S5"])
    with pytest.raises(SimspineError, match="no pictures of these subjects"):
        export_pictures(tmp_path / "b.json", tmp_path / "b", PICTURES, ["S9"], ["Sitting"])
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "b.json").exists()


# --- the card ---


@pytest.fixture(scope="module")
def statistics() -> PictureStatistics:
    return gather_pictures(PICTURES)


def test_numbers_are_those_of_numpy(statistics: PictureStatistics) -> None:
    visibility = np.stack([p.visibility for p in PICTURES])
    known = np.isfinite(np.stack([p.keypoints_2d for p in PICTURES])).all(axis=-1)
    rows = true_visibility_table(statistics).rows
    for k, name in enumerate(KEYPOINT_NAMES):
        of = visibility[known[:, k], k]
        shares = [100 * (of == v).mean() if len(of) else np.nan for v in (VISIBLE, OCCLUDED, OUTSIDE)]
        assert rows[k] == (name, len(of), *(pytest.approx(share, nan_ok=True) for share in shares))
    assert rows[-1][2] == pytest.approx(100 * (visibility[known] == VISIBLE).mean())
    subjects = {row[0]: row[1:] for row in picture_counts_table(statistics, "subject").rows}
    assert subjects["S9"] == ("test", 3, pytest.approx(300 / 14))
    assert [r[:2] for r in picture_counts_table(statistics, "split").rows] == [
        ("train", 8), ("test", 6), ("All", 14),
    ]  # fmt: skip
    sizes = {row[0]: row[1:] for row in box_table(statistics).rows}
    widths, areas = np.array([p.box[2] for p in PICTURES]), np.array([p.area for p in PICTURES])
    assert sizes["Width of the box (px)"][:3] == pytest.approx((widths.mean(), widths.std(), widths.min()))
    median = np.median(np.sqrt(areas))
    assert sizes["Root of the area (px)"][4] == pytest.approx(median, abs=BIN)
    assert sizes["Box over picture (%)"][0] == pytest.approx(100 * (widths * 60 / WIDTH / HEIGHT).mean())
    seen = (visibility == VISIBLE).sum(axis=1)
    assert sizes["Visible keypoints (of 37)"][0] == pytest.approx(seen.mean())
    with pytest.raises(ShapeError, match="There are no pictures"):
        gather_pictures([])


def test_the_card_shows_what_is_known(statistics: PictureStatistics, tmp_path: Path) -> None:
    page, *others = write_picture_card(tmp_path, statistics, PICTURES, CardFacts("simspine/x", license="<a>"))
    assert page == tmp_path / PAGE
    assert set(tmp_path.rglob("*.*")) == {page, *others}
    text = page.read_text()
    for words in (
        RENDERED,
        "14 pictures",
        "train: 8 pictures; test: 6 pictures",
        "&lt;a&gt;",
        "True visibility of each keypoint",
    ):
        assert words in text, words
    assert text.count("data:image/jpeg;base64,") == 1
    for path in others:
        if path.suffix == ".png":
            assert imread(path).std() > 0.02
    sheet = cv2.imread(str(tmp_path / "figures" / "contact_sheet.jpg"))
    assert sheet.shape == (SHEET_PICTURES // SHEET_COLUMNS * HEIGHT, SHEET_COLUMNS * WIDTH, 3)
    lines = (tmp_path / "tables" / "true_visibility_by_keypoint.csv").read_text().splitlines()
    rows = list(csv.reader(line for line in lines if not line.startswith("#")))
    assert float(rows[1][2]) == pytest.approx(true_visibility_table(statistics).rows[0][2], rel=1e-5)


# --- the command ---


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset's description as TensorFlow Datasets writes it, with records in memory."""
    folder = tmp_path / "data" / "simspine" / "synthetic_images" / "1.0.0"
    folder.mkdir(parents=True)
    about = {"name": "simspine", "version": "1.0.0", "splits": [{"name": "train"}, {"name": "test"}]}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"jpeg": {}}}}))
    monkeypatch.setattr(
        "simspine_jax.datasets.open_pictures",
        lambda config, split, data_dir: PICTURES if split == "train+test" else PICTURES[:3],
    )
    return tmp_path / "data"


def parsed(data_dir: Path, *words: str, card: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    (commands.add_card_arguments if card else commands.add_export_arguments)(parser)
    return parser.parse_args([*words, "--config", "synthetic_images", "--data-dir", str(data_dir), "--quiet"])


def test_the_command_writes_pictures_beside_the_file(data_dir: Path, tmp_path: Path) -> None:
    assert commands.export(parsed(data_dir, "--to", "coco", "-o", str(tmp_path / "all.json"))) == 0
    assert len(list((tmp_path / "all").glob("*.jpg"))) == 14
    words = ("--to", "coco", "-o", str(tmp_path / "a.json"), "--images", str(tmp_path / "b"))
    assert commands.export(parsed(data_dir, *words, "--split", "train")) == 0
    assert len(list((tmp_path / "b").glob("*.jpg"))) == 3
    assert commands.card(parsed(data_dir, "-o", str(tmp_path / "card"), card=True)) == 0
    assert "14 of 14 pictures rendered" in (tmp_path / "card" / PAGE).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--to", "hdf5", "-o", "a.h5"],
            "holds trials, and synthetic_images has pictures; valid is --to coco$",
        ),
        (["--to", "npz", "-o", "a.npz"], "valid is --to coco$"),
        (["--to", "coco", "-o", "a.json", "--detections", "b.json"], "--detections has no effect"),
    ],
)
def test_what_pictures_cannot_be_is_told(data_dir: Path, words: list[str], message: str) -> None:
    with pytest.raises(SimspineError, match=message) as error:
        commands.export(parsed(data_dir, *words))
    assert len(str(error.value)) < 120
