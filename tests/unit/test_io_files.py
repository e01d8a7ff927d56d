import os
import stat
from pathlib import Path

import pytest

from simspine_jax.errors import FileFormatError, SimspineError
from simspine_jax.io.cells import parse_number, parse_row
from simspine_jax.io.files import atomic_write, make_folder, place, read_text


def test_atomic_write_makes_folders_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "clip.txt"
    with atomic_write(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    with atomic_write(path, binary=True) as file:
        file.write(b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert [item.name for item in path.parent.iterdir()] == ["clip.txt"]


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "clip.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write("new")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_follows_links_and_gives_the_usual_permissions(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write("x")
    assert link.is_symlink()
    assert target.read_text() == "x"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_atomic_write_refuses_folders_and_files_as_parents(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "clip.txt"):
        with pytest.raises(SimspineError, match="valid is"), atomic_write(path):
            pass
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_make_folder_refuses_what_can_be_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(SimspineError, match="valid is"):
            make_folder(path)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfa\r\nb\rc\n", "a\nb\nc\n"),
        ("Grüße".encode(), "Grüße"),
        ("30 °".encode("latin-1"), "30 °"),
    ],
)
def test_read_text_decodes_what_windows_writes(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "clip.txt"
    path.write_bytes(content)
    assert read_text(path) == text


def test_read_text_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b" \n")
    (tmp_path / "binary").write_bytes(b"\x00\x01")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("gone", "no such file"),
        ("", "a folder"),
        ("empty", "empty"),
        ("binary", "not text"),
        ("pipe", "not a regular file"),
        ("a\0b", "not a path"),
        ("a" * 300, "can't be read"),
        ("two\nlines", "no such file"),
    ):
        with pytest.raises(FileFormatError, match=reason) as caught:
            read_text(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_place_names_file_and_line() -> None:
    assert place("walk.trc") == "walk.trc"
    assert place(Path("walk.trc"), 12) == "walk.trc:12"
    assert place("a\nb", 1) == r"'a\nb':1"


@pytest.mark.parametrize("text", ["617.24762", "-.5", "3.", "+1e-005", "1E3", "0", "-0.0", "5e-324"])
def test_numbers_shift_to_the_nearest_double(text: str) -> None:
    assert parse_number(text) == float(text)
    mantissa, _, exponent = text.lower().partition("e")
    assert parse_number(text, -3) == float(f"{mantissa}e{int(exponent or 0) - 3}")
    assert parse_row([text, ""], -3)[0] == parse_number(text, -3)


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan", "1.#QNAN", "-1.#IND", "nan(ind)"])
def test_run_times_spell_missing_numbers_differently(text: str) -> None:
    assert parse_number(text) != parse_number(text)


@pytest.mark.parametrize(
    "text",
    ["", "x", "1_000", "1,5", "0x10", "1e", "1 2", "--1", "inf", "-Infinity", "1e999", "9" * 400, "\u0661"],
)
def test_other_texts_are_no_numbers(text: str) -> None:
    for power in (0, -3):
        with pytest.raises(ValueError, match="is "):
            parse_number(text, power)
    if text:
        with pytest.raises(ValueError, match="is ") as caught:
            parse_row(["1", text])
        assert getattr(caught.value, "index", None) == 1
