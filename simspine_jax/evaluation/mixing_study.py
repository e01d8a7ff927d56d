"""The paper's Figure 5: how much of SimSpine, and mixed in how, a detector is trained with.

A study trains one detector a cell, each from the same first weights, for as many steps and with the same
seed. A cell's fraction of the second set is used, mixed with the whole first one batch by batch or epoch by
epoch; then AP and AR of the first domain's test set and AUC of the second one's are measured. With 0 % there
is nothing to mix, so both modes share that cell.

Source: section 4.4 and Figure 5 of the SIMSPINE paper, whose detectors are fine-tuned for ten epochs from
published weights: ``--config spinepose_m_ft --weights W``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simspine_jax.datasets import PictureSequence
from simspine_jax.datasets.mixing import MixOptions, PictureMix
from simspine_jax.datasets.picture_files import told_problems
from simspine_jax.detection.inference import Detector
from simspine_jax.errors import FileFormatError, SimspineError, one_line
from simspine_jax.io.files import atomic_write, make_folder, place, read_text
from simspine_jax.tables import Table, format_table
from simspine_jax.training.checkpoints import FOLDER, Note, hashes_of, saved_steps
from simspine_jax.training.detector_evaluation import detect, detector_scores
from simspine_jax.training.detector_run import MODELS, DetectorRun, read_detector_run
from simspine_jax.training.detectors import train_detector
from simspine_jax.training.evaluation import commit
from simspine_jax.training.loop import RUN_FILE, Progress
from simspine_jax.training.run import run_to_json

MODES: tuple[Literal["batch", "epoch"], ...] = ("batch", "epoch")
MODE_NAMES = {"batch": "per batch (PB)", "epoch": "per epoch (PE)"}

TRAINING = "training"
CELL_FILE, SCORES_FILE = "cell.json", "scores.json"


@dataclass(frozen=True, eq=False)
class Domain:
    """One of the two sets.

    Attributes:
        name: for tables and plots.
        train: pictures to train on.
        test: pictures to measure on.
    """

    name: str
    train: PictureSequence
    test: PictureSequence

    @cached_property
    def about(self) -> dict[str, Any]:
        """What it is, as JSON's types."""
        return {
            "name": self.name,
            "train": len(self.train),
            "test": len(self.test),
            "sha256": [self.train.digest(), self.test.digest()],
        }


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        mode: of the mix; ``none`` where there is nothing to mix.
        fraction: of the second set, 0 to 1.
    """

    mode: Literal["batch", "epoch", "none"]
    fraction: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return "first_only" if self.mode == "none" else f"{self.mode}_{100 * self.fraction:g}"

    @property
    def title(self) -> str:
        """In words."""
        return (
            "the first set alone"
            if self.mode == "none"
            else f"{MODE_NAMES[self.mode]}, {100 * self.fraction:g} %"
        )


@dataclass(frozen=True)
class CellScores:
    """What a cell reached; NaN where it can't be measured.

    Attributes:
        mode: of the cell.
        fraction: likewise.
        pictures: of the second set that were used.
        steps: that were trained.
        ap_body: COCO's AP on the first domain's test set, of SpineTrack's ``body``.
        ar_body: likewise, AR.
        ap_spine: AP of its ``spine``.
        ar_spine: likewise, AR.
        auc: on the second domain's test set, of all keypoints; see `training.detector_evaluation`.
        auc_spine: likewise, of ``spine``.
    """

    mode: Literal["batch", "epoch", "none"]
    fraction: float
    pictures: int
    steps: int
    ap_body: float
    ar_body: float
    ap_spine: float
    ar_spine: float
    auc: float
    auc_spine: float


@dataclass(frozen=True, eq=False)
class MixingStudy:
    """A study from start to end.

    Attributes:
        run: of all its trainings.
        first: SpineTrack in the paper.
        second: SimSpine in the paper.
        fractions: of the second set, 0 to 1.
        modes: of mixing.
        share: of the second set; see `MixOptions`.
        weights: folder of a training whose detector all of them begin with; None for random weights.

    Raises:
        SimspineError: there is no fraction or no mode, or one of them can't be.
    """

    run: DetectorRun
    first: Domain
    second: Domain
    fractions: tuple[float, ...]
    modes: tuple[Literal["batch", "epoch"], ...] = MODES
    share: float = 0.5
    weights: Path | None = None

    def __post_init__(self) -> None:
        if not self.fractions or not self.modes:
            raise SimspineError("A study has no fractions or no modes; valid is one or more of each")
        for cell in self.cells:
            self.mix(cell).batches(self.run.batch_size, self.run.seed)  # refuses what can't be mixed

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Its trainings, by rising fraction."""
        fractions = sorted(set(self.fractions))
        alone = (Cell("none", 0.0),) if 0 in fractions else ()
        modes = tuple(dict.fromkeys(self.modes))
        return alone + tuple(Cell(mode, fraction) for fraction in fractions if fraction for mode in modes)

    def mix(self, cell: Cell) -> PictureMix:
        """What a cell is trained on; its pictures of the second set are the run's seed's.

        Raises:
            SimspineError: the options can't be.
            ShapeError: the fraction is less than half a picture.
        """
        mode = "batch" if cell.mode == "none" else cell.mode
        options = MixOptions(mode, self.share, cell.fraction)
        return PictureMix.of(self.first.train, self.second.train, options, self.run.seed)

    def about(self, cell: Cell) -> dict[str, Any]:
        """What a cell is, as JSON's types: a cell of a folder with anything else is another."""
        run = run_to_json(self.run, MODELS)
        for name in ("keep", "save_every", "log_every", "expected"):  # which change no number
            del run[name]
        return {
            "run": run,
            "mode": cell.mode,
            "fraction": cell.fraction,
            "share": self.share,
            "weights": self._about_weights,
            "first": self.first.about,
            "second": self.second.about,
        }

    @cached_property
    def _about_weights(self) -> dict[str, str] | None:
        if self.weights is None:
            return None
        run = read_detector_run(self.weights / RUN_FILE)  # refuses what is no training
        steps = saved_steps(self.weights / FOLDER)
        files = {} if not steps else hashes_of(self.weights / FOLDER / str(steps[-1]))
        told = json.dumps([run_to_json(run, MODELS), files], sort_keys=True)
        return {"folder": str(self.weights), "sha256": hashlib.sha256(told.encode()).hexdigest()}


