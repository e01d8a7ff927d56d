"""Reports as one page each, for a trial and for a set: pictures, tables, events; no network, no script.

Pictures are inside the page, so that a double click opens it anywhere. Everything that comes from data is
escaped.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from simspine_jax.annotations import QualityEvent, SpineTrial
from simspine_jax.io.files import atomic_write
from simspine_jax.statistics import (
    SetStatistics,
    SpineAngles,
    back_share,
    counted,
    gather_statistics,
    seen_names,
    spine_angles,
    spine_words,
)
from simspine_jax.tables import Table, format_table
from simspine_jax.validation import (
    TWO_MEASURES,
    curvature_table,
    flexion_gradient_table,
    lumbar_motion_table,
    neck_coverage_table,
    quality_table,
    reference_table,
    validation_tables,
)
from simspine_jax.viz.figures import (
    errors_figure,
    lumbar_ranges_figure,
    neck_figure,
    png_bytes,
    thoracolumbar_figure,
)
from simspine_jax.viz.trial_figures import (
    curvature_figure,
    lumbar_figure,
    neck_over_time_figure,
    quality_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_EVENTS = 300
"""Rows of the events table; a page with more is no longer read. The quality table's file has all."""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1c1c1c; background: #fff;
  max-width: 72rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: 0.3rem; }
