"""Help pages: every command has a summary, examples that parse, and options whose help can be read alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import cli
from r2gen_export.commands.help_page import HelpCommand, command_app, summary
from r2gen_export.commands.option_groups import option_groups, plain
from r2gen_export.commands.options import Format

ROOT = typer.main.get_command(cli.app)
SETTINGS = cli.app.info.context_settings
NEEDS_ANOTHER = re.compile(r"(its|the same|\.\.\.|whose|of pytorch's)\b", re.IGNORECASE)
"""Beginnings of a help text that only make sense after the option before it."""


def commands(group: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group below the root with its path; a hidden one is its group's default."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


EVERY = dict(commands())
PARSED = {path: command for path, command in EVERY.items() if not hasattr(command, "commands")}


def words(path: tuple[str, ...]) -> list[str]:
    """A command's path as it is typed: `bench` for the default command of that group."""
    return [name for place, name in enumerate(path) if not EVERY[path[: place + 1]].hidden]


def page(*arguments: str, columns: int = 80) -> str:
    done = CliRunner().invoke(cli.app, [*arguments, "--help"], prog_name="r2gen", env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.output
    return done.output


def context(command: Any, path: tuple[str, ...]) -> Any:
    return command.context_class(command, info_name=path[-1], **SETTINGS)


def example_lines(epilog: str) -> list[str]:
    """Complete command lines; a backslash continues one."""
    return epilog.replace("\\\n", " ").splitlines()


def test_the_tree_is_not_empty() -> None:
    assert len(PARSED) >= 17
    assert ("bench", "compare") in PARSED
    assert {"infer", "export", "train"} <= set(ROOT.commands)


def test_the_list_shows_every_summary_whole_in_its_section() -> None:
    lines = page().splitlines()
    for title, entries in cli.Commands.sections.items():
        start = lines.index(f"{title}:")
        shown = dict(line.split(maxsplit=1) for line in lines[start + 1 : start + 1 + len(entries)])
        assert shown == {entry.name: entry.summary for entry in entries}


@pytest.mark.parametrize("entry", [entry for entries in cli.Commands.sections.values() for entry in entries])
def test_the_list_says_what_the_commands_page_says(entry: Any) -> None:
    assert summary(EVERY[entry.name,].help) == entry.summary
    assert entry.summary in page(entry.name)


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_a_command_has_a_summary_and_examples(path: tuple[str, ...]) -> None:
    command = EVERY[path]
    assert summary(command.help).endswith(".")
    assert len(summary(command.help)) <= 65
    if path in {("bench",), ("evaluate",)}:
        return  # their pages are those of their default commands
    assert command.epilog, "no example"
    for line in command.epilog.splitlines():
        assert line.startswith(("r2gen ", "    "))
        assert line in page(*words(path))


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 200])
def test_no_line_is_wider_than_100_columns(path: tuple[str, ...], columns: int) -> None:
    shown = page(*words(path), columns=columns)
    assert [line for line in shown.splitlines() if len(line) > 100] == []
    assert not re.search(r"<(int|float|str|path|list)", shown), "a type of Python instead of N, X, FILE, DIR"


@pytest.mark.parametrize("path", PARSED, ids=" ".join)
def test_the_help_of_an_option_can_be_read_alone(path: tuple[str, ...]) -> None:
    texts: dict[str, str] = {}
    for param in PARSED[path].get_params(context(PARSED[path], path)):
        text = param.help or ""
        assert text.endswith("."), f"{param.name}: {text!r}"
        assert text[0].isupper() or text.startswith("transformers "), f"{param.name}: {text!r}"
        assert len(text.partition("Default:")[0].split()) >= 2, f"{param.name}: {text!r} says the default only"
        assert not NEEDS_ANOTHER.match(text), f"{param.name}: {text!r}"
        assert text not in texts, f"{param.name} and {texts[text]} have the same help"
        texts[text] = param.name


@pytest.mark.parametrize(
    ("path", "line"),
    [(path, line) for path, command in EVERY.items() for line in example_lines(command.epilog or "")],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_example_is_understood(path: tuple[str, ...], line: str) -> None:
    """Option names, required options and values of choices: all that is checked before the command runs."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "r2gen"
    group = ROOT
    while hasattr(group, "commands") and arguments and arguments[0] in group.commands:
        group = group.commands[arguments.pop(0)]
    shown = group.make_context("r2gen", arguments, **SETTINGS)
    assert shown.command is not ROOT
    assert EVERY[path] in (shown.command, group) or path[0] in line.split()


def test_a_mistyped_example_would_be_seen() -> None:
    with pytest.raises(Exception, match="--nume-beams"):
        EVERY["infer",].make_context("infer", ["x.png", "--nume-beams", "3"], **SETTINGS)
    with pytest.raises(Exception, match="yaml"):
        EVERY["infer",].make_context("infer", ["x.png", "--format", "yaml"], **SETTINGS)


def test_options_of_infer_stand_in_panels() -> None:
    titles = re.findall(r"^(\S.*):$", page("infer"), re.MULTILINE)
    assert titles == ["Arguments", "Input", "Output", "Decoding", "Drafting", "Device", "Other", "Examples"]
    decoding = page("infer").partition("\nDecoding:\n")[2].partition("\n\n")[0]
    assert "--num-beams N" in decoding
    assert "--format" not in decoding


def test_what_is_for_maintainers_is_hidden() -> None:
    assert "--peers" not in page("bench")
    EVERY["bench", "measure"].make_context("bench", ["--peers", "peers.json"], **SETTINGS)


def test_a_mistyped_command_gets_a_suggestion() -> None:
    done = CliRunner().invoke(cli.app, ["infre"], prog_name="r2gen")
    assert done.exit_code == 2
    assert "Did you mean 'infer'?" in done.output


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of things."""

    width: Annotated[int, typer.Option("--width", help="Width.")]
    form: Annotated[Format, typer.Option("--format", help="Form.")] = Format.text


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Widths."""

    width: Annotated[int, typer.Option("--width", help="Width.")]


def test_groups_of_options_reach_the_command_as_objects() -> None:
    received: list[object] = []
    app = command_app()

    @app.command(cls=HelpCommand)
    @option_groups
    def command(path: Annotated[Path, typer.Argument(help="Path.")], sizes: Sizes) -> None:
        """Do it."""
        received.extend([path, sizes])

    runner = CliRunner()
    assert runner.invoke(app, ["a", "--width", "3", "--format", "json"]).exit_code == 0
    assert received == [Path("a"), Sizes(width=3, form=Format.json)]
    assert plain(received[1]) == {"width": 3, "form": "json"}
    assert type(plain(received[1])["form"]) is str
    assert runner.invoke(app, ["a"]).exit_code == 2, "--width is required"
    assert "\nSizes of things:\n  --width" in runner.invoke(app, ["--help"]).output


def test_two_groups_cannot_share_a_name() -> None:
    def command(sizes: Sizes, widths: Widths) -> None: ...

    with pytest.raises(TypeError, match="width"):
        option_groups(command)
