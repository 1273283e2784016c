"""The command line `r2gen`: a list. A command's options, help and rendering are in its module of `commands`."""

from __future__ import annotations

from typing import Annotated

import typer

from r2gen_export.commands.console import explain, open_streams, unwritable
from r2gen_export.commands.help_page import examples
from r2gen_export.commands.lazy_group import Entry, LazyGroup
from r2gen_export.system.versions import VERSION


class Commands(LazyGroup):
    """Every command of r2gen. The summaries are the first lines of the commands' help."""

    sections = {  # noqa: RUF012
        "Use": [
            Entry("infer", "Write draft reports of radiographs."),
            Entry("serve", "Serve draft reports over HTTP, with a page for the browser."),
            Entry("node", "Receive studies from a PACS, report them and send the results."),
            Entry("mercure", "Report a study as a processing module of mercure."),
            Entry("doctor", "Check whether this machine can run infer, and by which backend."),
            Entry("drafts", "Manage the earlier reports that speculative decoding uses."),
        ],
        "Make": [
            Entry("train", "Align a vision encoder with an LLM on image-report pairs."),
            Entry("export", "Write a bundle from a checkpoint, checked against PyTorch."),
            Entry("verify", "Check a bundle's files and compare it with PyTorch."),
            Entry("inspect", "Show what is in a checkpoint, without loading a model."),
            Entry("build", "Build TensorRT engines for a bundle."),
            Entry("engines", "List, inspect or remove the TensorRT engines of a bundle."),
            Entry("phantom", "Write synthetic radiographs with reports and labels."),
            Entry("demo", "Rebuild the embedded demo bundle from synthetic data."),
        ],
        "Measure": [
            Entry("evaluate", "Score a bundle, or finished reports, on a data set."),
            Entry("rexrank", "Write reports in ReXrank's form, from its input file."),
            Entry("tune", "Measure how a bundle decodes fastest on this CPU, and record it."),
            Entry("label", "Label the findings that reports name."),
            Entry("bench", "Measure latency, memory and energy, or compare two reports."),
        ],
    }


app = typer.Typer(
    name="r2gen",
    cls=Commands,
    help="Draft radiology reports with R2GenGPT: train, export, infer, measure. Research use only, not for diagnosis.",
    epilog=examples(
        "r2gen infer chest.png          # report of one radiograph, by the embedded demo model",
        "r2gen infer --help             # options and examples of a command",
    ),
    no_args_is_help=True,
    rich_markup_mode=None,  # help by rich takes twice the time of plain help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"r2gen {VERSION}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console entry point."""
    open_streams()
    try:
        app(prog_name="r2gen")
    except OSError as error:  # of a help page; commands handle their own
        raise SystemExit(explain(unwritable(error))) from None


if __name__ == "__main__":
    main()
