"""Checkpoints of a training: written by Orbax beside it, whole or not at all, and checked on reading.

A checkpoint holds the arrays of the state by name, and as JSON where the data were. Beside the checkpoints
lie lists of their files' hashes, by which damage is seen before anything is read; a damaged checkpoint is
told and passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simspine_jax.datasets.batches import BatchState
from simspine_jax.errors import FileFormatError, MissingDependencyError, SimspineError, one_line
from simspine_jax.io.files import atomic_write, place
from simspine_jax.training.state import TrainState

FOLDER, HASHES = "checkpoints", "hashes"
_STATE, _ABOUT = "state", "about"
# What Orbax, TensorStore and JSON raise where a file is damaged, missing or can't be written.
_FAULTS = (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError)

Note = Callable[[str], None]


def saved_steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a folder, ascending; unfinished ones have other names."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: made if missing, unless read only.
        keep: the newest so many stay.
        read_only: nothing is written or removed.
        note: told of damaged checkpoints.

    Raises:
        MissingDependencyError: Orbax is not installed.
        SimspineError: the folder can't be made.
    """

    def __init__(self, folder: Path, *, keep: int = 3, read_only: bool = False, note: Note) -> None:
        try:
            import orbax.checkpoint as ocp
        except ImportError:
            raise MissingDependencyError("orbax-checkpoint", "training", "Training") from None
        self._ocp, self.folder, self.note = ocp, folder.resolve(), note
        if read_only and not folder.is_dir():
            raise FileFormatError(
                f"{place(folder)}: there are no checkpoints; valid is the folder of a training"
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=not read_only, cleanup_tmp_directories=not read_only
        )
        self._pending: int | None = None
        self._manager = self._tried("opened", lambda: self._open(options))

    def _open(self, options: Any) -> Any:
        return self._ocp.CheckpointManager(self.folder, options=options, item_names=(_STATE, _ABOUT))

    @property
    def steps(self) -> list[int]:
        """Of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data: BatchState, place: Any = None) -> None:
        """Begins to write a checkpoint and returns; it waits for the one before.

        Args:
            state: of the training.
            data: where its data are.
            place: JSON of what gives the data, where more than ``data`` is needed.

        Raises:
            SimspineError: this one or the one before can't be written, as on a full disk.
        """
        self.wait()
        # The training goes on in the memory of the state while a thread writes this copy.
        arrays = {name: np.array(leaf) for name, leaf in named_leaves(state).items()}
        step = int(arrays["step"])
        about = {"step": step, "data": asdict(data)} | ({} if place is None else {"place": place})
        args = self._ocp.args
        content = args.Composite(**{_STATE: args.StandardSave(arrays), _ABOUT: args.JsonSave(about)})
        self._pending = step
        self._tried("written", lambda: self._manager.save(step, args=content))

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
            SimspineError: it can't be written.
        """
        self._tried("written", self._finish)
        self._pending = None

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        if self._pending is not None:
            with atomic_write(self._hashes(self._pending)) as file:
                json.dump(hashes_of(self.folder / str(self._pending)), file, indent=1)
            for old in set(self._hashes(0).parent.glob("*.json")) - {self._hashes(s) for s in self.steps}:
                old.unlink()

    def _hashes(self, step: int) -> Path:
        """The list of a checkpoint's hashes: not among the checkpoints, where Orbax would come across it."""
        return self.folder.parent / HASHES / f"{step}.json"

    def _damage(self, step: int) -> str | None:
        """Which file of a checkpoint is not as it was written; none where that can't be told."""
        path = self._hashes(step)
        if not path.is_file():
            # It was killed after the checkpoint was complete, and before this list was.
            return None
        try:
            wanted = json.loads(path.read_text(encoding="utf-8"))
            found = hashes_of(self.folder / str(step))
        except _FAULTS as error:
            return _reason(error)
        odd = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        return f"{odd[0]} is not as it was written" if odd else None

    def restore(self, like: TrainState, data: BatchState | None = None) -> TrainState | None:
        """The state of the newest good checkpoint; None where there is no checkpoint at all.

        Args:
            like: a state of the same model, whose numbers don't matter.
            data: where the data of a training would be at its beginning; None where no training goes on.

        Raises:
            FileFormatError: no checkpoint is good, or they are of another model.
            SimspineError: the training was on other data.
        """
        found = self.restore_all(like, data)
        return None if found is None else found[0]

    def restore_all(self, like: TrainState, data: BatchState | None = None) -> tuple[TrainState, Any] | None:
        """The same with the ``place`` that was saved beside it, None where there was none."""
        steps = self.steps
        for step in reversed(steps):
            found = self._restored(step, like)
            if isinstance(found, str):
                self.note(f"the checkpoint of step {step} in {place(self.folder)} is damaged ({found})")
                continue
            if step != steps[-1]:
                self.note(f"the checkpoint of step {step} is used")
            arrays, about = found
            if data is not None:
                self._check_data(about, data)
                self._remove(s for s in steps if s > step)
            return _filled(like, arrays), about.get("place")
        if steps:
            raise FileFormatError(
                f"{place(self.folder)}: none of its checkpoints can be read; valid is a folder with a "
                "good one"
            )
        return None

    def _restored(self, step: int, like: TrainState) -> tuple[dict[str, np.ndarray], dict[str, Any]] | str:
        """Arrays and JSON of a checkpoint, or why it is damaged."""
        if (damage := self._damage(step)) is not None:
            return damage
        args = self._ocp.args
        content = args.Composite(**{_STATE: args.StandardRestore(), _ABOUT: args.JsonRestore()})
        try:
            found = self._manager.restore(step, args=content)
            arrays = {name: np.asarray(leaf) for name, leaf in found[_STATE].items()}
            about = found[_ABOUT]
        except _FAULTS as error:
            return f"{type(error).__name__}: {one_line(str(error), 120)}"
        wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in named_leaves(like).items()}
        there = {name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
        if wanted != there:
            odd = sorted(n for n in {*wanted, *there} if wanted.get(n) != there.get(n))
            raise FileFormatError(
                f"{place(self.folder)}: its checkpoints are of another model, which differs in {odd[0]} and "
                f"{len(odd) - 1} more; valid are those of the same run"
            )
        return arrays, about

    def _check_data(self, about: dict[str, Any], data: BatchState) -> None:
        there = about["data"]
        if not there["count"]:
            raise SimspineError(
                f"{place(self.folder)} holds weights that were imported and no training; valid is another "
                "--out, with --weights and this folder to begin with them"
            )
        for name in ("seed", "count", "batch_size"):
            if there[name] != getattr(data, name):
                raise SimspineError(
                    f"{place(self.folder)}: this training had the {name} {there[name]} of its data and now "
                    f"has {getattr(data, name)}; valid is the same data and run, or another --out"
                )

    def _remove(self, steps: Iterable[int]) -> None:
        """Takes damaged checkpoints away, as their steps will be written again."""
        for step in steps:
            shutil.rmtree(self.folder / str(step), ignore_errors=True)
            self._hashes(step).unlink(missing_ok=True)
        self._manager.reload()

    def close(self) -> None:
        """Waits for what is being written and lets go of the folder.

        Raises:
            SimspineError: it can't be written.
        """
        self.wait()
        self._manager.close()

    def abandon(self) -> None:
        """Lets go of the folder after an error; what can't be written any more is not told again."""
        try:
            self._manager.close()
        except _FAULTS:
            self.note(f"the last checkpoint in {place(self.folder)} was not finished")

    def _tried(self, done: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except _FAULTS as error:
            pending, self._pending = self._pending, None
            good = [s for s in self.steps if s != pending] if hasattr(self, "_manager") else []
            what = f"the checkpoint of step {pending}" if pending is not None else "the checkpoints"
            last = f"the last good one is of step {good[-1]}" if good else "there is no good one"
            raise SimspineError(
                f"{place(self.folder)}: {what} can't be {done} ({_reason(error)}); {last}; "
                "valid is a folder on a disk with room"
            ) from None


def _reason(error: BaseException) -> str:
    """The system's words where there are some, else the first line of the library's."""
    strerror = getattr(error, "strerror", None)
    return strerror or one_line(str(error), 160) or type(error).__name__


def named_leaves(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by name, such as ``params.stack.stem.linear.kernel``."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return {".".join(map(_key, path)): leaf for path, leaf in flat}


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _filled(like: TrainState, arrays: dict[str, np.ndarray]) -> TrainState:
    names = list(named_leaves(like))
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [jax.numpy.asarray(arrays[name]) for name in names])


def hashes_of(folder: Path) -> dict[str, str]:
    """The hash of each file in a folder, by its path from there."""
    return {
        file.relative_to(folder).as_posix(): hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
