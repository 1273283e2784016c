"""What tests of the node share: DICOM radiographs, free ports, a node and an Orthanc in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")
CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
DX_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
SR = "1.2.840.10008.5.1.4.1.1.88.11"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
SYNTAX = "1.2.840.10008.1.2.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def radiograph(study: str, number: int = 1, sop_class: str = DX, side: int = 256, **attributes: Any) -> Any:
    """A chest radiograph as a pydicom data set; `number` makes its UID. `attributes` replace others."""
    from pydicom.dataset import Dataset, FileMetaDataset

    with Image.open(ROOT / "tests/data/chest-dx-pa.png") as picture:
        pixels = np.asarray(picture.convert("L").resize((side, side)), np.uint16) * 16
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = SYNTAX
    data.SOPClassUID, data.SOPInstanceUID = sop_class, f"{study}.1.{number}"
    data.StudyInstanceUID, data.SeriesInstanceUID = study, f"{study}.1"
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = (
        f"ID{study[-6:]}",
        "Test^Patient",
        "",
        "O",
    )
    data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "1", "", ""
    data.StudyDate, data.StudyTime = "20260101", "120000"
    data.Modality = "CR" if sop_class == CR else "DX"
    data.Manufacturer, data.SeriesNumber, data.InstanceNumber = "", 1, number
    data.BodyPartExamined, data.ViewPosition, data.PatientOrientation = "CHEST", "PA", ["L", "F"]
    data.BurnedInAnnotation, data.ImageType, data.PresentationIntentType = (
        "NO",
        ["ORIGINAL", "PRIMARY"],
        "FOR PRESENTATION",
    )
    data.PresentationLUTShape, data.PixelIntensityRelationship = "IDENTITY", "LOG"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = side
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    return data


def write(data: Any, path: Path) -> Path:
    data.save_as(path, enforce_file_format=True)
    return path


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value; a test that waits in vain fails here, and no result depends on how long it took."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
    return value


def store(port: int, *datasets: Any, called: str = "R2GEN", calling: str = "PACS") -> list[int]:
    """Statuses of C-STOREs over one association; fewer where it ended early."""
    from pynetdicom import AE

    entity = AE(ae_title=calling)
    for data in datasets:
        entity.add_requested_context(data.SOPClassUID, data.file_meta.TransferSyntaxUID)
    entity.acse_timeout = entity.dimse_timeout = 30
    association = entity.associate("127.0.0.1", port, ae_title=called)
    statuses = []
    for data in datasets:
        if not association.is_established:
            break
        status = association.send_c_store(data)
        if "Status" not in status:
            break
        statuses.append(int(status.Status))
    if association.is_established:
        association.release()
    return statuses


needs_dcmtk = pytest.mark.skipif(not Path("/usr/bin/storescu").exists(), reason="needs dcmtk")


def dcmtk(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program of dcmtk; pynetdicom brings others of the same names."""
    command = [f"/usr/bin/{program}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@dataclass
class NodeProcess:
    """`r2gen node` in a process of its own; its log goes to a file that every start appends to."""

    folder: Path
    arguments: list[object]
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def log(self) -> str:
        return (self.folder / "node.log").read_text() if (self.folder / "node.log").exists() else ""

    def command(self, *words: object) -> list[str]:
        return [sys.executable, str(ROOT / "cli.py"), "node", *map(str, words)]

    def start(self, *, ready: bool = True) -> NodeProcess:
        """Start it and wait until it listens, and until its model is loaded where `ready` says so."""
        before = self.log.count('"ready to report"')
        listening = self.log.count('"node started"')
        words = ["--aet", "R2GEN", "--allow-aet", "PACS,ORTHANC", "--port", self.port, "--spool", self.spool,
                 "--metrics-port", self.metrics_port, "--reserve", 1, *self.arguments]  # fmt: skip
        with (self.folder / "node.log").open("ab") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(self.command(*words), stderr=log, stdout=log, env=environment)
        wait_for(lambda: self.log.count('"node started"') > listening or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        if ready:
            wait_for(lambda: self.log.count('"ready to report"') > before, 120)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def status(self) -> dict[str, Any]:
        """What `r2gen node status --json` prints, without starting a process for it."""
        from r2gen_export.serving import status
        from r2gen_export.serving.queue import Queue
        from r2gen_export.serving.spool import open_spool

        spool = open_spool(self.spool)
        queue = Queue(spool.database, spool.pseudonym)
        try:
            return {"counts": status.counts(queue), "studies": status.studies(queue)}
        finally:
            queue.close()

    def states(self) -> list[str]:
        return [study["state"] for study in self.status()["studies"]]

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=10) as answer:
            return answer.read().decode()  # type: ignore[no-any-return]


@contextlib.contextmanager
def node_process(folder: Path, *arguments: object, ready: bool = True) -> Iterator[NodeProcess]:
    node = NodeProcess(folder, list(arguments))
    try:
        yield node.start(ready=ready)
    finally:
        if node.process is not None and node.process.poll() is None:
            node.kill()


@dataclass
class Orthanc:
    """Debian's Orthanc with its DICOMweb plug-in, with a store of its own below `folder`."""

    folder: Path
    node_port: int
    port: int = field(default_factory=free_port)
    web_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Orthanc:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "orthanc.json").write_text(json.dumps({
            "StorageDirectory": str(self.folder / "db"), "IndexDirectory": str(self.folder / "db"),
            "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"], "HttpPort": self.web_port,
            "DicomAet": "ORTHANC", "DicomPort": self.port, "RemoteAccessAllowed": False, "StableAge": 1,
            "DicomAlwaysAllowFind": True, "AuthenticationEnabled": False, "StorageAccessOnFind": "Never",
            "DicomModalities": {"r2gen": ["R2GEN", "127.0.0.1", self.node_port]}, "DicomWeb": {"Enable": True},
            "SyncStorageArea": False, "OverwriteInstances": False,
        }))  # fmt: skip
        self.process = subprocess.Popen(
            ["/usr/sbin/Orthanc", str(self.folder / "orthanc.json")],
            stdout=subprocess.DEVNULL, stderr=(self.folder / "orthanc.log").open("ab"),
        )  # fmt: skip
        wait_for(self._is_up)
        return self

    def _is_up(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "orthanc.log").read_text()
        try:
            return bool(self.get("/system"))
        except OSError:
            return False

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(timeout=60)

    def get(self, path: str) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.web_port}{path}", headers={"Accept": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, body: bytes) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.web_port}{path}", data=body, method="POST")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"null")

    def put(self, path: str, body: bytes) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.web_port}{path}", data=body, method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass

    def qido(self, study: str, modality: str) -> list[Any]:
        """Instances of a modality in a study."""
        path = f"/dicom-web/studies/{study}/instances?Modality={modality}"
        return self.get(path) or []

    def instances(self) -> list[tuple[str, str, str]]:
        """Study, SOP class and SOP instance of every instance."""
        found = self.get("/dicom-web/instances?includefield=StudyInstanceUID&limit=100000") or []
        names = ("0020000D", "00080016", "00080018")
        return [tuple(at[name]["Value"][0] for name in names) for at in found]  # type: ignore[misc]


@contextlib.contextmanager
def orthanc(folder: Path, node_port: int) -> Iterator[Orthanc]:
    server = Orthanc(folder, node_port)
    try:
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
