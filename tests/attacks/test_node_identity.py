"""A name in every identifying attribute of what a node receives is in no log, metric, status or file name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.node_sentinel import IDENTIFYING, SENTINEL, UID_SENTINEL, sentinel_radiograph
from tests.command import run_here
from tests.serving.node_site import free_port, node_process, radiograph, store, wait_for, write


@pytest.mark.slow
def test_nothing_of_a_patient_leaves_a_node_but_in_its_results(tmp_path: Path) -> None:
    """Reported, refused, damaged, sent twice with other bytes, watched, given up, and not readable at all."""
    watched = tmp_path / "watched"
    words = ("--forward", f"GONE@127.0.0.1:{free_port()}", "--close-after", 0.2, "--preset", "fast", "--watch", watched,
             "--give-up-after", 0.01)  # fmt: skip
    with node_process(tmp_path, *words) as node:
        reported = sentinel_radiograph(1)
        assert store(node.port, reported, sentinel_radiograph(2, BodyPartExamined=SENTINEL[:16])) == [0, 0]
        reported.PatientComments = "other bytes"
        assert store(node.port, reported) == [0]
        damaged = sentinel_radiograph(3)
        damaged.PixelData = damaged.PixelData[:100]
        assert store(node.port, damaged, sentinel_radiograph(4, Modality=SENTINEL[:16])) == [0, 0]
        odd = sentinel_radiograph(5)
        odd.StudyInstanceUID = SENTINEL
        assert store(node.port, odd) == [0xC000]
        write(sentinel_radiograph(6), watched / f"{SENTINEL}.dcm")
        (watched / f"{SENTINEL}.txt").write_text(SENTINEL)
        wait_for(lambda: len(node.states()) == 5 and not {"received", "quiet", "generating"} & set(node.states()))
        outputs = [node.log, node.get("/metrics"), node.get("/health"), str(node.status())]
        for words in (("status",), ("status", "--json"), ("show", 1), ("show", 2), ("retry", 2), ("retry", 99)):  # type: ignore[assignment]
            done = run_here("node", *words, "--spool", node.spool)
            outputs.append(done.stdout + done.stderr)
        outputs.append("\n".join(str(path.relative_to(node.spool)) for path in node.spool.rglob("*")))
        assert node.terminate() == 0
        outputs.append(node.log)
        results = list((node.spool / "results").rglob("*.sr.dcm"))
        assert results
        assert SENTINEL in results[0].read_bytes().decode("latin-1"), "the sentinel works: it is in the report"
    for text in outputs:
        assert SENTINEL.lower() not in text.lower(), text
        assert UID_SENTINEL not in text, text
        assert "Traceback" not in text
    assert len(IDENTIFYING) > 30
    assert str(radiograph("1.2.3").PatientName) == "Test^Patient"