h2 { font-size: 1.25rem; margin-top: 2.4rem; border-bottom: 1px solid #ddd; padding-bottom: 0.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1.2rem; margin: 0.8rem 0; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
nav a { margin-right: 1.1rem; white-space: nowrap; display: inline-block; } a { color: #0058a3; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; border: 1px solid #eee; }
.notice { border: 2px solid #b03a00; background: #fff1e6; color: #b03a00; font-weight: 600;
  padding: 0.5rem 0.8rem; }
figcaption { color: #444; font-size: 0.9rem; margin-bottom: 0.3rem; }
.table { overflow-x: auto; } .table figcaption { font-weight: 600; color: #1c1c1c; font-size: 1rem; }
table { border-collapse: collapse; font-size: 0.85rem; line-height: 1.3; }
th, td { padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }
th { border-bottom: 2px solid #bbb; vertical-align: bottom; font-weight: 600; }
tbody tr:nth-child(even) { background: #fafafa; }
.n { text-align: right; font-variant-numeric: tabular-nums; } td.n, td.s { white-space: nowrap; }
.remarks p { margin: 0.15rem 0; font-size: 0.8rem; color: #555; max-width: 60rem; }
.nothing { color: #777; font-style: italic; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")  # noqa: E501


def write_trial_report(
    path: str | os.PathLike[str],
    trial: SpineTrial,
    links: Mapping[str, str] | None = None,
    *,
    facts: Mapping[str, str] | None = None,
    tables: Sequence[Table] = (),
) -> None:
    """Writes the report of one trial: quality, curvature, angles, range of motion, errors, tables.

    What the trial doesn't hold is said in words where its picture would be.

    Args:
        path: of the page.
        links: files that belong to it, such as the viewer's page: words to a path relative to the report's.
        facts: what else is known of it, such as the subject's height.
        tables: that go before its own, such as errors against a truth.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        SimspineError: the file can't be written.
    """
    statistics = gather_statistics([trial])
    sections = dict(_trial_sections(trial, spine_angles(trial), statistics, tables))
    names, share = seen_names(trial), back_share(trial)
    about = {
        "Subject": trial.subject,
        "Action": trial.action,
        "Frames": f"{trial.n_frames} at {trial.rate_hz:g}/s ({trial.n_frames / trial.rate_hz:.1f} s)",
        "Usable": _share(int(trial.usable.sum()), trial.n_frames),
        "Repaired": f"{_share(int(trial.repaired.sum()), trial.n_frames)}, "
        f"and {counted(len(trial.gaps_filled), 'short gap')} of markers filled",
        "Cameras": ", ".join(trial.camera_names) or "not stated",
        "Spine keypoints seen": "not stated" if names is None or share is None else spine_words(names, share),
        **(facts or {}),
        "Data": trial.source or "source not stated",
    }
    title = f"Spine annotations of {trial.name}"
    write_page(path, title, statistics.notices, about, sections, links or {})


def write_set_report(
    path: str | os.PathLike[str],
    trials: Iterable[SpineTrial] | SetStatistics,
    links: Mapping[str, str] | None = None,
    *,
    facts: Mapping[str, str] | None = None,
    tables: Sequence[Table] = (),
    unverified: bool = False,
) -> None:
    """Writes the report of a set: the paper's Figures 3 and 4, errors, validation tables, a row a trial.

    Args:
        path: of the page.
        trials: read once, one at a time; or what `gather_statistics` made of them.
        links: files that belong to it, such as the trials' reports: words to a path relative to the report's.
        facts: what else is known of it.
        tables: that go before its own, such as errors against a truth.
        unverified: whether to show values of the literature that are recalled or without a primary source.

    Raises:
        ShapeError: there is no trial.
        MissingDependencyError: matplotlib is not installed.
        SimspineError: the file can't be written.
    """
    statistics = trials if isinstance(trials, SetStatistics) else gather_statistics(trials)
    whole = statistics.whole
    about = {
        "Trials": str(whole.n_trials),
        "Subjects": ", ".join(statistics.by_subject),
        "Actions": ", ".join(statistics.by_action),
        "Usable": _share(whole.n_usable, whole.n_frames),
        **(facts or {}),
        "Data": statistics.source,
    }
    sections = dict(_set_sections(statistics, tables, unverified))
    write_page(path, "Validation of spine annotations", statistics.notices, about, sections, links or {})


def _trial_sections(
    trial: SpineTrial, angles: SpineAngles, statistics: SetStatistics, more: Sequence[Table]
) -> Iterator[tuple[str, str]]:
    source = trial.source or "source not stated"
    curvatures = (angles.lordosis, angles.kyphosis, angles.body_lordosis, angles.body_kyphosis)
    text = (
        "Faults before (light) and after repair (dark), and repairs; a bar is at least a pixel wide. "
        "Repaired frames have an interpolated pose; a short gap of one marker is filled before any pose."
    )
    timeline = picture_html(quality_figure(trial), text, source)
    events = _html(_events_table(trial.events, source)) if trial.events else _nothing("no events")
    yield "Quality", timeline + events
    if _finite(*curvatures):
        yield "Curvature", picture_html(curvature_figure(trial, angles), f"Over time. {TWO_MEASURES}", source)
    else:
        yield "Curvature", _nothing("no curvature and no keypoints from which it could be computed")
    if _finite(angles.rotations):
        pictures = (
            picture_html(lumbar_figure(trial, angles), "Rotations of the lumbar spine over time.", source),
            picture_html(neck_over_time_figure(trial, angles), "Rotation of the neck over time.", source),
        )
        yield "Lumbar and neck angles", "".join(pictures)
        yield "Range of motion", _ranges(statistics)
    else:
        yield "Lumbar and neck angles", _nothing("no joint angles")
    yield "Reprojection and residuals", _errors(statistics)
    tables = (
        *more, curvature_table(statistics, "action"), lumbar_motion_table(statistics),
        flexion_gradient_table(statistics), neck_coverage_table(statistics),
        quality_table(statistics, "action"), reference_table(),
    )  # fmt: skip
    yield "Tables", "".join(map(_html, tables))


def _set_sections(
    statistics: SetStatistics, more: Sequence[Table], unverified: bool
) -> Iterator[tuple[str, str]]:
    source = statistics.source
    text = (
        f"Left: lordosis and kyphosis by action. {TWO_MEASURES} Right: range of motion by lumbar level, "
        f"{statistics.how_known} (solid) beside what is known of the literature (dashed). "
        "Redrawn for these data after the SIMSPINE paper's Figure 3."
    )
    drawn = thoracolumbar_figure(statistics, unverified=unverified)
    yield "Thoracolumbar spine", picture_html(drawn, text, source)
    text = "Rotations of the neck by action. Redrawn for these data after the SIMSPINE paper's Figure 4."
    yield "Cervical spine", picture_html(neck_figure(statistics, unverified=unverified), text, source)
    yield "Reprojection and residuals", _errors(statistics)
    tables = (*more, *validation_tables(statistics, unverified=unverified))
    yield "Tables", "".join(map(_html, tables))
    yield "Trials", _html(_trials_table(statistics))


def _ranges(statistics: SetStatistics) -> str:
    text = (
        f"Range from the 5th to the 95th percentile, {statistics.how_known} (solid), beside what is known of "
        "the literature (dashed)."
    )
    return picture_html(lumbar_ranges_figure(statistics), text, statistics.source)


def _errors(statistics: SetStatistics) -> str:
    """Reprojection error by camera and residual by marker, or words for what is missing."""
    parts = []
    for tallies, title, unit, text, missing in (
        (
            statistics.reprojection_px, "Reprojection error by camera", "px",
            "Distance of the projected keypoint from the detected one, all keypoints, usable frames.",
            "no reprojection errors",
        ),
        (
            statistics.residuals_mm, "Residual by marker", "mm",
            "Distance of the model's marker from its target, usable frames.", "no marker residuals",
        ),
    ):  # fmt: skip
        if any(tally.count for tally in tallies.values()):
            figure = errors_figure(tallies, title, unit, statistics.source, statistics.notices)
            parts.append(picture_html(figure, f"{title}. {text}", statistics.source))
        else:
            parts.append(_nothing(missing))
    return "".join(parts)


def _events_table(events: tuple[QualityEvent, ...], source: str) -> Table:
    rows = tuple(
        (
            event.stage, event.first_frame, event.last_frame, event.what, event.reason, event.outcome,
            event.value, event.limit, event.unit,
        )
        for event in events[:MAX_EVENTS]
    )  # fmt: skip
    columns = ("Stage", "First frame", "Last frame", "What", "Reason", "Outcome", "Value", "Limit", "Unit")
    left = len(events) - len(rows)
    notes = (f"{left} more events are left out here.",) if left > 0 else ()
    return Table("events", "Events", columns, rows, (0, 0, 0, 0, 0, 0, 2, 2, 0), source, notes)


def _trials_table(statistics: SetStatistics) -> Table:
    rows = tuple(
        (r.name, r.n_frames, r.n_usable, 100 * r.n_usable / r.n_frames if r.n_frames else None, r.n_repaired,
         r.n_gaps, r.n_events, None if r.back_seen is None else 100 * r.back_seen, r.source or "not stated")
        for r in statistics.trials
    )  # fmt: skip
    columns = (
        "Trial", "Frames", "Usable", "Usable (%)", "Repaired", "Gaps of markers filled", "Events",
        "Back seen (%)", "Source",
    )  # fmt: skip
    decimals = (0, 0, 0, 1, 0, 0, 0, 1, 0)
    return Table("trials", "Trials", columns, rows, decimals, statistics.source, statistics.notices)


def _share(part: int, whole: int) -> str:
    share = f" ({100 * part / whole:.1f} %)" if whole else ""
    return f"{part} of {whole} frames{share}"


def _finite(*arrays: np.ndarray) -> bool:
    return any(np.isfinite(array).any() for array in arrays)


def _html(table: Table) -> str:
    return format_table(table, "html")


def _nothing(what: str) -> str:
    return f'<p class="nothing">The data hold {html.escape(what)}.</p>\n'


def picture_html(figure: Figure, text: str, source: str) -> str:
    """A figure inside a page, under a text; its description tells where the data come from too."""
    data = base64.b64encode(png_bytes(figure)).decode("ascii")
    # The picture itself says where its data come from; so that a search finds it, its description does too.
    described = html.escape(f"{text} Data: {source}")
    return (
        f"<figure><figcaption>{html.escape(text)}</figcaption>"
        f'<img alt="{described}" src="data:image/png;base64,{data}"></figure>\n'
    )


def write_page(
    path: str | os.PathLike[str],
    title: str,
    notices: Sequence[str],
    facts: Mapping[str, str],
    sections: Mapping[str, str],
    links: Mapping[str, str],
) -> None:
    """Writes a page with what must be known, facts, links, contents and sections.

    Args:
        path: of the page.
        title: in a sentence.
        notices: sentences in boxes above everything.
        facts: words to words; escaped here.
        sections: headings to HTML, in which everything from data is escaped already.
        links: words to paths relative to the page.

    Raises:
        SimspineError: the file can't be written.
    """
    known = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    # Quoted, a path stays a path: no other scheme can be meant.
    beside = "".join(
        f'<a href="{html.escape(quote(target))}">{html.escape(words)}</a>' for words, target in links.items()
    )
    names = {name: f"part{i}" for i, name in enumerate(sections)}
    contents = "".join(f'<a href="#{part}">{html.escape(name)}</a>' for name, part in names.items())
    told = "".join(f'<p class="notice">{html.escape(notice)}</p>' for notice in notices)
    parts = [told, f"<dl>{known}</dl>", f"<nav>{beside}</nav>" if beside else "", f"<nav>{contents}</nav>"]
    parts += [f'<h2 id="{names[name]}">{html.escape(name)}</h2>\n{body}' for name, body in sections.items()]
    with atomic_write(path) as file:
        file.write(_PAGE.substitute(title=html.escape(title), body="\n".join(parts)))
