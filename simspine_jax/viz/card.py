"""What the cards of clips and of pictures have in common: facts, sections, and how they are written."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from simspine_jax.io.files import atomic_write
from simspine_jax.tables import Table, format_table
from simspine_jax.viz.figures import write_figure
from simspine_jax.viz.report import picture_html, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "card.html"
"""Of the page in its folder; pictures and tables lie in folders beside it."""

NOT_THE_PAPERS = (
    "A synthetic set: its figures describe a simulation and are not to be compared with the paper's, "
    "which come from recordings of people."
)
"""What the card of a synthetic set says above everything."""

NOT_STATED = "not stated"

_FIGURE_SUFFIXES, _TABLE_SUFFIXES = ("png", "svg"), ("csv", "md")


@dataclass(frozen=True)
class CardFacts:
    """What of a dataset its records don't tell.

    Attributes:
        name: such as ``simspine/synthetic``.
        version: of the dataset.
        license: in words.
        description: what it is, in a sentence or two.
        homepage: address; empty if there is none.
    """

    name: str
    version: str = NOT_STATED
    license: str = NOT_STATED
    description: str = ""
    homepage: str = ""

    def about(self, more: Mapping[str, str]) -> dict[str, str]:
        """The head of the card: these facts and then others."""
        return {
            **({"What it is": self.description} if self.description else {}),
            "Version": self.version,
            "Licence": self.license,
            **({"Homepage": self.homepage} if self.homepage else {}),
            **more,
        }


@dataclass(frozen=True)
class CardFigure:
    """A figure and what is said above it."""

    drawn: Figure
    text: str


@dataclass(frozen=True)
class CardPhoto:
    """A JPEG file and what is said above it."""

    jpeg: bytes
    text: str

    def html(self) -> str:
        """As a part of a page."""
        data, text = base64.b64encode(self.jpeg).decode("ascii"), html.escape(self.text)
        return (
            f"<figure><figcaption>{text}</figcaption>"
            f'<img alt="{text}" src="data:image/jpeg;base64,{data}"></figure>\n'
        )


@dataclass(frozen=True)
class CardSection:
    """A part of the page: what is missing, figures and photos by the names of their files, tables."""

    heading: str
    figures: Mapping[str, CardFigure] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    missing: str = ""
    photos: Mapping[str, CardPhoto] = field(default_factory=dict)

    def html(self, source: str) -> str:
        """As a part of a page."""
        said = f'<p class="nothing">{html.escape(self.missing)}</p>\n' if self.missing else ""
        photos = "".join(photo.html() for photo in self.photos.values())
        figures = "".join(picture_html(p.drawn, p.text, source) for p in self.figures.values())
        return said + photos + figures + "".join(format_table(table, "html") for table in self.tables)


def write_sections(
    out: Path,
    facts: CardFacts,
    notices: Sequence[str],
    more: Mapping[str, str],
    sections: Sequence[CardSection],
    source: str,
) -> list[Path]:
    """Writes a card into a folder; each file is whole or not there.

    The page is `PAGE` and holds all; ``figures`` has its figures as PNG and SVG and its photos as JPEG,
    ``tables`` its tables as CSV and Markdown.

    Args:
        out: the folder; made where it is missing.
        facts: of the dataset.
        notices: sentences in boxes above everything.
        more: facts that the records tell.
        sections: of the page.
        source: of the data, in words.

    Returns:
        the files in the order in which they were written, the page first.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        SimspineError: a file can't be written.
    """
    page = {section.heading: section.html(source) for section in sections}
    write_page(out / PAGE, f"Data card of {facts.name}", notices, facts.about(more), page, {})
    written = [out / PAGE]
    for section in sections:
        for name, figure in section.figures.items():
            for suffix in _FIGURE_SUFFIXES:
                written.append(out / "figures" / f"{name}.{suffix}")
                write_figure(written[-1], figure.drawn)
        for name, photo in section.photos.items():
            written.append(out / "figures" / f"{name}.jpg")
            with atomic_write(written[-1], binary=True) as file:
                file.write(photo.jpeg)
    for table in (table for section in sections for table in section.tables):
        for suffix in _TABLE_SUFFIXES:
            written.append(out / "tables" / f"{table.name}.{suffix}")
            with atomic_write(written[-1]) as file:
                file.write(format_table(table, suffix))
    return written
