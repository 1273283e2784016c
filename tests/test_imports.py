"""What each part may import. Asserted on `sys.modules` of a fresh process, and by blocking what must not be needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "optimum", "onnx", "onnxruntime", "tensorrt", "numpy", "tokenizers", "PIL", "rich")


def _loaded(*arguments: str) -> set[str]:
    """Top-level modules in memory when `r2gen ARGUMENTS` ends."""
    program = (
        "import json, sys\n"
        f"sys.argv = {['r2gen', *arguments]!r}\n"
        "import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(child.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("infer", "--help"), ("train", "--help"), ("bench", "--help")]
)
def test_help_loads_nothing_heavy(arguments):
    assert _loaded(*arguments).isdisjoint(HEAVY)
