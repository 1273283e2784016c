"""What stands around the exporters: silence."""

from __future__ import annotations

import sys
import warnings

from r2gen_export.exporting.quiet import quiet


def test_nothing_is_said(capsys):
    with quiet():
        sys.stdout.write("noise\n")
        warnings.warn("noise", stacklevel=1)
    sys.stdout.write("voice\n")
    assert capsys.readouterr().out == "voice\n"
