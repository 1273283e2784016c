"""A service in a process of its own, as users start it, and clients of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.shared import key_of, made_once

if TYPE_CHECKING:
    import httpx

    from r2gen_export.runtime.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-ward-0001"


def demo() -> Path:
    """The demo bundle with a decoder that keeps a length for each row, so that requests are decoded together."""
    from benchmarks.continuous_batching import demo_in_trt
    from r2gen_export.bundle import demo_bundle

    sources = (ROOT / "benchmarks/continuous_batching.py", demo_bundle() / "manifest.json")
    return made_once("demo in trt", demo_in_trt, key=key_of(*sources))


def demo_pipeline() -> Pipeline:
    """What the service of `demo` must agree with."""
    from r2gen_export.runtime.pipeline import Pipeline

    return Pipeline.from_bundle(demo(), device="cpu", threads=1)


class Service:
    """A running `r2gen serve`. `log`: the objects of its stderr so far, and lines that are none as text.

    `before`: what stands in front of its command, and executes it in its own place.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        scratch: Path,
        *,
        before: Sequence[str] = (),
        bundle: Path | None = None,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        command = [*before, sys.executable, str(ROOT / "cli.py"), "serve", "--port", "0", "--device", device,
                   "--threads", str(threads), "--bundle", str(bundle or demo()), "--scratch", str(scratch),
                   *arguments]  # fmt: skip
        self.scratch = scratch
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        )  # fmt: skip
        self.log: list[Any] = []
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        listening = self.wait_for("listening")
        scheme = "https" if listening["tls"] == "yes" else "http"
        self.url = f"{scheme}://127.0.0.1:{listening['port']}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.text += line
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append(line)

    def wait_for(self, event: str, count: int = 1) -> Any:
        """The `count`-th entry of this event, once it is there."""
        while True:
            if ended := self.process.poll() is not None:
                self._reader.join(10)  # its last lines may still be in the pipe
            entries = [entry for entry in self.log if isinstance(entry, dict) and entry["event"] == event]
            if len(entries) >= count:
                return entries[count - 1]
            assert not ended, f"the service ended: {self.text}"
            time.sleep(0.02)

    def worker_pid(self) -> int:
        """Of the process that writes reports."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if b"http_worker" in Path(f"/proc/{pid}/cmdline").read_bytes())

    @contextmanager
    def held(self) -> Iterator[None]:
        """The process that writes reports is stopped in the block, so that what is sent there cannot end in it."""
        worker = self.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def uploads(self) -> list[Path]:
        """What lies in the private folder beside its lock."""
        return [path for folder in self.scratch.glob("r2gen-serve-*") for path in folder.iterdir()
                if path.name != "in-use"]  # fmt: skip

    def end(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def service(scratch: Path, *arguments: str, **options: Any) -> Iterator[Service]:
    """A service that is ready, and ends with the block. `options`: as `Service` takes them."""
    running = Service(arguments, scratch, **options)
    try:
        running.wait_for("ready")
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def files(*paths: Path, name: str = "view.png") -> list[tuple[str, tuple[str, bytes, str]]]:
    """Images for httpx."""
    return [("images", (name, path.read_bytes(), "application/octet-stream")) for path in paths]


def pictures(folder: Path, count: int) -> list[Path]:
    """Different pictures: phantoms."""
    from r2gen_export.phantoms import write_phantoms

    write_phantoms(folder, count, 7, size=224, workers=1, progress=False)
    return sorted(folder.glob("images/*/0.png"))


def events_of(response: httpx.Response) -> list[tuple[str, Any]]:
    """Server-sent events of a whole answer."""
    events = []
    for block in response.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields.get("event", ""), fields["data"]))
    return [(name, json.loads(data) if data != "[DONE]" else data) for name, data in events]


def noise(path: Path, seed: int = 0) -> Path:
    """A picture without meaning."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
    return path


def certificate(folder: Path, *options: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
               "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
               *options]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def expired(folder: Path) -> None:
    """Replace the certificate of this folder by one that is out of date."""
    (folder / "index").write_text("")
    (folder / "serial").write_text("01\n")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nnew_certs_dir=.\ndefault_md=sha256\npolicy=any\n"
        "serial=serial\n"
        "[any]\ncommonName=supplied\n"
    )
    for command in (
        "req -new -key key.pem -out request.pem -subj /CN=localhost",
        "ca -batch -selfsign -config ca.cnf -in request.pem -keyfile key.pem -out cert.pem -notext -rand_serial "
        "-startdate 20200101000000Z -enddate 20210101000000Z",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
