"""A node with the embedded demo model: reports, revisions, refusals, a reporting process that dies, and its queue."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.serving import status
from r2gen_export.serving.generate import Job
from r2gen_export.serving.mercure import Module, run_module
from r2gen_export.serving.node import Node, running_node
from r2gen_export.serving.settings import MEBI, Limits, NodeSettings, parse_dimse
from r2gen_export.serving.worker import Worker, WorkerDiedError, WorkerSettings
from tests.command import run_here
from tests.serving.node_site import (
    CR,
    PDF,
    ROOT,
    SR,
    NodeProcess,
    free_port,
    node_process,
    radiograph,
    store,
    wait_for,
    write,
)


class Sink:
    """A PACS that keeps what it is sent."""

    def __init__(self) -> None:
        from pynetdicom import AE, evt

        self.received: list[Any] = []
        entity = AE(ae_title="SINK")
        for sop_class in (SR, PDF):
            entity.add_supported_context(sop_class)
        self.port = free_port()
        handlers = [(evt.EVT_C_STORE, self._store)]
        self.server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def _store(self, event: Any) -> int:
        self.received.append(event.dataset)
        return 0


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.server.shutdown()


@pytest.fixture
def node(tmp_path: Path, sink: Sink) -> Iterator[Node]:
    """A node in this process, whose reporting process can be killed."""
    settings = NodeSettings(
        "R2GEN", ("PACS",), (parse_dimse(f"SINK@127.0.0.1:{sink.port}"),), tmp_path / "spool", port=0, close_after=0.5,
        forms=("sr",), preset="fast", limits=Limits(reserve_bytes=MEBI), watch=tmp_path / "watched",
    )  # fmt: skip
    with running_node(settings) as node:
        thread = threading.Thread(target=node.run)
        thread.start()
        yield node
        node.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()


def states(node: Node) -> list[tuple[int, str]]:
    return [(row["revision"], row["state"]) for row in status.studies(node.queue)]


@pytest.mark.slow
def test_reports_revisions_and_a_process_that_dies(node: Node, sink: Sink, tmp_path: Path) -> None:
    """One node for all of it: loading the model takes longest."""
    port = node.server.port
    # A report, and a second one that names it when a late image comes.
    assert store(port, radiograph("1.2.826.1", PatientName="Someone^Else")) == [0]
    wait_for(lambda: states(node) == [(1, "sent")])
    (first,) = sink.received
    assert (first.SOPClassUID, first.StudyInstanceUID, first.PatientName) == (SR, "1.2.826.1", "Someone^Else")
    assert store(port, radiograph("1.2.826.1", 2, PatientName="Someone^Else", ViewPosition="LL")) == [0]
    wait_for(lambda: states(node) == [(1, "sent"), (2, "sent")])
    second = sink.received[1]
    assert second.SOPInstanceUID != first.SOPInstanceUID
    assert second.SeriesInstanceUID
    named = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID

    # What must not be reported is refused by name of its code, and nothing is sent.
    assert store(port, radiograph("1.2.826.2", sop_class=CR, BodyPartExamined="HAND")) == [0]
    wait_for(lambda: states(node)[-1] == (1, "refused"))
    assert status.study(node.queue, 3)["code"] == "R2G-DICOM-REFUSED"
    assert len(sink.received) == 2

    # Killed while it works, twice: refused, and the next study is reported.
    assert store(port, radiograph("1.2.826.3", side=1024)) == [0]
    for death in (1, 2):
        wait_for(lambda: states(node)[-1] == (1, "generating") and node.worker.pid)
        os.kill(node.worker.pid or 0, signal.SIGKILL)
        wait_for(lambda: status.study(node.queue, 4)["deaths"] == death)  # noqa: B023
    assert status.study(node.queue, 4)["state"] == "refused"
    assert store(port, radiograph("1.2.826.4")) == [0]
    wait_for(lambda: len(states(node)) == 5 and states(node)[-1] == (1, "sent"))
    assert sink.received[-1].StudyInstanceUID == "1.2.826.4"

    # A watched folder: a file that is still written waits, what is no radiograph is put aside.
    watched = tmp_path / "watched"
    write(radiograph("1.2.826.5"), watched / "chest.dcm")
    (watched / "notes.txt").write_text("no image")
    (watched / "below").mkdir()
    write(radiograph("1.2.826.5", 2, ViewPosition="LL"), watched / "below" / "lateral.dcm")
    wait_for(lambda: len(states(node)) == 6 and states(node)[-1] == (1, "sent"))
    assert sink.received[-1].StudyInstanceUID == "1.2.826.5"
    assert {path.name for path in (watched / "r2gen-done").iterdir()} == {"chest.dcm", "lateral.dcm"}
    assert [path.name for path in (watched / "r2gen-refused").iterdir()] == ["notes.txt"]
    assert node.problems() == []


@pytest.mark.slow
def test_a_signal_ends_the_node_and_the_next_goes_on(tmp_path: Path, sink: Sink) -> None:
    """SIGTERM in the middle; then `status`, `show`, `retry` and `purge` as a user calls them, and /health."""
    forward = ("--forward", f"SINK@127.0.0.1:{sink.port}", "--close-after", 0.2, "--format", "sr", "--preset", "fast")
    with node_process(tmp_path, *forward) as node:
        assert json.loads(node.get("/health")) == {"healthy": True, "problems": []}
        assert store(node.port, *(radiograph(f"1.2.826.{number}", side=64) for number in range(4))) == [0] * 4
        assert store(node.port, radiograph("1.2.826.9", BodyPartExamined="FOOT")) == [0]
        wait_for(lambda: "generating" in node.states())
        assert node.terminate() == 0
        assert node.log.splitlines()[-1].endswith('"event": "node stopped"}')
        first = json.loads(node.log.splitlines()[0])  # which model reports, and that it is no model of patients
        assert (first["event"], first["level"], first["model"]) == ("bundle", "warning", "r2gen-demo")
        assert "synthetic phantoms" in first["reason"]
        assert "generating" not in node.states(), "what was begun was put back"
        assert all(study["attempts"] <= 1 for study in node.status()["studies"])
        node.start()
        wait_for(lambda: sorted(node.states()) == ["refused"] + ["sent"] * 4)
        assert len({data.SOPInstanceUID for data in sink.received}) == 4
        assert 'r2gen_node_studies{state="sent"} 4.0' in node.get("/metrics")
        table = called(node, "status")
        assert table.startswith("id  study")
        assert table.count(" sent ") == 4
        shown = json.loads(called(node, "show", 5))
        assert (shown["state"], shown["code"], shown["sending"]) == ("refused", "R2G-DICOM-REFUSED", [])
        assert json.loads(called(node, "status", "--json", "--unfinished"))["counts"] == {"refused": 1, "sent": 4}
        called(node, "retry", 5)
        wait_for(lambda: node.log.count('"study refused"') == 2 and node.states()[4] == "refused")
        assert "only refused and dead ones" in called(node, "retry", 1, expected=2)
        assert "no study 77" in called(node, "show", 77, expected=2)
        assert node.terminate() == 0
        called(node, "purge", "--older", 0)
        assert list((node.spool / "images").rglob("*.dcm")) == []
        assert list((node.spool / "results").rglob("*.dcm")) == []


def called(node: NodeProcess, *words: object, expected: int = 0) -> str:
    done = run_here("node", *words, "--spool", node.spool)
    assert done.returncode == expected, done.stderr
    return done.stdout + done.stderr if expected else done.stdout


@pytest.mark.slow
def test_mercure_module(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    write(radiograph("1.2.826.1"), source / "1.2.826.1.1#1.2.826.1.1.1.dcm")
    settings = {"format": "sr", "preset": "fast", "unknown": 1}
    task = {"id": "x", "process": {"module_name": "r2gen", "settings": settings}}
    (source / "task.json").write_text(json.dumps(task))
    command = [sys.executable, str(ROOT / "cli.py"), "mercure"]
    variables = {**os.environ, "MERCURE_IN_DIR": str(source), "MERCURE_OUT_DIR": str(target), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from pydicom import dcmread

    (written,) = target.glob("*.dcm")
    data = dcmread(BytesIO(written.read_bytes()))
    assert (data.SOPClassUID, data.StudyInstanceUID) == (SR, "1.2.826.1")
    assert written.name == f"{data.SeriesInstanceUID}#{data.SOPInstanceUID}.dcm"
    result = json.loads((target / "result.json").read_text())
    assert result["r2gen"]["results"] == ["sr"]
    assert result["__mercure_notification"]["requested"] is True
    assert "not for diagnosis" in result["__mercure_notification"]["text"]
    assert "Patient" not in (target / "result.json").read_text() + done.stdout + done.stderr
    assert "WARNING Demo bundle: " in done.stderr

    shutil.rmtree(target)
    target.mkdir()
    for text in ('{"process": {"settings": {"format": "text"}}}', "[1]", "not JSON"):
        (source / "task.json").write_text(text)
        with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
            run_module(Module(source, target))
        assert "R2G-CONFIG-VALUE" in json.loads((target / "result.json").read_text())["__mercure_notification"]["text"]
        assert list(target.glob("*.dcm")) == []


@pytest.mark.slow
def test_a_report_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """The next one gets a process of its own; what the model raises comes back as it is."""
    job = Job((write(radiograph("1.2.826.1", side=128), tmp_path / "a.dcm"),), ("sr",))
    worker = Worker(WorkerSettings(preset="fast"))
    try:
        worker.start()
        first = worker.pid
        with pytest.raises(WorkerDiedError):
            worker.make(job, 0.001)
        assert worker.pid is None
        (written,) = worker.make(job, 120).results
        assert (written.study_uid, written.sop_class) == ("1.2.826.1", SR)
        assert worker.pid not in (None, first)
        (tmp_path / "b.dcm").write_bytes(bytes(128) + b"DICM")
        with pytest.raises(R2GenError, match="R2G-DICOM"):
            worker.make(Job((tmp_path / "b.dcm",), ("sr",)), 120)
        assert worker.make(job, 120).results[0].sop_uid == written.sop_uid, "the same again, and the same process"
    finally:
        worker.stop()
    with pytest.raises(WorkerDiedError):
        worker.make(job, 120)
