"""Help pages in plain text: options in panels, summaries that are not cut, examples. Rich would double their time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

ARGUMENTS: Final = "Arguments"
OPTIONS: Final = "Options"
OTHER: Final = "Other"
EXAMPLES: Final = "Examples"
BRACKETS: Final = re.compile(r"[<\[](.*)[>\]]")
"""Around choices, in the releases of typer: `--format <text|json>`."""


def examples(*commands: str) -> str:
    """The epilog of a command: complete command lines, one a line."""
    return "\n".join(commands)


def command_app(help: str | None = None, **settings: Any) -> typer.Typer:
    """A typer application for one module of `commands`: a single command, or a group of them."""
    return typer.Typer(help=help, rich_markup_mode=None, add_completion=False, **settings)


class _Page:
    """What the pages of commands and of groups have in common; mixed into typer's classes."""

    epilog: str | None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] IMAGE...` and not typer's `{IMAGE...}...`."""
        pieces = ["[OPTIONS]"]
        for param in self.get_params(ctx):  # type: ignore[attr-defined]
            if param.param_type_name == "argument":
                name = _argument_name(param)
                pieces.append(name if param.required else f"[{name}]")
        return pieces

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, each on a line of its own however long it is."""
        if self.epilog:
            with formatter.section(EXAMPLES):
                for line in self.epilog.splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class HelpCommand(_Page, TyperCommand):
    """A command whose options are shown in panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then each panel in the order of its first option."""
        write_panels(self.get_params(ctx), ctx, formatter)


class HelpGroup(_Page, TyperGroup):
    """A group of commands with their whole summaries."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As for a command, and the metavariable of the commands."""
        return [*super().collect_usage_pieces(ctx), self.subcommand_metavar]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Commands first: they are what the reader looks for."""
        self.format_commands(ctx, formatter)
        write_panels(self.get_params(ctx), ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Name and summary of each command."""
        shown = {name: summary(command.help or "") for name, command in self.commands.items() if not command.hidden}
        write_commands({"Commands": shown}, formatter)


def summary(text: str) -> str:
    """The first paragraph of a help text, on one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())


def write_commands(sections: Mapping[str, Mapping[str, str]], formatter: Any) -> None:
    """Commands in titled sections, with their summaries in one column throughout."""
    width = max((len(name) for commands in sections.values() for name in commands), default=0)
    for title, commands in sections.items():
        if commands:
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])


def write_panels(params: Iterable[Any], ctx: Any, formatter: Any) -> None:
    """Write a section of arguments, one per panel in the order of its first option, one of options without a panel."""
    sections: dict[str, list[tuple[str, str]]] = {ARGUMENTS: []}
    without_panel: list[tuple[str, str]] = []
    for param in params:
        if (row := _row(param, ctx)) is None:
            continue
        if param.param_type_name == "argument":
            sections[ARGUMENTS].append(row)
        elif panel := getattr(param, "rich_help_panel", None):
            sections.setdefault(panel, []).append(row)
        else:
            without_panel.append(row)
    sections[OTHER if len(sections) > 1 else OPTIONS] = without_panel
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows, col_max=26)


def _row(param: Any, ctx: Any) -> tuple[str, str] | None:
    record = param.get_help_record(ctx)
    if record is None:
        return None
    name, text = record
    if param.param_type_name == "argument":
        return _argument_name(param), text
    return BRACKETS.sub(r"\1", name), text


def _argument_name(param: Any) -> str:
    name: str = param.metavar or param.name.upper()
    return name
