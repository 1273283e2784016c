"""Where the page is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import r2gen_export.serving

PAGE: Final = Path(r2gen_export.serving.__file__).parent / "page"
