"""`r2gen drafts`: the store of reports that a bundle drafts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2gen_export.commands.console import guarded, say, write_out
from r2gen_export.commands.help_page import HelpCommand, HelpGroup, command_app, examples
from r2gen_export.commands.options import BundleArgument, DatasetName

app = command_app(
    """Manage the earlier reports that speculative decoding uses.

    Reports resemble each other, so r2gen can propose the next words from earlier reports and let the model check
    several at once: the same words in less time (but see drafts build --help for int8 and int4 on a CPU). A bundle's
    store of reports holds their token ids, which are patient data.
    """,
    cls=HelpGroup,
    no_args_is_help=True,
    epilog=examples("r2gen drafts build bundle --reports annotation.json", "r2gen drafts show bundle"),
)


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen drafts build bundle --reports phantoms/annotation.json",
        "r2gen drafts build bundle --reports reports.txt --reports more.txt --dataset mimic_cxr",
    ),
)
@guarded
def build(
    bundle: BundleArgument,
    reports: Annotated[
        list[Path],
        typer.Option(
            "--reports",
            metavar="FILE",
            help="Reports to store: a .txt with one a line, an annotation.json (splits train and val), or the JSON of "
            "infer; may be repeated.",
        ),
    ],
    dataset: Annotated[
        DatasetName,
        typer.Option("--dataset", help="Data set whose rules clean the reports up, as in the model's training."),
    ] = DatasetName.none,
) -> None:
    """Fill a bundle's store with a site's reports.

    Afterwards infer drafts from them, and adds the reports that the model writes. With int8 or int4 weights a CPU may
    then choose other words, so infer uses the store there with --draft only.
    """
    from r2gen_export.bundle import open_bundle
    from r2gen_export.runtime.drafting.read_reports import read_reports, tokenise
    from r2gen_export.runtime.drafting.store import build_store

    manifest = open_bundle(bundle)
    texts = read_reports(reports, dataset.value)
    build_store(bundle, manifest, tokenise(bundle, manifest, texts))
    say(f"{len(texts)} reports in the bundle's store")


@app.command(cls=HelpCommand, epilog=examples("r2gen drafts show bundle"))
@guarded
def show(bundle: BundleArgument) -> None:
    """Show how many reports a bundle's store holds."""
    from r2gen_export.bundle import open_bundle
    from r2gen_export.runtime.drafting.store import describe

    for line in describe(bundle, open_bundle(bundle)):
        write_out(f"{line}\n")


@app.command(cls=HelpCommand, epilog=examples("r2gen drafts wipe bundle", "r2gen drafts wipe bundle --learned"))
@guarded
def wipe(
    bundle: BundleArgument,
    learned: Annotated[
        bool, typer.Option("--learned", help="Remove only the reports that the model wrote itself.")
    ] = False,
) -> None:
    """Remove a bundle's store of reports."""
    from r2gen_export.bundle import open_bundle
    from r2gen_export.runtime.drafting.store import wipe_store

    wipe_store(bundle, open_bundle(bundle), learned_only=learned)
    say("what was learned is gone" if learned else "the store is gone")
