"""The list of commands: names and summaries are known at once, a command's module is imported when it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer

from r2gen_export.commands.help_page import HelpGroup, write_commands

PACKAGE = "r2gen_export.commands"


@dataclass(frozen=True)
class Entry:
    """A command: its name, which is its module's in `commands`, and its one-line summary in `r2gen --help`.

    The module has `app`, a `typer.Typer` of one command or of a group, whose help begins with the same summary.
    """

    name: str
    summary: str

    def load(self) -> Any:
        """Import the module and build its command."""
        command = typer.main.get_command(import_module(f"{PACKAGE}.{self.name}").app)
        command.name = self.name
        return command


class LazyCommands(Mapping[str, Any]):
    """Commands by name; one is loaded when it is looked up, and names can be listed without loading any."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._entries[name].load()
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


class LazyGroup(HelpGroup):
    """The root of the command line; a subclass gives its sections."""

    sections: ClassVar[dict[str, list[Entry]]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = LazyCommands([entry for entries in self.sections.values() for entry in entries])

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the sections; typer's own would load every command."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The sections with their summaries; no command is loaded."""
        shown = {title: {entry.name: entry.summary for entry in entries} for title, entries in self.sections.items()}
        write_commands(shown, formatter)
