"""What the commands of ``simspine`` have in common: where output goes, and unknown options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from simspine_jax.errors import SimspineError, nearest

OUTPUT_OPTIONS = ("-o", "--out", "--output")


def add_output(parser: Any, **details: Any) -> None:
    """Adds the path ``out`` to a parser or a group of one, under the names that all commands take."""
    parser.add_argument(*OUTPUT_OPTIONS, dest="out", type=Path, **details)


def check_suffix(path: Path, *valid: str) -> None:
    """Refuses an output file whose name promises another format than it would hold.

    Raises:
        SimspineError: with the endings that are valid.
    """
    if path.suffix.lower() not in valid:
        raise SimspineError(f"Can't write '{path}'; valid is a file name that ends in {' or '.join(valid)}")


class CommandParser(argparse.ArgumentParser):
    """A sub-command's parser, which itself tells the options that it doesn't have."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but nothing is left over for the parser above."""
        has_commands = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        for word in () if has_commands else args or ():  # what a command is given, its own parser checks
            if word == "--":
                break
            self._check_option(word)
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self._refuse(rest[0])
        return found, []

    def _check_option(self, word: str) -> None:
        """Before argparse, which would first miss the required option that a misspelt one stands for."""
        name = word.partition("=")[0]
        if name.startswith("--") and " " not in name and not any(o.startswith(name) for o in self._options()):
            self._refuse(name)

    def _refuse(self, word: str) -> NoReturn:
        near = nearest(word, self._options()) if word.startswith("-") else None
        self.error(f"unrecognized argument {word}" + (f"; did you mean {near}?" if near else ""))

    def _options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option[:2] == "--"]


class Command(NamedTuple):
    """A sub-command: its arguments, its function, what it does in a phrase, and an example."""

    name: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    does: str
    example: str


def add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command], **defaults: Any) -> None:
    """Gives a parser sub-commands, of which one must be named; it sets ``run`` and the ``defaults``."""
    inner = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    for command in commands:
        own = inner.add_parser(
            command.name,
            help=command.does,
            description=command.does[0].upper() + command.does[1:] + ".",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(run=command.run, **defaults)
        command.add_arguments(own)
