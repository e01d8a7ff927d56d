"""What a training is: a frozen description that a config file holds and a checkpoint keeps.

A config is one Python file with a `Run` called ``RUN``. Single settings are changed by name, as
``data.source=truth``; what a run was in the end is written as JSON beside its checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError, one_line
from simspine_jax.io.files import PathLike, atomic_write, place, read_text
from simspine_jax.lifting.kinematic import KinematicOptions
from simspine_jax.lifting.motion_agformer import MotionAGFormerOptions
from simspine_jax.lifting.simple_baseline import SimpleBaselineOptions

ModelOptions = SimpleBaselineOptions | MotionAGFormerOptions | KinematicOptions

MODELS: Mapping[str, type[Any]] = {
    "simple_baseline": SimpleBaselineOptions,
    "motion_agformer": MotionAGFormerOptions,
    "kinematic": KinematicOptions,
}
"""Kinds of models, as run files call them, and their options."""

CONFIGS = Path(__file__).with_name("configs")

AnyRun = TypeVar("AnyRun")
"""A `Run`, or another frozen dataclass of settings, as `detector_run.DetectorRun`."""


@dataclass(frozen=True)
class DataOptions:
    """What a lifter is trained and evaluated on.

    Attributes:
        config: of the dataset.
        keypoints: ``spine`` for the fifteen of the reduced release, ``all`` for the 37.
        source: of the 2D keypoints: ``detected``, or ``truth``, the target's own pictures.
        target: ``truth``, which only synthetic trials have, or the dataset's ``annotation``.
        rate_hz: frames of each trial and second that single frames are taken at; None for all.
        stride: frames from one window of training to the next; not for single frames.
    """

    config: str = "synthetic"
    keypoints: Literal["spine", "all"] = "all"
    source: Literal["detected", "truth"] = "detected"
    target: Literal["truth", "annotation"] = "truth"
    rate_hz: float | None = None
    stride: int = 9


@dataclass(frozen=True)
class OptimiserOptions:
    """AdamW and its learning rate.

    Attributes:
        learning_rate: after warming up.
        weight_decay: on matrices; not on biases, normalisation and other vectors.
        schedule: ``steps`` for a tenth at each of ``drops``, ``cosine`` down to ``final``.
        drops: shares of the run.
        final: share of the learning rate at the end of ``cosine``.
        warmup: steps in which the learning rate rises.
        clip: largest norm of a gradient; None for no limit.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["steps", "cosine"] = "steps"
    drops: tuple[float, ...] = (0.6, 0.85)
    final: float = 0.01
    warmup: int = 0
    clip: float | None = None


COMPUTED = "two CPU cores, computed from the network's size and never run; it is meant for a GPU"
"""For `Expected.machine`."""


@dataclass(frozen=True)
class Expected:
    """What a run is known to cost and to reach.

    Attributes:
        minutes: on that machine.
        scores: by name, such as ``spine_pmpjpe_mm``; on which data is said in the config file.
        machine: that the minutes are of, in words.
    """

    minutes: float
    scores: dict[str, float] = field(default_factory=dict)
    machine: str = "two CPU cores"


@dataclass(frozen=True)
class Run:
    """A training from start to end.

    Attributes:
        name: of its folder.
        model: which lifter, and its sizes.
        expected: cost and score.
        data: what it learns from.
        optimiser: how.
        steps: of the optimiser.
        batch_size: samples of a step, over all devices.
        seed: of the first weights, the order of the data and dropout.
        average: of the weights over steps: share that is kept in each; None for none.
        compute: arithmetic of hidden layers; weights are always float32.
        log_every: steps.
        save_every: steps.
        keep: checkpoints.
    """

    name: str
    model: ModelOptions
    expected: Expected
    data: DataOptions = DataOptions()
    optimiser: OptimiserOptions = OptimiserOptions()
    steps: int = 10_000
    batch_size: int = 256
    seed: int = 0
    average: float | None = None
    compute: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 50
    save_every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        check_counts(self)

    @property
    def frames(self) -> int | None:
        """Frames of the model's windows; None for a model of single frames."""
        return getattr(self.model, "frames", None)


