"""`r2gen drafts`: the reports a bundle drafts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2gen_export.commands.console import guarded, say, write_out
from r2gen_export.commands.options import DatasetName

drafts = typer.Typer(
    help="Reports to draft from: same words, sooner. They are patient data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]


@drafts.command()
@guarded
def build(
    bundle: Bundle,
    reports: Annotated[
        list[Path], typer.Option("--reports", metavar="FILE", help=".txt (one a line), annotation.json, infer's JSON.")
    ],
    dataset: Annotated[
        DatasetName, typer.Option("--dataset", help="Clean reports up as its training did.")
    ] = DatasetName.none,
) -> None:
    """Fill a bundle's store with a site's reports, as token ids; what the model writes is learned from then on."""
    from r2gen_export.bundle import open_bundle
    from r2gen_export.runtime.drafting.read_reports import read_reports, tokenise
    from r2gen_export.runtime.drafting.store import build_store

    manifest = open_bundle(bundle)
    texts = read_reports(reports, dataset.value)
    build_store(bundle, manifest, tokenise(bundle, manifest, texts))
    say(f"{len(texts)} reports in {bundle}")


@drafts.command()
@guarded
def show(bundle: Bundle) -> None:
    """Say how much a bundle's store holds."""
    from r2gen_export.bundle import open_bundle
    from r2gen_export.runtime.drafting.store import describe

    for line in describe(bundle, open_bundle(bundle)):
        write_out(f"{line}\n")


@drafts.command()
@guarded
def wipe(
    bundle: Bundle,
    learned: Annotated[bool, typer.Option("--learned", help="Only what the model wrote itself.")] = False,
) -> None:
    """Remove a bundle's store."""
    from r2gen_export.bundle import open_bundle
    from r2gen_export.runtime.drafting.store import wipe_store

    wipe_store(bundle, open_bundle(bundle), learned_only=learned)
    say(f"{bundle}: " + ("what was learned is gone" if learned else "the store is gone"))
