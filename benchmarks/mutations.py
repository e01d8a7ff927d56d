"""Damage to files, as disks, editors and exporters do it: the engine behind the fuzz tests.

A mutant is a valid file with one to three edits at the level of bytes, tokens, lines or XML elements. The
same seed gives the same mutants.
"""

from __future__ import annotations

import random
import re

_TOKEN = re.compile(rb"[^\s<>\"=]+")
_TAG = re.compile(rb"<([A-Za-z_][\w.:-]*)[^<>]*>")

# What readers trip over: other spellings of numbers, numbers out of range, structure in the wrong place.
_POISON = (
    b"",
    b"nan",
    b"NaN",
    b"-inf",
    b"Infinity",
    b"1e999",
    b"-1e308",
    b"1e-320",
    b"0",
    b"-0.0",
    b"-1",
    b"1000000000",
    b"1_000",
    b"1,5",
    b"0x10",
    b"1e",
    b"9" * 400,
    b"1.#QNAN",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x00",
    b"\xe2\x80\xa8",
    b"\t",
    b"\r",
    b"endheader",
    b"time",
    b"&#10;",
    b"&lol;",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"<!--",
    b"]]>",
    b"A" * 5000,
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a file's content.

    Args:
        data: the content of a valid file.
        rng: the source of chance; its state after the call determines the next mutant.

    Returns:
        The content after one to three edits, which may by chance still be valid or equal.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        levels = (mutate_bytes, mutate_tokens, mutate_lines)
        is_xml = data.lstrip().startswith(b"<")
        data = rng.choice((*levels, mutate_elements, mutate_elements) if is_xml else levels)(data, rng)
    return data


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, insert, drop or overwrite a few bytes, or cut the file off."""
    at = rng.randrange(len(data) + 1)
    run = rng.choice((1, 1, 2, 8, 64))
    noise = bytes(rng.randrange(256) for _ in range(run))
    kind = rng.randrange(5)
    if kind == 0:
        return (
            data[:at] + bytes(byte ^ (1 << rng.randrange(8)) for byte in data[at : at + 1]) + data[at + 1 :]
        )
    if kind == 1:
        return data[:at] + noise + data[at:]
    if kind == 2:
        return data[:at] + data[at + run :]
    if kind == 3:
        return data[:at] + noise + data[at + run :]
    return data[:at]


def mutate_tokens(data: bytes, rng: random.Random) -> bytes:
    """Replace a word by poison or by another word of the file, drop it, or double it."""
    tokens = [match.span() for match in _TOKEN.finditer(data)]
    if not tokens:
        return data
    start, end = rng.choice(tokens)
    token = data[start:end]
    other_start, other_end = rng.choice(tokens)
    substitute = rng.choice(
        (
            rng.choice(_POISON),
            rng.choice(_POISON),
            data[other_start:other_end],
            token + b"\t" + token,
            b"-" + token,
        )
    )
    return data[:start] + substitute + data[end:]


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Drop, double, swap, blank, join or shift lines, or change all line ends."""
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines.insert(i, lines[i])
    elif kind == 2:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 3:
        lines.insert(i, b"")
    elif kind == 4:
        lines[i] = lines[i].replace(b"\t", b"\t\t" if rng.random() < 0.5 else b" ")
    elif kind == 5:
        lines[i : i + 2] = [b"".join(lines[i : i + 2])]
    elif kind == 6:
        lines[i] += rng.choice((b"\t", b"\t\t\t", b"\t1.0", b" x"))
    else:
        return rng.choice((b"\r\n", b"\r", b"\n\n")).join(lines)
    return b"\n".join(lines)


def mutate_elements(data: bytes, rng: random.Random) -> bytes:
    """Drop, double, empty, rename, move or nest an XML element."""
    tags = list(_TAG.finditer(data))
    if not tags:
        return data
    tag = rng.choice(tags)
    start, inside = tag.span()
    closing = b"</" + tag[1] + b">"
    close = data.find(closing, inside)
    # An element without a closing tag is its own tag alone.
    inside_end, end = (close, close + len(closing)) if close >= 0 else (inside, inside)
    element, content = data[start:end], data[inside:inside_end]
    target = rng.choice(tags).start()
    kind = rng.randrange(7)
    if kind == 0:
        return data[:start] + data[end:]
    if kind == 1:
        return data[:end] + element + data[end:]
    if kind == 2:
        return data[:inside] + data[inside_end:]
    if kind == 3:
        return data.replace(tag[1], rng.choice(tags)[1])
    if kind == 4:
        return data[:target] + element + data[target:]
    if kind == 5:
        depth = rng.choice((1, 3, 300))
        return data[:start] + b"<a::b>" * depth + element + b"</a::b>" * depth + data[end:]
    return data[:inside] + rng.choice(_POISON) + content + data[inside_end:]
