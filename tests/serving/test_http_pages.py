"""The examples of README.md and SERVE.md for clients of `r2gen serve`, executed as they stand against a running one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")
for package in ("uvicorn", "starlette", "python_multipart", "prometheus_client", "openai", "pydicom"):
    pytest.importorskip(package)

from tests.helpers.dicom_files import radiograph, stored, write  # noqa: E402
from tests.helpers.pages import COMMANDS, ROOT, shell  # noqa: E402
from tests.serving.http_site import certificate  # noqa: E402

SCRIPTS = Path(sys.executable).parent
PORT = "8321"
TIMES = {"created", "timings_ms", "decode_steps_ms", "request_id"}
"""Fields of a report that differ from one run to the next, and the one that only a service adds."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
    pytest.mark.skipif(not (SCRIPTS / "r2gen").exists(), reason="needs the script r2gen: pip install -e '.[dev]'"),
]


@dataclass(frozen=True)
class Place:
    """A folder with the files that the examples name, and the port on which the service of its test listens."""

    folder: Path
    port: int

    def text(self, name: str) -> str:
        """A block with the port of this test in place of the default one, which may be in use."""
        text = re.sub(r"^pip install '\.\[[\w,-]+\]'\n", "", COMMANDS[name].text)
        text = text.replace(f":{PORT}/", f":{self.port}/")
        return re.sub(r"^r2gen serve", rf"exec \g<0> --port {self.port}", text, flags=re.MULTILINE)

    def run(self, name: str, **variables: str) -> str:
        """The stdout of a client's block."""
        text = self.text(name)
        assert f":{self.port}/" in text
        if COMMANDS[name].language == "python":
            text = f"python - <<'END'\n{text}END"
        return shell(text, self.folder, scripts=SCRIPTS, **variables)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(place: Place, name: str) -> Iterator[None]:
    """The service that a block starts, from when it is ready until SIGTERM ends it."""
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("R2GEN_BUNDLE", None)
    log = (place.folder / f"{name}.log").open("w+")
    process = subprocess.Popen(["bash", "-euc", place.text(name)], cwd=place.folder, env=environment, stderr=log)
    try:
        while '"event": "ready"' not in (said := Path(log.name).read_text()):
            assert process.poll() is None, said
            time.sleep(0.05)
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(ROOT / "tests/data/phantom.png", folder / "image.png")
    values = stored(12, False, 512, 512)
    for number, name in enumerate(("pa.dcm", "lateral.dcm"), start=1):
        write(folder / name, radiograph(values, 12, SOPInstanceUID=f"1.2.3.{number}"), values, "explicit")
    return Place(folder, free_port())


@pytest.fixture(scope="module")
def running(place: Place) -> Iterator[Place]:
    with serving(place, "serve"):
        yield place


@pytest.fixture(scope="module")
def expected(place: Place) -> dict[str, Any]:
    """What `infer` writes about the same image."""
    report: dict[str, Any] = json.loads(
        shell("r2gen infer image.png --format json", place.folder, scripts=SCRIPTS, R2GEN_BUNDLE="")
    )
    return report


def same(report: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Every field but the times."""
    assert {name: report[name] for name in report if name not in TIMES} == {
        name: expected[name] for name in expected if name not in TIMES
    }


def test_the_readmes_examples_get_what_infer_writes(running: Place, expected: dict[str, Any]) -> None:
    same(json.loads(running.run("serve-curl")), expected)
    assert running.run("serve-python") == f"{expected['text']} {expected['notice']}\n"
    assert httpx.get(f"http://127.0.0.1:{running.port}/").headers["content-type"] == "text/html; charset=utf-8"


def test_the_forms_of_an_answer(running: Place, expected: dict[str, Any]) -> None:
    from pydicom import dcmread

    events = re.findall(r"event: (\w+)\ndata: (.*)\n", running.run("serve-forms"))
    pieces = [json.loads(data)["text"] for name, data in events if name == "text"]
    assert "".join(pieces) == expected["text"]
    same(json.loads(events[-1][1]), expected)
    same(json.loads((running.folder / "report.json").read_text()), expected)
    own = shell("r2gen infer --study pa.dcm lateral.dcm --format json", running.folder, scripts=SCRIPTS)
    answer = dcmread(running.folder / "report.dcm")
    texts = [element.value for element in answer.iterall() if element.keyword == "TextValue"]
    assert json.loads(own)["text"] in texts


def test_openais_client(running: Place) -> None:
    report = shell("r2gen infer image.png", running.folder, scripts=SCRIPTS, R2GEN_BUNDLE="")
    assert running.run("serve-openai") == report


def test_other_machines_need_a_key_and_tls(place: Place, expected: dict[str, Any]) -> None:
    certificate(place.folder)
    place = replace(place, port=free_port())
    with serving(place, "serve-keys"):
        same(json.loads(place.run("serve-keys-curl")), expected)
        refused = json.loads(shell(place.text("serve-keys-curl").replace("Bearer ", "Bearer x"), place.folder))
    assert refused["error"]["code"] == "R2G-HTTP-KEY"
    assert [json.loads(line)["key"] for line in (place.folder / "audit.jsonl").read_text().splitlines()] == ["ward"]
