"""Mutated lists, annotations and report files: a result or a coded error that names no file, never another exception.

`R2GEN_MUTATIONS=5000 pytest tests/studies/test_annotation_mutated.py` tries more of them; any failure names its seed.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.runtime.drafting.read_reports import read_reports
from r2gen_export.studies.collect import collect_studies
from r2gen_export.studies.images import read_image
from r2gen_export.training.data import SPLITS, read_studies, unread_parts

MUTATIONS = int(os.environ.get("R2GEN_MUTATIONS", "400"))
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1e999, "", "doe^john", "\x00", "\ud800", "a\tb", "../../x", "/", ".", "x" * 5000, [], {}, [[]],
    ["a.png"], {"train": []}, {"id": 1}, 10**400,
)  # fmt: skip
BYTES = (b"\x00", b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"'", b'"', b"\\", b"\t", b"\r", b"\n", b"#",
         b"{", b"[", b"]", b"}", b",", b":", b"\xed\xa0\x80", b"9" * 5000, b"[" * 3000, b" ")  # fmt: skip
LIST = '# doe^john\na.png\n\'b c.png\' a.png\na.png\tb c.png\nsub\\d.png\n"a.png"\t"b c.png"\n'
RECORD = {
    "train": [{"id": "doe^john", "report": "clear .", "image_path": ["a.png", "sub/d.png"]}, {"id": 2, "report": "x",
              "image_path": ["b c.png"]}],
    "val": [{"id": "v", "report": "no effusion .", "image_path": ["a.png"]}],
    "test": [{"id": "t", "report": "", "image_path": ["sub\\d.png"]}],
    "about": {"version": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smith_1950")
    (folder / "sub").mkdir()
    for name in ("a.png", "b c.png", "sub/d.png"):
        (folder / name).write_bytes(b"no image")
    return folder


def changed_value(rng: random.Random, value: Any) -> Any:
    """One place of a JSON value replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        fields = dict(value)
        key = rng.choice(list(fields))
        how = rng.random()
        if how < 0.7:
            fields[key] = changed_value(rng, fields[key])
        elif how < 0.85:
            del fields[key]
        else:
            fields[rng.choice(["doe^john", "valid", "dev", "report", "", "error", "text"])] = fields.pop(key)
        return fields
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], changed_value(rng, value[place]), *value[place + rng.randint(0, 1) :]]
    return rng.choice(ODD)


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """A few bytes replaced, put in or taken out; or the end cut off."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        content = rng.choice(
            [
                content[:place] + rng.choice(BYTES) + content[place + rng.randint(0, 3) :],
                content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :],
                content[:place] + content[place + rng.randint(1, 20) :],
                content[: max(1, place)],
            ]
        )
    return content


def mutated(seed: int) -> tuple[str, bytes]:
    """The name and the content of a file."""
    rng = random.Random(seed)
    if rng.random() < 0.4:
        content = LIST.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]))
        return "list.txt", changed_bytes(rng, content)
    record: Any = RECORD
    for _ in range(rng.randint(0, 3)):
        record = changed_value(rng, record)
    try:
        text = json.dumps(record, ensure_ascii=rng.random() < 0.5)
        content = text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    except ValueError:  # a number too long for Python, half a surrogate pair
        content = json.dumps(RECORD).encode()
    return "annotation.json", changed_bytes(rng, content) if rng.random() < 0.4 else content


def check(error: R2GenError, folder: Path) -> None:
    assert error.code in ("R2G-DATA-ANNOTATION", "R2G-DATA-EMPTY", "R2G-IMAGE-MISSING", "R2G-IMAGE-FORMAT"), error
    shown = error.render()
    assert error.fix and len(shown) < 600 and len(shown.splitlines()) == 2
    assert "smith" not in shown and str(folder) not in shown
    shown.encode()


def test_a_result_or_a_coded_error(folder: Path) -> None:
    outcomes = {"read": 0, "refused": 0}
    for seed in range(MUTATIONS):
        name, content = mutated(seed)
        path = folder / name
        path.write_bytes(content)
        calls: list[Any] = [lambda path=path: collect_studies([path]), lambda path=path: read_reports([path])]
        if name == "annotation.json":
            calls += [lambda split=split, path=path: read_studies(path, folder, split, str.strip) for split in SPLITS]
            calls.append(lambda path=path: unread_parts(path))
        for number, call in enumerate(calls):
            try:
                result = call()
                outcomes["read"] += 1
            except R2GenError as error:
                outcomes["refused"] += 1
                check(error, folder)
                assert "doe" not in error.render()
                continue
            except Exception as error:
                raise AssertionError(f"seed {seed}, call {number}: {type(error).__name__}") from error
            if number == 0:
                for study in result.studies[:3]:
                    for image in study.images[:2]:
                        try:
                            read_image(image, "study 1, view 1")
                        except R2GenError as error:
                            assert error.message.startswith("study 1, view 1 ")
                            check(error, folder)
    assert min(outcomes.values()) > MUTATIONS / 4, outcomes
