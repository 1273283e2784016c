"""Files of source models: changed, and refused with an error that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.errors import R2GenError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698672\n"
"""What Git LFS leaves in the place of a file that was not fetched."""


def change(folder: Path, name: str = "config.json", drop: tuple[str, ...] = (), **fields: Any) -> Path:
    """Replace, add and remove fields of a JSON file."""
    path = folder / name
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**record, **fields}.items() if key not in drop}))
    return folder


def refusal(run: Callable[[], Any], *parts: str, code: str = "R2G-MODEL-UNSUPPORTED") -> str:
    """`run` raises an error of this code whose message has the parts; returns it as it is shown."""
    with pytest.raises(R2GenError) as caught:
        run()
    assert caught.value.code == code, caught.value
    for part in parts:
        assert part in caught.value.message, (part, caught.value.message)
    assert caught.value.fix
    return caught.value.render()
