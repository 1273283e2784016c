"""Compile the imitated CUDA libraries: `python -m benchmarks.gpu.imitated DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu.imitated import build
from r2gen_export.errors import R2GenError

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(build(Path(sys.argv[1])))
    except R2GenError as error:
        sys.exit(error.render())
