"""Preparing the data set from Python or the command line, and telling what is prepared."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from simspine_jax.errors import SimspineError, UnknownNameError
from simspine_jax.kinematics.curvature import VERTEBRAL_LEVELS
from simspine_jax.pipeline.dataset import SYNTHETIC_SECONDS, UNWATCHED, Watcher
from simspine_jax.pipeline.dataset_pictures import N_PICTURES
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES
from simspine_tfds.folders import alone, set_aside
from simspine_tfds.simspine_dataset_builder import DEFAULT_CONFIG, LICENSE, Builder, options_text

FILE_FORMATS = ("array_record", "tfrecord")
"""The first needs no TensorFlow; TFDS writes and reads the second with it."""


@dataclass(frozen=True)
class Request:
    """What is to be prepared.

    Attributes:
        config: of `Builder.builder_configs`.
        data_dir: TFDS's folder of data sets; None for its default.
        manual_dir: of the files that some configurations read.
        subjects: only these; empty for all.
        actions: only these; empty for all.
        seconds: of each trial of synthetic clips.
        pictures: how many pictures are rendered.
        seed: of synthetic data.
        file_format: of `FILE_FORMATS`.
        force: replace what is there, and use nothing that an unfinished build has left.
    """

    config: str = DEFAULT_CONFIG
    data_dir: Path | None = None
    manual_dir: Path | None = None
    subjects: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    seconds: float = SYNTHETIC_SECONDS
    pictures: int = N_PICTURES
    seed: int = 0
    file_format: str = FILE_FORMATS[0]
    force: bool = False


def new_builder(request: Request) -> Builder:
    """The builder of a request.

    Raises:
        UnknownNameError: there is no such configuration or file format.
        SimspineError: the data sets' folder is an address.
    """
    if request.config not in Builder.builder_configs:
        raise UnknownNameError("Configuration", request.config, "the data set", Builder.builder_configs)
    if request.file_format not in FILE_FORMATS:
        raise UnknownNameError("File format", request.file_format, "those to build", FILE_FORMATS)
    return Builder(
        config=request.config,
        data_dir=None if request.data_dir is None else request.data_dir.expanduser(),
        seconds=request.seconds,
        pictures=request.pictures,
        subjects=request.subjects,
        actions=request.actions,
        seed=request.seed,
    )


def prepare(request: Request, watcher: Watcher = UNWATCHED) -> Builder:
    """Prepares a data set, or leaves it where it is prepared with the same options.

    Raises:
        SimspineError: a name is unknown, a manual file is missing or damaged, a trial can't be solved, or the
            folder holds the data set with other options and it is not to be replaced.
    """
    folder = Path(new_builder(request).data_dir)
    with alone(folder):
        there = folder.exists()
        if there and not request.force:
            return _prepared(request)
        with set_aside(folder) if there else nullcontext():
            builder = new_builder(request)  # which has read nothing of what was there
            builder.watcher, builder.anew = watcher, request.force
            builder.prepare_alone(
                file_format=request.file_format,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=None if request.manual_dir is None else request.manual_dir.expanduser()
                ),
            )
    return builder


def _prepared(request: Request) -> Builder:
    """What is there already, if it is what is asked for."""
    builder = new_builder(request)
    metadata: dict[str, Any] = dict(builder.info.metadata or {})
    stored, files = metadata.get("options"), metadata.get("manual_files")
    valid = "valid are the same, --force to replace it, or another --data-dir"
    if stored != builder.options or builder.format_name != request.file_format:
        told = options_text({"file format": builder.format_name, **(stored or {})})
        raise SimspineError(f"{builder.data_dir} holds this data set with other options ({told}); {valid}")
    folder = request.manual_dir and request.manual_dir.expanduser()
    if files and folder and files != builder.manual_digest(folder):
        raise SimspineError(
            f"{builder.data_dir} holds this data set from other files than {request.manual_dir}; {valid}"
        )
    return builder


@dataclass(frozen=True)
class SplitFacts:
    """What a split holds; counts are None where a distributed run has made it."""

    name: str
    records: int
    frames: int | None
    view_frames: int | None
    synthetic: int | None


@dataclass(frozen=True)
class FeatureFacts:
    """A feature; sizes of None vary."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    doc: str