def run_cell(
    study: MixingStudy, cell: Cell, folder: Path, *, progress: Progress | None = None, note: Note = print
) -> CellScores:
    """Trains and measures a cell, or reads what it reached; goes on with a training that was stopped.

    Args:
        study: that it is of.
        cell: which.
        folder: of the study; it gets a folder for the cell.
        progress: told about steps and losses.
        note: told of damaged checkpoints.

    Raises:
        SimspineError: the folder holds the cell of another study or can't be written, or the training fails.
    """
    own = folder / cell.name
    make_folder(own)
    _check_cell(own / CELL_FILE, study.about(cell))
    if (own / SCORES_FILE).exists():
        return read_scores(own / SCORES_FILE)
    mix = study.mix(cell)
    trained = train_detector(
        study.run, mix, own / TRAINING, start=study.weights, progress=progress, note=note
    )
    detector = Detector.of(trained.model, study.run.model, study.run.pixels)
    found = _scores(detector, study, cell, len(mix.second), trained.steps, note)
    with atomic_write(own / SCORES_FILE) as file:
        json.dump(_plain(found), file, indent=1)
        file.write("\n")
    return found


def _check_cell(path: Path, about: dict[str, Any]) -> None:
    """Writes what the cell is; what an older one is there must be the same."""
    # As it is read back: tuples are lists, and numbers are what their text gives.
    wanted = json.loads(json.dumps(about))
    if not path.exists():
        with atomic_write(path) as file:
            json.dump(wanted, file, indent=1)
            file.write("\n")
        return
    try:
        there = json.loads(read_text(path))
    except ValueError:
        there = None
    if there != wanted:
        odd = [name for name in wanted if not isinstance(there, dict) or there.get(name) != wanted[name]]
        raise SimspineError(
            f"{place(path)} tells of a cell with another {' and '.join(odd)}; valid is the same study, which "
            "goes on, or another folder"
        )


