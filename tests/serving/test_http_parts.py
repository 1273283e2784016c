"""Parts of the HTTP service by themselves: claimed pixels, settings, the audit on a full disk, rates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.serving.audit import Audit
from r2gen_export.serving.http_auth import Key, Rates, check_origin
from r2gen_export.serving.http_errors import HttpError
from r2gen_export.serving.http_fields import Most, form_of, parse_request
from r2gen_export.serving.http_pixels import check_claim, claimed_size
from r2gen_export.serving.log import EventLog, LineWriter
from tests.helpers.sentinel import PHANTOM


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_claimed_sizes(tmp_path: Path, kind: str, mode: str) -> None:
    path = tmp_path / "view"
    options = {"exif": b"x" * 60_000} if kind == "JPEG" else {}
    Image.fromarray(np.zeros((30, 50), np.uint8)).convert(mode).save(path, kind, **options)
    assert claimed_size(path) == (50, 30)
    check_claim(path, 1500, "view 1")
    with pytest.raises(R2GenError, match="R2G-IMAGE-SIZE: view 1 claims 50 x 30"):
        check_claim(path, 1499, "view 1")
    for size in range(0, 60):
        short = tmp_path / "short"
        short.write_bytes(path.read_bytes()[:size])
        claimed_size(short)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/pdf", "pdf"),
        ("application/dicom", "sr"),
        ("text/html, text/plain", "text"),
        ("application/fhir+json;q=1", "fhir"),
        ("text/event-stream", "stream"),
    ],
)
def test_forms_by_accept(accept: str, form: str) -> None:
    assert form_of(accept, None) == form
    assert form_of(accept, "kos") == "kos"


def test_settings_from_text_and_json_are_the_pipelines() -> None:
    manifest = load_manifest(demo_bundle())
    most = Most.of(manifest, None, None)
    pipeline = Pipeline.from_bundle(device="cpu", threads=1)
    given: dict[str, Any] = {"preset": "paper", "num_beams": 2, "length_penalty": 0.5, "early_stopping": "never"}
    parsed = parse_request(manifest, most, given, "json")
    assert parsed.settings == pipeline.settings(**given)
    assert parse_request(manifest, most, {name: str(value) for name, value in given.items()}, "json") == parsed
    assert parse_request(manifest, most, {"early_stopping": "true"}, "json").settings.decoding.early_stopping is True


def test_the_audit_withholds_a_report_on_a_full_disk(tmp_path: Path) -> None:
    report = Pipeline.from_bundle(device="cpu", threads=1).generate(PHANTOM).to_dict()
    audit = Audit(tmp_path / "audit", EventLog())
    audit.report("ward", "1", "json", report)
    audit.close()
    line = json.loads((tmp_path / "audit").read_text())
    assert line["key"] == "ward"
    assert report["text"] not in json.dumps(line)
    full = Audit(Path("/dev/full"), EventLog())
    with pytest.raises(R2GenError, match="R2G-OUTPUT-WRITE"):
        full.report("ward", "1", "json", report)
    full.close()
    with pytest.raises(R2GenError, match="R2G-OUTPUT-WRITE"):
        Audit(tmp_path / "none" / "audit", EventLog())


def test_a_full_disk_for_the_log_stops_nobody() -> None:
    code = "from r2gen_export.serving.log import EventLog; EventLog()('request'); print('goes on', flush=True)"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stderr=full, stdout=subprocess.PIPE, text=True, check=False)
    assert done.stdout == "goes on\n"


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    code = (
        "import os; read, write = os.pipe(); os.set_blocking(write, False)\n"
        "try:\n    while os.write(write, bytes(4096)): pass\nexcept BlockingIOError: pass\n"
        "os.set_blocking(write, True); os.dup2(write, 2)\n"
        "from r2gen_export.serving.log import EventLog; EventLog()('request'); print('goes on', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.stdout == "goes on\n"


def test_a_line_that_was_cut_off_stays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the end of the cut line is all that the next one gets in."""
    room = 3
    write = os.write

    def limited(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        written = write(descriptor, data[:room])
        room -= written
        return written

    monkeypatch.setattr("r2gen_export.serving.log.os.write", limited)
    lines, path = LineWriter(), tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for line, more in (("first", 1), ("second", 0), ("third", 100)):
        if line != "third":
            with pytest.raises(OSError, match="No space"):
                lines.write(descriptor, line)
            room = more or 100
        else:
            lines.write(descriptor, line)
    os.close(descriptor)
    assert path.read_text() == "fir\nthird\n"


def test_rates_are_each_keys_own() -> None:
    rates, slow, fast = Rates(), Key("slow", b"", 12), Key("fast", b"")
    rates.take(slow)
    rates.take(slow)
    with pytest.raises(HttpError) as refused:
        rates.take(slow)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "5")
    for _ in range(100):
        rates.take(fast)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:8321"}, True),
        ({"host": "[::1]:8321", "origin": "http://[::1]:8321"}, True),
        ({"host": "localhost"}, True),
        ({"host": "evil.example:8321"}, False),
        ({}, False),
        ({"host": "localhost:8321", "origin": "http://localhost:9"}, False),
        ({"host": "localhost:8321", "origin": "null"}, False),
        ({"host": "localhost", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_origins(headers: dict[str, str], allowed: bool) -> None:
    names = ("localhost", "127.0.0.1", "[::1]")
    if allowed:
        check_origin(headers, names)
    else:
        with pytest.raises(HttpError):
            check_origin(headers, names)