@dataclass(frozen=True)
class Facts:
    """What is prepared.

    Attributes:
        name: with configuration and version.
        description: of the configuration.
        folder: of the files.
        file_format: of them.
        size_bytes: of the records.
        files: names, without folder.
        options: that it was made with.
        data: on what the numbers were measured.
        splits: those that it has.
        features: in alphabetic order.
        license: of code and data.
        homepage: of the official data set.
        columns: names of keypoints, axes and levels, in the order that the arrays have them.
    """

    name: str
    description: str
    folder: str
    file_format: str
    size_bytes: int
    files: tuple[str, ...]
    options: dict[str, Any]
    data: str
    splits: tuple[SplitFacts, ...]
    features: tuple[FeatureFacts, ...]
    license: str
    homepage: str
    columns: dict[str, tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return dataclasses.asdict(self)


def facts(config: str, data_dir: Path | None = None) -> Facts:
    """What is prepared of a configuration.

    Raises:
        UnknownNameError: there is no such configuration.
        SimspineError: it is not prepared.
    """
    builder = new_builder(Request(config, data_dir))
    folder, info = Path(builder.data_dir), builder.info
    if not (folder / "dataset_info.json").is_file():
        where = "" if data_dir is None else f" --data-dir {data_dir}"
        raise SimspineError(
            f"{folder} holds no data set; make it with 'simspine dataset build --config {config}{where}'"
        )
    metadata: dict[str, Any] = dict(info.metadata or {})
    splits = tuple(
        _split_facts(name, split.num_examples, metadata.get("counts", {}).get(name, {}))
        for name, split in info.splits.items()
    )
    return Facts(
        name=info.full_name,
        description=str(builder.config.description),
        folder=str(folder),
        file_format=builder.format_name,
        size_bytes=int(info.dataset_size),
        files=tuple(sorted(name for split in info.splits.values() for name in split.filenames)),
        options=metadata.get("options", {}),
        data=_data(splits),
        splits=splits,
        features=_feature_facts(info.features),
        license=LICENSE,
        homepage=info.homepage,
        columns=_columns(info.features),
    )


def _columns(features: Any) -> dict[str, tuple[str, ...]]:
    names = {"keypoints": KEYPOINT_NAMES}
    known = {"kinematics": AXIS_NAMES, "vertebral_rotations": VERTEBRAL_LEVELS}
    return names | {name: columns for name, columns in known.items() if name in features}


def _split_facts(name: str, records: int, counts: dict[str, int]) -> SplitFacts:
    return SplitFacts(name, records, *(counts.get(key) for key in ("frames", "view_frames", "synthetic")))


def _data(splits: tuple[SplitFacts, ...]) -> str:
    known = [(split.synthetic, split.records) for split in splits if split.synthetic is not None]
    synthetic, records = (sum(column) for column in zip(*known, strict=True)) if known else (0, 0)
    if not known:
        return "not counted; 'is_synthetic' of each record tells"
    if synthetic == records:
        return "synthetic: nobody was recorded"
    return "recordings of people" if not synthetic else f"{synthetic} of {records} records are synthetic"


def _feature_facts(features: Any) -> tuple[FeatureFacts, ...]:
    return tuple(
        FeatureFacts(name, np_name(feature.np_dtype), tuple(feature.shape), feature.doc.desc or "")
        for name, feature in sorted(features.items())
    )


def np_name(dtype: Any) -> str:
    """The name of a NumPy type; ``text`` for strings."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", str(dtype))
    return "text" if name in ("object", "object_", "str", "str_", "bytes") else name.rstrip("_")
