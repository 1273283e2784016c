"""Checkpoints are read as plain data: what they name is never looked up, each name only gives an inert stand-in."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import io
import os
import pathlib
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r2gen_export.errors import R2GenError
from r2gen_export.training.published import read_file
from r2gen_export.training.source_files.plain_pickle import STAND_INS

TENSORS = {"llama_proj.weight": torch.zeros(2, 2)}


class Colour(enum.Enum):
    RED = 1


PLAIN: dict[str, tuple[Any, Any]] = {
    "float64": (np.float64(0.5), 0.5),
    "int32": (np.int32(-7), -7),
    "big-endian": (np.array([1, 2], ">i4"), [1, 2]),
    "bool": (np.bool_(True), True),
    "array": (np.arange(6, dtype=np.float32).reshape(2, 3), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]),
    "fortran": (np.asfortranarray([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "objects": (np.array([None, "a"], object), None),
    "path": (pathlib.PurePosixPath("save/v1"), "save/v1"),
    "root": (pathlib.PurePosixPath("/data/x"), "/data/x"),
    "windows": (pathlib.PureWindowsPath("save/v1"), "save/v1"),
    "deque": (collections.deque([1, 2], maxlen=4), [1, 2]),
    "ordered": (collections.OrderedDict(a=[1]), None),
    "tuple": ((1, "a"), [1, "a"]),
    "frozen": (frozenset([3]), [3]),
    "date": (datetime.date(2024, 2, 29), "2024-02-29"),
    "time": (datetime.datetime(2024, 2, 29, 12, 30, 1, 5), "2024-02-29T12:30:01.000005"),
    "delta": (datetime.timedelta(days=1, seconds=2), "1 days 2.0 s"),
    "decimal": (decimal.Decimal("1.5"), "1.5"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", PLAIN)
def test_harmless_objects_become_plain_values(tmp_path: Path, name: str, zipped: bool) -> None:
    value, expected = PLAIN[name]
    holders: tuple[Any, ...] = ({"setting": value, "max_length": 60}, Namespace(setting=value, max_length=60))
    for holder in holders:
        content = {"state_dict": TENSORS, "hyper_parameters": holder, "loops": collections.defaultdict(list, a=[value])}
        torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
        settings = read_file(tmp_path / "x.ckpt").settings
        assert settings.get("setting") == expected
        assert settings["max_length"] == 60, "what stands behind it is read"


def test_enums_are_refused_with_a_way_on(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "hyper_parameters": {"colour": Colour.RED}}, tmp_path / "x.ckpt")
    with pytest.raises(R2GenError, match="Colour") as caught:
        read_file(tmp_path / "x.ckpt")
    assert caught.value.code == "R2G-CHECKPOINT-UNSAFE"
    assert "torch.save" in caught.value.fix


def pickled(name: str, operations: bytes) -> bytes:
    """Pickle of {"model": {...}, "config": X}, where X is what `operations` make of the object called `name`."""
    module, _, last = name.rpartition(".")
    head = pickle.dumps({"a": 1}, protocol=2)[:2]
    return head + b"c" + f"{module}\n{last}\n".encode() + operations + b"."


def write(path: Path, data: bytes) -> Path:
    """A file of torch.save whose pickle is `data`."""
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, data if entry.endswith("data.pkl") else old.read(entry))
    return path


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "called without arguments": lambda _: b")R",
    "called with a command": lambda trace: text(f"touch {trace}") + b"\x85R",
    "called with four": lambda trace: b"(" + 4 * text(trace) + b"tR",
    "called with itself": lambda trace: b"q\x01(h\x01h\x01tR",
    "made new": lambda trace: text(trace) + b"\x85\x81",
    "built from a dictionary": lambda trace: b")R}" + text("__class__") + text(trace) + b"sb",
    "built from slots": lambda trace: b")R}}" + text("__reduce__") + text(trace) + b"s\x86b",
    "built as it is": lambda trace: b"}" + text("__setstate__") + text(trace) + b"sb",
    "built from a huge state": lambda trace: b")R(K\x01J\xff\xff\xff\x7f\x85NN" + text(trace) + b"tb",
    "items set": lambda trace: b")R" + text("a") + text(trace) + b"s",
    "called twice": lambda trace: b")R)R",
    "appended to": lambda trace: b")R" + text(trace) + b"a",
}


@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("name", STAND_INS)
def test_no_allowed_name_reaches_the_object_of_that_name(tmp_path: Path, name: str, attack: str) -> None:
    trace = tmp_path / "touched"
    real = {module: dict(vars(module)) for module in (pathlib, datetime, collections, decimal)}
    stand_in = dict(vars(STAND_INS[name])) if isinstance(STAND_INS[name], type) else STAND_INS[name].__dict__.copy()
    path = write(tmp_path / "x.pth", pickled(name, HOSTILE[attack](str(trace))))
    with pytest.raises(R2GenError) as caught:  # no tensors in it, at best
        read_file(path)
    assert caught.value.code in ("R2G-CHECKPOINT-FORMAT", "R2G-CHECKPOINT-UNSAFE")
    assert not trace.exists()
    assert all(dict(vars(module)) == before for module, before in real.items())
    assert dict(vars(STAND_INS[name])) == stand_in if hasattr(STAND_INS[name], "__dict__") else True


def test_stand_ins_are_ours_or_inert() -> None:
    """Nothing bound to a name is the object of that name, but for Python's own dictionary and namespace."""
    own = {
        value for value in STAND_INS.values() if getattr(value, "__module__", "").startswith("r2gen_export.training.")
    }
    others = {value.__name__ for value in STAND_INS.values() if value not in own}
    assert others == {"dict", "SimpleNamespace"}


def test_a_file_cannot_widen_what_later_files_may_ask_for(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", pickled("os.system", text(f"touch {tmp_path / 'touched'}") + b"\x85R"))
    before = set(torch.serialization.get_safe_globals())
    for _ in range(2):
        with pytest.raises(R2GenError) as caught:
            read_file(tmp_path / "x.pth")
        assert caught.value.code == "R2G-CHECKPOINT-UNSAFE"
    assert os.listdir(tmp_path) == ["x.pth"]  # noqa: PTH208
    assert set(torch.serialization.get_safe_globals()) == before


def test_settings_that_hold_themselves(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"max_length": 60}
    loop["self"] = [loop]
    torch.save({"state_dict": TENSORS, "hyper_parameters": loop}, tmp_path / "x.ckpt")
    assert read_file(tmp_path / "x.ckpt").settings["max_length"] == 60
