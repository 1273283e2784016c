"""Mutated manifests: the bundle loads, or a coded error says why not, never another exception.

`R2GEN_MUTATIONS=5000 pytest tests/bundle/test_manifests_mutated.py` tries more of them; any failure names its seed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.bundle import MANIFEST, demo_bundle, open_bundle
from r2gen_export.errors import CODES, R2GenError
from r2gen_export.runtime.pipeline import Pipeline

MUTATIONS = int(os.environ.get("R2GEN_MUTATIONS", "300"))
ORIGINAL = (demo_bundle() / MANIFEST).read_bytes()


class Nested(int):
    """A placeholder for so many lists, or objects, inside each other: Python's own writer stops at 1,000 or so."""


ODD: tuple[Any, ...] = (
    None, True, False, 0, -0.0, 1, -1, 2, 3, 255, 2**31, 2**63, -(2**63), 10**18, 10**400, -(10**400), 0.5, 1e-320,
    1e308, -1e308, float("nan"), float("inf"), float("-inf"), "", "0", "x" * 5000, "\x00", "a\nb", "\x1b[2J", "\ud800",
    "\udcff", "..", ".", "/", "/etc/passwd", "../../x", "a/../../b", "C:\\x", "a\\b", "drafts", "decoder", "engines/x",
    "manifest.json", "decoder/../tokenizer.json", "./tokenizer.json", "tokenizer.json/", "tokenizer.json/x", "//x",
    [], [None], [[]], [1, 2], [0.5] * 3, ["a"], {}, {"a": 1}, {"": {}}, {"size": -1, "sha256": "0" * 64},
    {"size": 0, "sha256": ""}, "standard", "ort", "trt", "gpu", "hf-4.30", "never", Nested(400), Nested(980),
    Nested(3000), Nested(100_000),
)  # fmt: skip
BYTES = (b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b'"', b"\\", b"{", b"}", b"[", b"]", b",",
         b":", b"-", b"e9", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"NaN", b"null", b"1e999")  # fmt: skip
MARK = "nested-%d-levels"


def changed(rng: random.Random, value: Any) -> Any:
    """One place of a JSON value replaced, removed, doubled, added or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.97:
        fields = dict(value)
        key = "files" if "files" in fields and rng.random() < 0.3 else rng.choice(list(fields))
        how = rng.random()
        if how < 0.8:
            fields[key] = changed(rng, fields[key])
        elif how < 0.88:
            del fields[key]
        else:
            names = [name for name in ODD if isinstance(name, str)]
            fields[rng.choice(names)] = fields.pop(key) if how < 0.94 else changed(rng, fields[key])
        return fields
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], changed(rng, value[place]), *value[place + rng.randint(0, 1) :]]
    if type(value) in (int, float) and rng.random() < 0.4:
        half = value / 2 if abs(value) < 1e300 else 0.5
        return rng.choice([value + 1, value - 1, -value, value * 2, half, value * 10**9, str(value)])
    odd = rng.choice(ODD)
    return MARK % odd if isinstance(odd, Nested) else odd


def as_text(rng: random.Random, record: Any) -> str:
    """JSON with its nested places spelt out; sometimes one key is there twice."""
    text = json.dumps(record, ensure_ascii=rng.random() < 0.8)
    for odd in ODD:
        if isinstance(odd, Nested):
            begin, end = rng.choice([("[", "]"), ('{"a":', "}")])
            text = text.replace(json.dumps(MARK % odd), begin * odd + "0" + end * odd)
    if rng.random() < 0.15:
        keys = [at for at in range(len(text)) if text.startswith(('"size":', '"name":', '"dims":', '"files":'), at)]
        if keys:
            at = rng.choice(keys)
            key = text[at : text.index(":", at)]
            twin = json.dumps(rng.choice([odd for odd in ODD if not isinstance(odd, Nested)]))
            text = f"{text[:at]}{key}: {twin}, {text[at:]}"
    return text


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """A few bytes replaced, put in or taken out; or the end cut off."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content) + 1)
        content = rng.choice(
            [
                content[:place] + rng.choice(BYTES) + content[place + rng.randint(0, 3) :],
                content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :],
                content[:place] + content[place + rng.randint(1, 20) :],
                content[:place],
            ]
        )
    return content


def mutated(seed: int) -> bytes:
    """The content of a manifest.json."""
    rng = random.Random(seed)
    if rng.random() < 0.2:
        return changed_bytes(rng, ORIGINAL)
    record: Any = json.loads(ORIGINAL)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        record = changed(rng, record)
    content = as_text(rng, record).encode("utf-8", "surrogatepass")
    return changed_bytes(rng, content) if rng.random() < 0.1 else content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle without its manifest; the large files are hard links where the file system allows it."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    shutil.copytree(demo_bundle(), folder, copy_function=link)
    (folder / MANIFEST).unlink()
    return folder


def check(error: R2GenError) -> None:
    assert error.code in CODES and error.code != "R2G-INTERNAL"
    shown = error.render()
    assert error.fix and len(shown) < 600 and len(shown.splitlines()) == 2, shown[:2000]
    shown.encode()


def outcome(folder: Path) -> str:
    """What became of a bundle: its codes, or `loaded`."""
    try:
        open_bundle(folder)
    except R2GenError as error:
        check(error)
        with pytest.raises(R2GenError) as again:
            Pipeline.from_bundle(folder, device="cpu", threads=1, learn=False)
        assert again.value.render() == error.render()
        return error.code
    try:
        Pipeline.from_bundle(folder, device="cpu", threads=1, learn=False)
    except R2GenError as error:
        check(error)
        return f"opened, then {error.code}"
    return "loaded"


def test_a_bundle_or_a_coded_error(folder: Path) -> None:
    outcomes: Counter[str] = Counter()
    failures = []
    for seed in range(MUTATIONS):
        (folder / MANIFEST).write_bytes(mutated(seed))
        try:
            outcomes[outcome(folder)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
    assert not failures, f"{len(failures)} of {MUTATIONS}:\n" + "\n".join(failures[:20])
    assert outcomes["loaded"] > MUTATIONS / 50, outcomes
    assert sum(outcomes.values()) - outcomes["loaded"] > MUTATIONS / 4, outcomes
