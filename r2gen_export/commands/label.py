"""`r2gen label`: findings named in reports, by rules."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from r2gen_export.commands.console import check_output, guarded, output
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.errors import R2GenError, errno_text

app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen label reports.jsonl",
        "r2gen label reports.jsonl --explain --out labels.jsonl",
        "r2gen infer studies/ --format json | r2gen label -",
    ),
)
@guarded
def label(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help='Reports as JSON lines, {"id": "...", "report": "..."} each, or those of infer --format json; "-" is '
            "stdin.",
        ),
    ],
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Add each mention with its sentence, rule, side and severity; patient data."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write to FILE, which must not exist, not to stdout.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out if it exists.")] = False,
) -> None:
    """Label the findings that reports name.

    Writes a JSON line for each report: CheXpert's 14 findings as positive, uncertain, negative or blank, by the rules
    r2gen-rules. The rules read English text; they look at no image.
    """
    from r2gen_export.evaluation.labels import RULES, labels_of, mentions
    from r2gen_export.evaluation.labels.read import read_reports

    check_output(out, overwrite=overwrite, resumable=False)
    with _lines(file) as lines, output(out) as write:
        for study, report in read_reports(lines):
            places = tuple(mentions(report))
            fields: dict[str, object] = {"id": study, "labels": labels_of(places), "rules": RULES}
            if explain:
                fields["mentions"] = [dataclasses.asdict(place) for place in places]
            write(json.dumps(fields) + "\n")


@contextmanager
def _lines(file: str) -> Iterator[TextIO]:
    if file == "-":
        yield sys.stdin
        return
    try:
        with Path(file).open(encoding="utf-8", newline=None) as stream:
            yield stream
    except BrokenPipeError:
        raise  # by the reader of stdout, such as `head`, not by the file
    except UnicodeDecodeError as error:
        raise R2GenError("R2G-EVAL-FORMAT", "the file is not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        message = f"the file cannot be read ({errno_text(error)})"
        raise R2GenError("R2G-EVAL-FORMAT", message, "check the path and its permissions") from error
