"""The builder of the data set ``simspine``."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters

import simspine_jax as ssj
from simspine_jax.clips import CLIP_FIELDS, SPLITS, split_of
from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.pictures import PICTURE_FIELDS
from simspine_jax.pipeline.dataset import (
    SYNTHETIC_SECONDS,
    UNWATCHED,
    RecordSource,
    ReleaseSource,
    SimulationSource,
    SyntheticSource,
    Watcher,
    WorkItem,
    select_items,
)
from simspine_jax.pipeline.dataset_pictures import N_PICTURES, PictureSource
from simspine_jax.pipeline.dataset_samples import SamplesSource
from simspine_jax.pipeline.records import digest_of
from simspine_jax.schema import RecordField
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES
from simspine_tfds.folders import alone, check_local, digest_of_files
from simspine_tfds.records import (
    PlainExampleWriter,
    example_of,
    features_of,
    let_tensorflow_read_array_records,
)

Origin = Literal["synthetic", "pictures", "simulation", "release", "samples"]

DEFAULT_CONFIG = "synthetic"

_SUPERVISED_CLIPS, _SUPERVISED_PICTURES = ("keypoints_2d", "keypoints_3d"), ("jpeg", "keypoints_2d")

HOMEPAGE = "https://github.com/dfki-av/simspine"

LICENSE = (
    "The code is under Apache-2.0, and the synthetic configurations are free to use. Data that you bring "
    "yourself stay under their own terms: the SimSpine release is for academic use and may not be passed on, "
    "and so is Human3.6M, from which it is derived."
)

MANUAL_DOWNLOAD_INSTRUCTIONS = """\
The configurations synthetic and synthetic_images need no files. The others read a folder that you name with
`simspine dataset build --manual-dir` (or `tfds.download.DownloadConfig(manual_dir=...)`):