def check_counts(run: Any) -> None:
    """Refuses a run whose steps, batches or average can't be.

    Raises:
        SimspineError: one of them can't.
    """
    for name in ("steps", "batch_size", "log_every", "save_every", "keep"):
        if getattr(run, name) < 1:
            raise SimspineError(f"{name} of the run {run.name} is {getattr(run, name)}; valid is 1 or more")
    if run.save_every % run.log_every:
        raise SimspineError(
            f"save_every of the run {run.name} is {run.save_every}; valid are multiples of log_every, "
            f"{run.log_every}, after which losses are looked at"
        )
    if run.average is not None and not 0 < run.average < 1:
        raise SimspineError(f"average of the run {run.name} is {run.average}; valid is between 0 and 1")


def load_run(config: str) -> Run:
    """A lifter's run by the name of a config of the package, or by the path of a Python file.

    Raises:
        UnknownNameError: there is no such config.
        FileFormatError: the file can't be run, or has no `Run` called RUN.
    """
    run = load_config(config)
    if not isinstance(run, Run):
        raise FileFormatError(f"{config}: its RUN is none of a lifter; valid is RUN = Run(...)")
    return run


def load_config(config: str) -> Any:
    """What a config of the package, or a Python file, calls RUN; see `load_run`."""
    path = Path(config)
    if path.suffix != ".py":
        path = CONFIGS / f"{config}.py"
        names = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")
        if config not in names:
            raise UnknownNameError("Config", config, "the package", names)
    read_text(path)
    try:
        found = runpy.run_path(str(path)).get("RUN")
    except SimspineError:
        raise
    except Exception as error:
        # Whatever a user's own file does wrong is told in one sentence, with the kind of error.
        raise FileFormatError(
            f"{place(path)}: it can't be run ({type(error).__name__}: {one_line(str(error))}); "
            "valid is a Python file that sets RUN"
        ) from None
    if not dataclasses.is_dataclass(found):
        raise FileFormatError(
            f"{place(path)}: it has no RUN; valid is a Python file that sets RUN = Run(...)"
        )
    return found


def with_settings(run: AnyRun, settings: Iterable[str]) -> AnyRun:
    """The run with single settings changed.

    Args:
        run: to begin with.
        settings: such as ``steps=500`` or ``data.source=truth``.

    Raises:
        SimspineError: a setting isn't ``name=value``, or its value isn't valid.
        UnknownNameError: the run has no such setting.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise SimspineError(f"The setting '{setting}' has no value; valid is NAME=VALUE")
        first, *rest = name.strip().split(".")
        value = changes.get(first, getattr(run, first, None))
        changes[first] = _changed(run, value, first, rest, text.strip(), name, _setting_names(run))
    # All at once, as what is valid together may not be so on the way.
    return dataclasses.replace(typing.cast(Any, run), **changes)


def _changed(
    part: Any, value: Any, first: str, rest: list[str], text: str, whole: str, names: list[str]
) -> Any:
    """What a field of a part becomes.

    Args:
        part: which has the field.
        value: of the field so far.
        first: the field's name.
        rest: names below it.
        text: of the new value.
        whole: the setting's name.
        names: of all of the run's settings.
    """
    hints = typing.get_type_hints(type(part))
    valid = [n for n in hints if n != "expected"]
    if first not in valid or (rest and not dataclasses.is_dataclass(value)):
        raise UnknownNameError("Setting", whole, "the run", names)
    if rest:
        inner, *deeper = rest
        new = _changed(value, getattr(value, inner, None), inner, deeper, text, whole, names)
        return dataclasses.replace(typing.cast(Any, value), **{inner: new})
    if dataclasses.is_dataclass(value):
        below = [f"{whole}.{f.name}" for f in dataclasses.fields(value)]
        raise SimspineError(f"The setting {whole} is a group; valid are {', '.join(below)}")
    return _parsed(text, hints[first], whole)


def _setting_names(part: Any, before: str = "") -> list[str]:
    """Names of all settings of a run or of a part of it."""
    names = []
    for field_ in dataclasses.fields(part):
        if (value := getattr(part, field_.name)) is not None and dataclasses.is_dataclass(value):
            names += [] if field_.name == "expected" else _setting_names(value, f"{before}{field_.name}.")
        elif field_.name != "expected":
            names.append(before + field_.name)
    return names


def _parsed(text: str, hint: Any, name: str) -> Any:
    """The value of a setting, by the type that its field has."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none":
            return None
        (hint,) = (a for a in arguments if a is not type(None))
        return _parsed(text, hint, name)
    if origin is Literal:
        if text not in arguments:
            raise SimspineError(f"The setting {name} is '{text}'; valid are {', '.join(arguments)}")
        return text
    if origin is tuple:
        return tuple(_parsed(part, arguments[0], name) for part in text.split(",") if part)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise SimspineError(f"The setting {name} is '{text}'; valid are true and false")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}[hint]
        raise SimspineError(f"The setting {name} is '{text}'; valid is {kind}") from None


