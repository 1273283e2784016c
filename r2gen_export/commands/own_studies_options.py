"""Options of `r2gen export` and `r2gen verify` that compare a bundle with PyTorch on a user's own studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from r2gen_export.exporting.settings import OwnStudies


@dataclass(frozen=True, kw_only=True)
class OwnStudiesOptions:
    """Your own studies."""

    evaluate: Annotated[
        Path | None,
        typer.Option(
            "--evaluate",
            metavar="FILE",
            help="Annotation with studies to report on with the bundle and with unrounded PyTorch; both are compared.",
        ),
    ] = None
    base_dir: Annotated[
        Path | None,
        typer.Option(
            "--base-dir",
            metavar="DIR",
            help="Folder that its image paths start from. Default: images/ beside it, or its own folder.",
        ),
    ] = None
    evaluate_split: Annotated[
        str, typer.Option("--evaluate-split", metavar="train|val|test", help="Split that studies are taken from.")
    ] = "test"
    evaluate_studies: Annotated[
        int,
        typer.Option(
            "--evaluate-studies", metavar="N", min=1, help="Studies to compare on, evenly spaced over the split."
        ),
    ] = 100
    fail_below: Annotated[
        str | None,
        typer.Option(
            "--fail-below",
            metavar="bleu4=0.005,labels=1%",
            help="End with exit status 3 unless the bundle is shown, with 95 % confidence, to be worse by no more.",
        ),
    ] = None

    def as_studies(self, max_new_tokens: int | None) -> OwnStudies | None:
        """What to compare on; None without `--evaluate`.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE` for margins that are none, or without studies to show them on.
        """
        from r2gen_export.evaluation.gates import parse_margins
        from r2gen_export.exporting.settings import OwnStudies

        if self.evaluate is None:
            if self.fail_below is not None or self.base_dir is not None:
                message = "--fail-below and --base-dir are for the studies of --evaluate"
                raise R2GenError("R2G-CONFIG-VALUE", message, "add --evaluate ANNOTATION")
            return None
        if self.evaluate_split not in ("train", "val", "test"):
            message = "--evaluate-split is none of train, val, test"
            raise R2GenError("R2G-CONFIG-VALUE", message, "choose one of them")
        margins = parse_margins(self.fail_below) if self.fail_below is not None else {}
        return OwnStudies(
            self.evaluate, self.base_dir, self.evaluate_split, self.evaluate_studies, margins, max_new_tokens
        )
