"""OpenSim's XML documents as element trees whose elements know their line."""

from __future__ import annotations

import math
from typing import NoReturn, cast
from xml.etree import ElementTree
from xml.parsers import expat

from simspine_jax.io.cells import parse_number
from simspine_jax.io.files import PathLike, malformed, read_text, shown

MAX_DEPTH = 200
"""OpenSim's documents nest about 20 deep; deeper ones are attacks or accidents."""


class XmlElement(ElementTree.Element):
    """An element with the line of the file that it starts on."""

    line: int = 0


def parse_xml(path: PathLike) -> XmlElement:
    """Parse an XML file into its root element; comments are dropped.

    Expat is driven without its namespace mode, unlike in ElementTree's own parser, because OpenSim writes
    tags such as ``HuntCrossleyForce::ContactParametersSet``: a legal XML name, but no legal namespace.

    Raises:
        FileFormatError: unreadable or not well-formed, with a document type (which OpenSim never writes
            and which can expand to any size), or nested deeper than `MAX_DEPTH`.
    """
    text = read_text(path)
    builder = ElementTree.TreeBuilder(element_factory=XmlElement)
    # read_text has decoded the file, so the encoding that the document declares no longer applies.
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            what = f"elements nest over {MAX_DEPTH} deep"
            raise malformed(path, parser.CurrentLineNumber, what, "an OpenSim document")
        element = cast(XmlElement, builder.start(tag, attributes))
        element.line = parser.CurrentLineNumber

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_doctype(*_: object) -> NoReturn:
        raise malformed(path, parser.CurrentLineNumber, "the document has a DOCTYPE", "XML without one")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code) or "unknown error"
        what = f"the XML is broken ({reason})"
        raise malformed(path, error.lineno, what, "a complete XML document") from None
    return cast(XmlElement, builder.close())


def document_object(path: PathLike, *tags: str) -> XmlElement:
    """The OpenSim object with one of these tags that a file holds, bare or inside ``OpenSimDocument``.

    Raises:
        FileFormatError: the file can't be parsed or holds another object.
    """
    root = parse_xml(path)
    objects = [cast(XmlElement, item) for item in root] if root.tag == "OpenSimDocument" else [root]
    for item in objects:
        if item.tag in tags:
            return item
    held = ", ".join(item.tag for item in objects) or "nothing"
    raise malformed(path, root.line, f"the document holds {shown(held)}", " or ".join(tags))


def child(path: PathLike, parent: XmlElement, tag: str) -> XmlElement | None:
    """The one child with this tag, or None; raises `FileFormatError` where there are several."""
    found = [cast(XmlElement, item) for item in parent if item.tag == tag]
    if len(found) > 1:
        raise malformed(path, found[1].line, f"{describe(parent)} has {len(found)} elements {tag}", "one")
    return found[0] if found else None


def set_objects(path: PathLike, parent: XmlElement, *tags: str) -> list[XmlElement]:
    """The members of an OpenSim Set (``<objects>``), which must have one of these tags and unlike names.

    Raises:
        FileFormatError: a member of another kind, without a name, or with another's name.
    """
    container = child(path, parent, "objects")
    members = [] if container is None else [cast(XmlElement, item) for item in container]
    seen: set[tuple[str, str]] = set()
    for member in members:
        if member.tag not in tags:
            raise malformed(path, member.line, f"{parent.tag} holds {shown(member.tag)}", " or ".join(tags))
        key = member.tag, name_of(path, member)
        if key in seen:
            raise malformed(path, member.line, f"{describe(member)} occurs twice", "one of each name")
        seen.add(key)
    return members


def name_of(path: PathLike, element: XmlElement) -> str:
    """The name attribute, which must be printable and not blank."""
    name = element.get("name", "").strip()
    if not name or not name.isprintable():
        raise malformed(path, element.line, f"{element.tag} has the name {shown(name)}", "printable text")
    return name


def describe(element: XmlElement) -> str:
    """``Marker 'C7'``, fit for a one-line message."""
    name = element.get("name")
    return element.tag if name is None else f"{element.tag} {shown(name)}"


def text_of(element: XmlElement) -> str:
    """The text of an element without outer white space."""
    return (element.text or "").strip()


def numbers_of(
    path: PathLike, element: XmlElement, count: int, *, infinite: bool = False
) -> tuple[float, ...]:
    """The ``count`` numbers that an element holds, finite ones unless ``infinite`` ones are allowed.

    Raises:
        FileFormatError: another count, or something else than such numbers.
    """
    words = text_of(element).split()
    try:
        values = tuple(_number(word, infinite) for word in words)
    except ValueError:
        values = ()
    if len(values) != count or any(map(math.isnan, values)):
        kind = "number" if infinite else "finite number"
        wanted = f"one {kind}" if count == 1 else f"{count} {kind}s"
        raise malformed(path, element.line, f"{element.tag} is {shown(text_of(element))}", wanted)
    return values


def flag_of(path: PathLike, element: XmlElement) -> bool:
    """``true`` or ``false``."""
    word = text_of(element).lower()
    if word not in ("true", "false"):
        raise malformed(path, element.line, f"{element.tag} is {shown(text_of(element))}", "true or false")
    return word == "true"


def _number(word: str, infinite: bool) -> float:
    if infinite and word.lower() in ("inf", "+inf", "infinity", "+infinity"):
        return math.inf
    if infinite and word.lower() in ("-inf", "-infinity"):
        return -math.inf
    return parse_number(word)