def run_to_json(run: Any, kinds: Mapping[str, type[Any]] = MODELS) -> dict[str, Any]:
    """The run as JSON's types, with the kind of its model.

    Args:
        run: of any kind.
        kinds: of models, and their options.
    """
    kind = next(name for name, options in kinds.items() if type(run.model) is options)
    content = dataclasses.asdict(run)
    return content | {"model": {"kind": kind, **content["model"]}}


def write_run(path: PathLike, run: Any, kinds: Mapping[str, type[Any]] = MODELS) -> None:
    """Writes the run as JSON; arguments as in `run_to_json`."""
    with atomic_write(path) as file:
        json.dump(run_to_json(run, kinds), file, indent=1)
        file.write("\n")


def read_run(path: PathLike) -> Run:
    """A lifter's run that `write_run` wrote.

    Raises:
        FileFormatError: it is missing, damaged, of another version of this program, or none of a lifter.
    """
    return read_run_as(path, Run, MODELS, "a lifter")


def read_run_as(path: PathLike, run: type[AnyRun], kinds: Mapping[str, type[Any]], what: str) -> AnyRun:
    """A run that `write_run` wrote.

    Args:
        path: of the file.
        run: its class.
        kinds: of models, and their options.
        what: such a model is, in words.

    Raises:
        FileFormatError: as in `read_run`.
    """
    kind = model_kind(path)
    if kind not in kinds:
        raise FileFormatError(
            f"{place(path)}: it trains '{kind}', which is not {what}; valid are {', '.join(kinds)}"
        )
    try:
        content = json.loads(read_text(path))
        model = {name: value for name, value in content.pop("model").items() if name != "kind"}
        options = _rebuilt(kinds[kind], model)
        return run(**_fields_of(run, content), model=options)  # type: ignore[call-arg]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_a_run(path, error) from None


def model_kind(path: PathLike) -> str:
    """Which kind of model a run that `write_run` wrote has.

    Raises:
        FileFormatError: it is missing, damaged, or of another version of this program.
    """
    if not Path(path).exists():
        raise FileFormatError(
            f"{place(Path(path).parent)} is no folder of a training: it has no {Path(path).name}; valid is "
            "what 'simspine train' made"
        )
    try:
        return str(json.loads(read_text(path))["model"]["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_run(path, error) from None


def _not_a_run(path: PathLike, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{place(path)}: it is not a run of this version ({type(error).__name__}: "
        f"{one_line(str(error))}); valid is the run.json of a training"
    )


def _fields_of(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's values of a dataclass's fields as the types that these have."""
    hints = typing.get_type_hints(kind)
    return {name: _rebuilt(hints[name], value) for name, value in content.items()}


def _rebuilt(hint: Any, value: Any) -> Any:
    """JSON's value as the type of a field: tuples and dataclasses again."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint(**_fields_of(hint, value))
    return tuple(value) if isinstance(value, list) else value
