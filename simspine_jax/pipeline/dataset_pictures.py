"""Rendered pictures as records; those that are rendered already are taken from a work folder.

Rendering is done in a process of its own: OpenGL's software renderer crashes where TensorFlow is loaded (both
bring an LLVM), and `tfds.load` loads it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simspine_jax.capture import ACTION_NAMES, SUBJECT_NAMES
from simspine_jax.capture.rendering import PictureItem, picture_items, pictures_of
from simspine_jax.errors import FileFormatError, SimspineError, one_line
from simspine_jax.io.npz import read_npz, write_npz
from simspine_jax.pictures import PICTURE_FIELDS, Picture
from simspine_jax.pipeline.dataset import UNWATCHED, RecordSource, Watcher, WorkItem, spine

N_PICTURES = 10_500
"""A hundred of each of seven subjects in fifteen actions."""

_DONE, _ERROR = "done ", "error "
_CHILD = "from simspine_jax.pipeline.dataset_pictures import render_from_arguments as r; r()"


@dataclass(frozen=True)
class PictureSource(RecordSource):
    """Rendered pictures; see `simspine_jax.capture.rendering`.

    Attributes:
        work: a folder for those that are rendered.
        subjects: of the synthetic set; empty for all.
        actions: likewise.
        count: of all pictures.
        seed: of everything.
    """

    work: Path
    subjects: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    count: int = N_PICTURES
    seed: int = 0

    def items(self) -> tuple[WorkItem, ...]:
        """A subject each; see `RecordSource`."""
        subjects = [item.subject for item in self._items()]
        return tuple(WorkItem(name, n_trials=subjects.count(name)) for name in dict.fromkeys(subjects))

    def records(self, item: WorkItem, watcher: Watcher = UNWATCHED) -> Iterator[tuple[str, Picture]]:
        """Renders the subject's pictures where there are none that can be read; see `RecordSource`."""
        wanted = [i for i in self._items() if i.subject == item.subject]
        paths = {i: _path(self.work, i) for i in wanted}
        done = {i for i, path in paths.items() if path.is_file()}
        for i in done:
            watcher.trial(paths[i].stem)
        _render(self.work, [i for i in wanted if i not in done], watcher)
        for i, path in paths.items():
            try:
                pictures = list(read_pictures(path))
            except FileFormatError as error:
                if i not in done:
                    raise
                watcher.note(f"{error}; it is rendered anew")
                path.unlink()
                _render(self.work, [i], dataclasses.replace(watcher, trial=UNWATCHED.trial))
                pictures = list(read_pictures(path))
            yield from pictures

    def _items(self) -> tuple[PictureItem, ...]:
        return picture_items(
            subjects=self.subjects or SUBJECT_NAMES,
            actions=self.actions or ACTION_NAMES,
            count=self.count,
            seed=self.seed,
        )


def _path(work: Path, item: PictureItem) -> Path:
    return work / f"{item.subject}_{item.action}.npz"


def _render(work: Path, items: Sequence[PictureItem], watcher: Watcher) -> None:
    """Renders items into the folder in a child process.

    Raises:
        SimspineError: nothing can be rendered on this machine, or the renderer crashes.
    """
    if not items:
        return
    words = json.dumps([dataclasses.asdict(item) for item in items])
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(work), words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Single precision on the processor, whatever this process does: equal seeds give equal bytes.
        env=os.environ | {"JAX_ENABLE_X64": "0", "JAX_PLATFORMS": "cpu"},
    ) as child:
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith(_ERROR):
                    raise SimspineError(line.removeprefix(_ERROR).strip())
                if line.startswith(_DONE):
                    watcher.trial(line.removeprefix(_DONE).strip())
            _, complaint = child.communicate()
        finally:
            child.kill()
    if child.returncode:
        raise SimspineError(f"Rendering into {work} {_why(child.returncode, complaint)}")


def _why(status: int, complaint: str) -> str:
    if status < 0:
        return f"crashed ({signal.Signals(-status).name}); MUJOCO_GL chooses between egl and osmesa"
    last = complaint.strip().splitlines()[-1:] or [f"status {status}"]
    return f"failed ({one_line(last[0])})"


def render_from_arguments() -> None:
    """What the child process does: renders the items that its arguments tell, and prints which are done."""
    work, items = Path(sys.argv[1]), [PictureItem(**words) for words in json.loads(sys.argv[2])]
    try:
        for item in items:
            write_pictures(_path(work, item), list(pictures_of(spine().model, item)))
            print(f"{_DONE}{_path(work, item).stem}", flush=True)
    except SimspineError as error:
        print(f"{_ERROR}{one_line(str(error), 1000)}", flush=True)


def write_pictures(path: Path, pictures: Sequence[tuple[str, Picture]]) -> None:
    """Pictures with their keys as one NPZ file, which appears whole or not at all.

    Raises:
        SimspineError: it can't be written.
    """
    arrays: dict[str, Any] = {"key": np.array([key for key, _ in pictures], str)}
    for field in PICTURE_FIELDS:
        values = [getattr(picture, field.name) for _, picture in pictures]
        if field.kind == "jpeg":
            arrays["jpeg"] = np.frombuffer(b"".join(values), np.uint8)
            arrays["jpeg_ends"] = np.cumsum([len(value) for value in values])
        else:
            arrays[field.name] = np.array(values, str if field.kind == "text" else field.kind)
    write_npz(path, arrays)


def read_pictures(path: Path) -> Iterator[tuple[str, Picture]]:
    """What `write_pictures` has written.

    Raises:
        FileFormatError: it is damaged.
    """
    arrays = read_npz(path)
    files, ends = arrays.pop("jpeg").tobytes(), arrays.pop("jpeg_ends").tolist()
    keys = arrays.pop("key").tolist()
    for i, (key, start, end) in enumerate(zip(keys, [0, *ends[:-1]], ends, strict=True)):
        values = {name: array[i] if array.ndim > 1 else array[i].item() for name, array in arrays.items()}
        yield key, Picture(jpeg=files[start:end], **values)
