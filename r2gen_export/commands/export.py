"""`r2gen export`: write a bundle and show what its parity gate saw."""

from __future__ import annotations

from r2gen_export.commands.checks import print_checks
from r2gen_export.commands.console import say
from r2gen_export.exporting.export import export_bundle
from r2gen_export.exporting.settings import ExportSettings
from r2gen_export.system.paths import require_utf8


def run_export(settings: ExportSettings) -> None:
    """Export, then print the parity checks and the bundle's size to stderr.

    Raises:
        R2GenError: what `export_bundle` raises; `R2G-CONFIG-VALUE` when the path of `out` is not UTF-8.
    """
    require_utf8(settings.out, "--out")
    manifest = export_bundle(settings, say=say)
    print_checks(manifest.parity, to_stderr=True)
    megabytes = sum(entry.size for entry in manifest.files.values()) / 1e6
    say(f"{settings.out}: {len(manifest.files)} files, {megabytes:.1f} MB, alignment {manifest.source.alignment}")
