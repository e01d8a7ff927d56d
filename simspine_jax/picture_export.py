"""A set of pictures as COCO keypoints: JPEG files, and a JSON that knows what is occluded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simspine_jax.dataset_export import (
    AREA_OF_BOX,
    PERSON,
    PIXEL_DECIMALS,
    CocoCounts,
    coco_head,
    license_id,
    plain_number,
    write_item,
)
from simspine_jax.errors import SimspineError, UnknownNameError
from simspine_jax.io.files import PathLike, atomic_write
from simspine_jax.pictures import OUTSIDE, Picture

DESCRIPTION = (
    "Pictures with keypoints of body and spine in the manner of SIMSPINE. Visible keypoints have v = 2, "
    "those behind something v = 1, others v = 0. The middle of a picture's first pixel is (0, 0)."
)

AREA = f"of what is seen of the person; where it is not known, {AREA_OF_BOX} of the box"


def export_pictures(
    path: PathLike,
    images: PathLike,
    pictures: Sequence[Picture],
    subjects: Sequence[str] | None = None,
    actions: Sequence[str] | None = None,
    step: Callable[[], None] | None = None,
) -> CocoCounts:
    """Write JPEG files as they are in the records, and when all are there the JSON about them.

    Files are named by subject, action and number; ``file_name`` counts from the folder ``images``. Beside
    COCO's fields a picture tells subject, action, camera, frame, K, and R and t of the ground (Y up). Someone
    of whom nothing is seen has no annotation. Boxes are cut at 0 and the picture's size, as COCO counts.

    Args:
        path: of the JSON file.
        images: folder of the pictures, made where it is missing; a file of the same name is replaced.
        pictures: numbered from 1 in this order.
        subjects: only these; None for all.
        actions: likewise.
        step: called after each picture that there is.

    Raises:
        UnknownNameError: there is no such subject or action.
        SimspineError: these subjects have none of these actions, or a file can't be written.
    """
    chosen, kinds = _chosen(pictures, subjects, actions)
    root = Path(images)
    counts = CocoCounts()
    with atomic_write(path) as out, tempfile.TemporaryFile("w+", encoding="utf-8") as later:
        out.write(coco_head(DESCRIPTION, kinds, AREA))
        for picture, is_chosen in zip(pictures, chosen, strict=True):
            if is_chosen:
                number = counts.images + 1
                document = _image(picture, number)
                with atomic_write(root / document["file_name"], binary=True) as file:
                    file.write(picture.jpeg)
                write_item(out, document, first=number == 1)
                person = _person(picture, counts.annotations + 1, number)
                if person is not None:
                    write_item(later, person, first=counts.annotations == 0)
                counts = CocoCounts(number, counts.annotations + (person is not None))
            if step is not None:
                step()
        out.write('\n],\n"annotations": [')
        later.seek(0)
        shutil.copyfileobj(later, out)
        out.write("\n]}\n")
    return counts


def _chosen(
    pictures: Sequence[Picture], subjects: Sequence[str] | None, actions: Sequence[str] | None
) -> tuple[list[bool], set[bool]]:
    """Which pictures are asked for, and whether these are synthetic."""
    heads = [(p.subject, p.action, bool(p.is_synthetic)) for p in pictures]
    for kind, names, place in (("Subject", subjects, 0), ("Action", actions, 1)):
        valid = sorted({str(head[place]) for head in heads})
        for name in names or ():
            if name not in valid:
                raise UnknownNameError(kind, name, "the dataset", valid)
    chosen = [
        (subjects is None or subject in subjects) and (actions is None or action in actions)
        for subject, action, _ in heads
    ]
    if not any(chosen):
        raise SimspineError("The dataset has no pictures of these subjects with these actions together")
    return chosen, {head[2] for head, is_chosen in zip(heads, chosen, strict=True) if is_chosen}


def _image(picture: Picture, number: int) -> dict[str, Any]:
    stem = f"{picture.subject}_{picture.action}".replace(" ", "_")
    known: dict[str, Any] = {
        "camera_matrix": picture.camera_matrix, "camera_rotation": picture.camera_rotation,
        "camera_translation": picture.camera_translation,
    }  # fmt: skip
    return {
        "id": number,
        "file_name": f"{stem}_{number:06d}.jpg",
        "width": int(picture.width),
        "height": int(picture.height),
        "license": license_id(bool(picture.is_synthetic)),
        "subject": picture.subject,
        "action": picture.action,
        "camera": picture.camera,
        "frame": int(picture.frame),
        **{name: values.tolist() for name, values in known.items() if np.isfinite(values).all()},
    }


def _person(picture: Picture, number: int, image: int) -> dict[str, Any] | None:
    """The annotation; None where nothing is seen of the person."""
    told = picture.visibility != OUTSIDE
    low = np.clip(picture.box[:2].astype(np.float64), 0, (picture.width, picture.height))
    high = np.clip((picture.box[:2] + picture.box[2:]).astype(np.float64), 0, (picture.width, picture.height))
    area = AREA_OF_BOX * float(np.prod(high - low)) if np.isnan(picture.area) else float(picture.area)
    if not told.any() or not area > 0:
        return None
    table = np.column_stack([np.where(told[:, None], picture.keypoints_2d, 0.0), picture.visibility])
    return {
        "id": number,
        "image_id": image,
        "category_id": PERSON,
        "keypoints": [plain_number(value) for value in table.ravel().round(PIXEL_DECIMALS).tolist()],
        "num_keypoints": int(told.sum()),
        "bbox": np.concatenate([low, high - low]).round(PIXEL_DECIMALS).tolist(),
        "area": round(area, PIXEL_DECIMALS),
        "iscrowd": 0,
    }