* release: the official release as `simspine.h5`, or its folders `cameras/`, `models/`, `markers/` (or
  `positions/`) and `kinematics/`. Ask for it as https://github.com/dfki-av/simspine says; it is derived from
  Human3.6M (http://vision.imar.ro/human3.6m), for which you need a licence of your own.
* release_npz: the release's `*.npz` for MMPose, made by its `tools/preprocess_simspine.py`. With the
  calibrations beside them (`cameras/Calib_S1.toml` and so on, or `simspine.h5`) clips have cameras.
* pipeline: a folder that `simspine simulate --out` has written.
"""


@dataclass(eq=False)
class SimspineConfig(tfds.core.BuilderConfig):
    """A configuration.

    Attributes:
        origin: what its records are made from.
        needs: what the user has to bring, and from where.
    """

    origin: Origin = "synthetic"
    needs: str = "no files"

    @property
    def is_made(self) -> bool:
        """Whether its records are synthetic, made from nothing but options."""
        return self.origin in ("synthetic", "pictures")


class Builder(tfds.core.GeneratorBasedBuilder):
    """Clips, or pictures, of a person with vertebra-level annotations; see the README beside this file.

    Args:
        seconds: of each trial of synthetic clips; `SYNTHETIC_SECONDS` if not given.
        pictures: how many pictures are rendered; `N_PICTURES` if not given.
        subjects: only these; all if none are given.
        actions: only these; all if none are given.
        seed: of synthetic data; 0 if not given.
        file_format: of TFDS's; ArrayRecord if nothing else is said, which `tfds.load` and `tfds.data_source`
            both read, the latter without TensorFlow.
        kwargs: those of `tfds.core.GeneratorBasedBuilder`; ``data_dir`` must be a folder of the file system.

    Options that are given must be those of the data set that is there already, else it is neither read nor
    taken for prepared.

    Attributes:
        watcher: told how far the work is.
        anew: whether to use nothing that an unfinished build of the same settings has left.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}  # noqa: RUF012 - TFDS reads it from the class
    BUILDER_CONFIGS = [  # noqa: RUF012
        SimspineConfig(
            name="synthetic", description="Synthetic captures with known truth; nobody was recorded."
        ),
        SimspineConfig(
            name="synthetic_images",
            description="Rendered pictures of synthetic people, a person each; nobody was photographed.",
            origin="pictures",
        ),
        SimspineConfig(
            name="release",
            description="The official release, which you must obtain.",
            origin="release",
            needs=f"the official release, simspine.h5 or its folders, which {HOMEPAGE} tells how to get",
        ),
        SimspineConfig(
            name="release_npz",
            description="The official release's samples for MMPose, which you must obtain or make.",
            origin="samples",
            needs=f"the official release's .npz for MMPose, which {HOMEPAGE} tells how to get or make",
        ),
        SimspineConfig(
            name="pipeline",
            description="A folder that 'simspine simulate' has written.",
            origin="simulation",
            needs="a folder that 'simspine simulate --out' has written",
        ),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = DEFAULT_CONFIG
    MANUAL_DOWNLOAD_INSTRUCTIONS = MANUAL_DOWNLOAD_INSTRUCTIONS

    def __init__(
        self,
        *,
        seconds: float | None = None,
        pictures: int | None = None,
        subjects: Sequence[str] | None = None,
        actions: Sequence[str] | None = None,
        seed: int | None = None,
        file_format: str | file_adapters.FileFormat | None = None,
        **kwargs: Any,
    ):
        self._seconds = SYNTHETIC_SECONDS if seconds is None else seconds
        self._n_pictures = N_PICTURES if pictures is None else pictures
        self._seed = 0 if seed is None else seed
        self._subjects, self._actions = (tuple(dict.fromkeys(names or ())) for names in (subjects, actions))
        words = {"seconds": seconds, "pictures": pictures, "subjects": subjects, "actions": actions}
        self._given = {name for name, value in (words | {"seed": seed}).items() if value is not None}
        self._work: Path | None = None
        self.anew = False
        self._with_beam = False
        self.watcher = UNWATCHED
        self._counts: dict[str, Counter[str]] = {}
        check_local(kwargs.get("data_dir") or os.environ.get("TFDS_DATA_DIR"))
        super().__init__(file_format=file_format, **kwargs)
        if file_format is None and not self.data_path.exists():
            self.info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD, override=True)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=features_of(self._fields),
            supervised_keys=_SUPERVISED_PICTURES if self._has_pictures else _SUPERVISED_CLIPS,
            homepage=HOMEPAGE,
            license=LICENSE,
            metadata=tfds.core.MetadataDict(
                options=self.options, keypoint_names=list(KEYPOINT_NAMES), axis_names=list(AXIS_NAMES)
            ),
        )

    @property
    def config(self) -> SimspineConfig:
        """The configuration."""
        config = self.builder_config
        assert isinstance(config, SimspineConfig)
        return config

    @property
    def format_name(self) -> str:
        """Of the files."""
        return cast(file_adapters.FileFormat, self.info.file_format).value

    @property
    def _has_pictures(self) -> bool:
        return self.config.origin == "pictures"

    @property
    def _fields(self) -> tuple[RecordField, ...]:
        return PICTURE_FIELDS if self._has_pictures else CLIP_FIELDS

    @property
    def options(self) -> dict[str, Any]:
        """What decides the records besides the configuration and its files; it is stored as metadata."""
        options: dict[str, Any] = {"subjects": list(self._subjects), "actions": list(self._actions)}
        if self.config.is_made:
            options["seed"] = self._seed
            options |= {"pictures": self._n_pictures} if self._has_pictures else {"seconds": self._seconds}
        return options

    def download_and_prepare(self, **kwargs: Any) -> None:
        """As TFDS's, alone in its folder; a build that was killed leaves nothing behind.

        Raises:
            SimspineError: a manual file is missing or damaged, another process builds the same, or the
                folder holds the data set with other options than those that are given.
        """
        with alone(Path(self.data_dir)):
            self.prepare_alone(**kwargs)

    def prepare_alone(self, **kwargs: Any) -> None:
        """`download_and_prepare` for who has locked the folder."""
        mode = getattr(kwargs.get("download_config"), "download_mode", None)
        if mode is None or not mode.overwrite_dataset:
            self._check_options()
        super().download_and_prepare(**kwargs)

    def as_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """As TFDS's.

        Raises:
            SimspineError: the data set was prepared with other options than those that are given.
        """
        self._check_options()
        return super().as_dataset(*args, **kwargs)

    def as_data_source(self, *args: Any, **kwargs: Any) -> Any:
        """As TFDS's.

        Raises:
            SimspineError: the data set was prepared with other options than those that are given.
        """
        self._check_options()
        return super().as_data_source(*args, **kwargs)

    def _check_options(self) -> None:
        """Refuses what was prepared with other options than those that are given."""
        stored = dict(self.info.metadata or {}).get("options") if self.data_path.exists() else None
        given = {name: value for name, value in self.options.items() if name in self._given}
        if stored is not None and any(stored.get(name) != value for name, value in given.items()):
            raise SimspineError(
                f"{self.data_dir} holds this data set with other options ({options_text(stored)}) than those "
                f"asked for ({options_text(given)}); valid are the same, or another data_dir"
            )

    def manual_digest(self, folder: Path) -> str:
        """Of the files of a manual folder that this configuration reads."""
        is_release = self.config.origin == "release"  # of which no file needs to be read through for this
        source = ReleaseSource(folder) if is_release else self._manual_source(folder)
        return digest_of_files(folder, source.files())

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        self._with_beam = download_config.beam_runner is not None or download_config.beam_options is not None
        super()._download_and_prepare(dl_manager, download_config)
        metadata = cast(tfds.core.MetadataDict, self.info.metadata)
        if not self._with_beam:  # whose workers count apart
            metadata.update(counts={split: dict(counted) for split, counted in self._counts.items()})
        if not self.config.is_made:
            metadata.update(manual_files=self.manual_digest(_manual_dir(dl_manager)))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        with _telling(self._needs):
            source = self._source(dl_manager)
            items = source.items()
        if not self.config.is_made:  # else only what is asked for is there
            items = select_items(items, self._subjects, self._actions)
        self.watcher.expect(sum(item.n_trials for item in items))
        splits = {split: [item for item in items if split_of(item.subject) == split] for split in SPLITS}
        return {s: self._generate_examples(source, found, s) for s, found in splits.items() if found}

    def _generate_examples(self, source: RecordSource, items: Sequence[WorkItem], split: str) -> Any:
        if self._with_beam:
            import apache_beam as beam  # pyright: ignore[reportMissingImports]

            return (
                beam.Create(items)
                | beam.Reshuffle()
                | beam.FlatMap(partial(examples_of, source, needs=self._needs))
            )
        return self._counted(source, items, split)

    def _counted(
        self, source: RecordSource, items: Sequence[WorkItem], split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        self._counts[split] = Counter()
        for item in items:
            for key, example in examples_of(source, item, self.watcher, needs=self._needs):
                self._counts[split].update(_counts_of(example))
                yield key, example

    def _source(self, dl_manager: Any) -> RecordSource:
        match self.config.origin:
            case "synthetic":
                names, work = (self._subjects, self._actions), self._work_folder(dl_manager)
                return SyntheticSource(work, self._seconds, *names, self._seed)
            case "pictures":
                names, work = (self._subjects, self._actions), self._work_folder(dl_manager)
                return PictureSource(work, *names, self._n_pictures, self._seed)
            case _:
                return self._manual_source(_manual_dir(dl_manager))

    def _manual_source(self, folder: Path) -> RecordSource:
        match self.config.origin:
            case "simulation":
                return SimulationSource(folder)
            case "release":
                return ReleaseSource.at(folder)
            case _:
                return SamplesSource(folder)

    @property
    def _needs(self) -> str:
        """What is told of files that can't be read; nothing where the builder has made them."""
        return "" if self.config.is_made else self.config.needs

    def _work_folder(self, dl_manager: Any) -> Path:
        """What is made goes to a folder that a later run of the same settings takes up."""
        settings = (ssj.__version__, str(self.version), self.config.name, self.options)
        name = digest_of(repr(settings).encode())[:16]
        self._work = Path(dl_manager.download_dir) / f"simspine-{self.config.name}-{name}"
        if self.anew:
            shutil.rmtree(self._work, ignore_errors=True)
        return self._work

    def _post_download_and_prepare_hook(self) -> None:
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)

    def _log_download_bytes(self) -> None:
        """Nothing: TFDS would print that it downloads."""

    def _log_download_done(self) -> None:
        """Nothing, likewise."""

    def _example_writer(self) -> PlainExampleWriter:
        return PlainExampleWriter(cast(file_adapters.FileFormat, self.info.file_format))