def _scores(
    detector: Detector, study: MixingStudy, cell: Cell, pictures: int, steps: int, note: Note
) -> CellScores:
    first, second = (detect(detector, domain.test) for domain in (study.first, study.second))
    for sentence in (*told_problems(first.left_out), *told_problems(second.left_out)):
        note(sentence)
    oks, auc = detector_scores(first).oks, detector_scores(second).auc
    return CellScores(
        cell.mode, cell.fraction, pictures, steps, oks["body"].ap, oks["body"].ar, oks["spine"].ap,
        oks["spine"].ar, auc["all"], auc["spine"],
    )  # fmt: skip


def _plain(scores: CellScores) -> dict[str, Any]:
    """With nothing in the place of what is not a number, which JSON has no word for."""
    return {
        name: None if isinstance(value, float) and np.isnan(value) else value
        for name, value in dataclasses.asdict(scores).items()
    }


def read_scores(path: Path) -> CellScores:
    """What a cell reached.

    Raises:
        FileFormatError: the file is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(read_text(path))
        return CellScores(**{name: np.nan if value is None else value for name, value in found.items()})  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"{place(path)}: it holds no scores ({one_line(str(error))}); valid is the file of a finished "
            "cell, or none"
        ) from None


def study_table(study: MixingStudy, scores: Sequence[CellScores]) -> Table:
    """What the cells reached, as a table."""
    first, second = study.first.name, study.second.name
    rows = tuple(
        (
            "-" if s.mode == "none" else MODE_NAMES[s.mode], 100 * s.fraction, s.pictures, s.ap_body,
            s.ar_body, s.ap_spine, s.ar_spine, s.auc, s.auc_spine,
        )
        for s in scores
    )  # fmt: skip
    start = "random weights" if study.weights is None else f"the weights in {study.weights}"
    notes = (
        f"AP and AR are COCO's over OKS, on {len(study.first.test)} people of {first}'s test set; body are "
        "COCO's 17 keypoints, spine are 9.",
        f"AUC is on {len(study.second.test)} people of {second}'s test set, of the distance over the shorter "
        "side of the person's box, thresholds 0, 0.05, ... 0.95.",
        f"Each row is a training of {study.run.steps} steps of {study.run.batch_size} crops from {start}, "
        f"config {study.run.name}, seed {study.run.seed}; commit {commit()}.",
        "Of the paper's Figure 5 only words are at hand: AUC rises from 0.61 to 0.79 between 0 and 10 % of "
        "SimSpine, AP stays at about 0.84 beyond 2 to 5 %.",
    )
    return Table(
        "mixing",
        f"Detectors trained on {first} and a part of {second}",
        (
            "Mixed",
            "Part used (%)",
            "Pictures of it",
            "AP body",
            "AR body",
            "AP spine",
            "AR spine",
            "AUC",
            "AUC spine",
        ),
        rows,
        (0, 1, 0, 3, 3, 3, 3, 3, 3),
        f"{first} ({len(study.first.train)} people to train on) and {second} ({len(study.second.train)})",
        notes,
    )


def write_study(study: MixingStudy, scores: Sequence[CellScores], folder: Path) -> None:
    """Writes ``mixing.csv`` and ``mixing.json``, in place of older ones.

    Args:
        study: that was made.
        scores: of its cells so far.
        folder: of the study.

    Raises:
        SimspineError: a file can't be written.
    """
    with atomic_write(folder / "mixing.csv") as file:
        file.write(format_table(study_table(study, scores), "csv"))
    cells = [{**study.about(c), "scores": _plain(s)} for c, s in zip(study.cells, scores, strict=False)]
    with atomic_write(folder / "mixing.json") as file:
        json.dump({"source": study_table(study, scores).source, "cells": cells}, file, indent=1)
        file.write("\n")
