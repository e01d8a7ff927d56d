"""The report of a fitted subject as one page: sizes, angles over time, and what the cameras don't show."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping

from simspine_jax.pipeline.fit_results import SHARE, FittedLumbar, FittedMotion, FittedSubject
from simspine_jax.statistics import SYNTHETIC_NOTICE, counted
from simspine_jax.tables import Table, format_table
from simspine_jax.viz.fit_figure import fit_figure, interval_mm, lengths_figure
from simspine_jax.viz.report import picture_html, write_page

_BANDS = (
    f"They hold the truth with {SHARE:.0%} where errors and motion are as the fit takes them to be. Of "
    "synthetic bodies of the model's kind they held it a little less often, those of lengths least (rows "
    "coverage90 of the benchmark). A detector's constant error that looks like a size is taken for one."
)


def write_fit_report(
    path: str | os.PathLike[str],
    result: FittedSubject,
    motions: Mapping[str, FittedMotion],
    links: Mapping[str, str] | None = None,
) -> None:
    """Writes the report of a fitted subject.

    Args:
        path: of the page.
        result: of the subject.
        motions: of its trials, by their names.
        links: files that belong to it, such as pages that play the trials: words to a path relative to it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        SimspineError: the file can't be written.
    """
    source = _source(result)
    frames = sum(trial.n_frames for trial in result.trials)
    facts = {
        "Fit": f"{result.status}, {counted(result.steps, 'step')} in the last round",
        "Trials": f"{len(result.trials)}, {counted(frames, 'frame')}",
        "Errors are alike over": f"{result.correlation_frames:.1f} frames",
        "Median reprojection error": _pixels(result),
        "Intervals": _BANDS,
        "Data": source,
    }
    sections = {"Segment lengths": _lengths(result, source), "Not seen by these cameras": _unseen(result)}
    if result.lumbar is not None:
        sections["Lumbar levels"] = _lumbar(result.lumbar, source)
    sections |= dict(_angles(result, motions))
    synthetic = (SYNTHETIC_NOTICE,) if any(trial.truth_mpjpe_mm for trial in result.trials) else ()
    notices = (*synthetic, *result.doubts)
    write_page(path, f"Fit of {result.subject}", notices, facts, sections, links or {})


def _source(result: FittedSubject) -> str:
    sources = list(dict.fromkeys(trial.source or "source not stated" for trial in result.trials))
    return "; ".join(sources) or "source not stated"


def _pixels(result: FittedSubject) -> str:
    parts = (
        (result.chain_px, "before the fit"), (result.markers_px, "after it"),
        (result.fit_px, "beside what the detector always errs by"),
    )  # fmt: skip
    return ", ".join(f"{value:.2f} px {words}" for value, words in parts if value is not None) or "not known"


def _lengths(result: FittedSubject, source: str) -> str:
    if not result.lengths:
        return _paragraph("The model has none of the keypoints that lengths are measured between.")
    rows = tuple(
        (x.name, x.length_mm, x.length_mm - interval_mm(x), x.length_mm + interval_mm(x), x.std_mm)
        for x in result.lengths
    )
    share = f"{SHARE:.0%}"
    columns = ("Segment", "Length (mm)", f"{share} from (mm)", "to (mm)", "Deviation (mm)")
    title = "Lengths between keypoints in the default pose, the mean of both sides"
    table = Table("lengths", title, columns, rows, (0, 1, 1, 1, 1), source)
    text = f"{title}. Right: how far the truth may be from each with {share}."
    return picture_html(lengths_figure(result, source), text, source) + format_table(table, "html")


def _unseen(result: FittedSubject) -> str:
    if not result.unseen:
        return _paragraph("These cameras tell something of each free coordinate.")
    names = "".join(f"<li>{html.escape(name)}</li>" for name in result.unseen)
    told = "Of these free coordinates the data tell next to nothing; they are where their priors have them."
    return f"{_paragraph(told)}<ul>{names}</ul>\n"


def _lumbar(found: FittedLumbar, source: str) -> str:
    are = "free" if found.treatment == "free" else "in a rhythm of their own"
    told = [
        f"The levels are {are}; {found.verdict}. That takes keypoints' errors as independent of one another, "
        "and can be for what is wrong where they are large."
    ]
    if found.log_bayes_factor is not None:
        factor = f"{found.log_bayes_factor:.1f}"
        told.append(f"The logarithm of the Bayes factor against the model's rhythm is {factor}.")
    if found.unmarked:
        names = ", ".join(found.unmarked)
        told.append(f"Without a marker, so that the levels next to them are told apart by little: {names}.")
    text = "".join(map(_paragraph, told))
    if not found.levels:
        return text
    rows = tuple((x.name, x.share, x.std, x.model_share, x.prior_std) for x in found.levels)
    title = "Shares of the lumbar motion; where both deviations are alike, nothing was learned"
    columns = ("Level", "Share", "Deviation", "The model's share", "Deviation beforehand")
    return text + format_table(Table("lumbar", title, columns, rows, (0, 3, 3, 3, 3), source), "html")


def _angles(result: FittedSubject, motions: Mapping[str, FittedMotion]) -> Iterator[tuple[str, str]]:
    for trial in result.trials:
        motion, source = motions[trial.name], trial.source or "source not stated"
        if not motion.angle_names:
            yield trial.name, _paragraph("The model has no spine to measure angles of.")
            continue
        text = f"Over time, with {SHARE:.0%} bands; frames without data of their own are on a red ground."
        yield trial.name, picture_html(fit_figure(motion, trial.name, source), text, source)


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"