def examples_of(
    source: RecordSource, item: WorkItem, watcher: Watcher = UNWATCHED, needs: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys and examples of an item's records.

    Args:
        source: of the item.
        item: to make.
        watcher: told how far it is.
        needs: told with a file that can't be read: what the user has to bring.
    """
    with _telling(needs):
        for key, record in source.records(item, watcher):
            yield key, example_of(record)


def options_text(options: dict[str, Any]) -> str:
    """Options of a data set in words."""
    shown = {k: (" ".join(v) or "all") if isinstance(v, list) else v for k, v in options.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _counts_of(example: dict[str, Any]) -> dict[str, int]:
    frames, views = (len(example.get(name, (1,))) for name in ("times", "camera_names"))
    return {"frames": frames, "view_frames": frames * views, "synthetic": int(example["is_synthetic"])}


@contextmanager
def _telling(needs: str) -> Iterator[None]:
    """Adds to what is wrong with a file how to get a right one."""
    try:
        yield
    except FileFormatError as error:
        if not needs:
            raise
        raise FileFormatError(f"{error}; this configuration reads {needs}") from None


def _manual_dir(dl_manager: Any) -> Path:
    """The folder of files that the user brings.

    Raises:
        FileFormatError: it is not there.
    """
    try:
        folder = Path(dl_manager.manual_dir)
    except AssertionError as error:
        what = str(error).partition(". ")[0].removeprefix("Manual directory ")
        raise FileFormatError(
            f"{what}; valid is the folder that --manual-dir names, in Python "
            "download_config=tfds.download.DownloadConfig(manual_dir=...)"
        ) from None
    if folder.is_file():
        raise FileFormatError(f"{folder} is a file; valid is its folder, {folder.parent}")
    return folder


let_tensorflow_read_array_records()
