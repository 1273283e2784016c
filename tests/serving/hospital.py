"""A hospital's network in one process tree: an Orthanc, a node that is killed, and a modality that sends.

    python -m tests.serving.hospital roundtrip
    python -m tests.serving.hospital soak --studies 1000 --kills 20
    python -m tests.serving.hospital throughput --studies 60

Each prints one JSON object. The tests run them in a network namespace of their own where the system allows it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.serving.node_site import (
    MEMORY,
    PDF,
    SR,
    NodeProcess,
    Orthanc,
    dcmtk,
    free_port,
    node_process,
    orthanc,
    radiograph,
    store,
    wait_for,
    write,
)

STUDY = "1.2.826.0.1.3680043.10.1"


def roundtrip(folder: Path) -> dict[str, Any]:
    """Orthanc sends a study of two views to the node; results come back by C-STORE and by STOW-RS."""
    with orthanc(folder / "orthanc", free_port()) as pacs:
        forward = ("--forward", f"ORTHANC@127.0.0.1:{pacs.port}")
        web = ("--forward-web", f"http://127.0.0.1:{pacs.web_port}/dicom-web")
        with node_process(folder, *forward, *web, "--close-after", 1, "--preset", "fast") as node:
            node_port(pacs, node)
            data = radiograph(STUDY, 1), radiograph(STUDY, 2, ViewPosition="LL")
            for number, view in enumerate(data):
                pacs.post("/instances", write(view, folder / f"{number}.dcm").read_bytes())
            (study,) = pacs.get("/studies")
            job = pacs.post("/modalities/r2gen/store", study.encode())
            wait_for(lambda: node.states() == ["sent"], 120)
            kept = {(at[0], at[1]) for at in pacs.instances()}
            found = dcmtk("findscu", "-S", "-aet", "R2GEN", "-aec", "ORTHANC", "-k", "QueryRetrieveLevel=SERIES",
                          "-k", f"StudyInstanceUID={STUDY}", "-k", "Modality", "127.0.0.1", pacs.port)  # fmt: skip
            (reported,) = node.status()["studies"]
            return {
                "sent_by_orthanc": job["InstancesCount"] - job["FailedInstancesCount"],
                "in_the_study": sorted(Counter(sop_class for uid, sop_class in kept if uid == STUDY)),
                "elsewhere": len([uid for uid, _ in kept if uid != STUDY]),
                "studies": len(pacs.get("/studies")),
                "find": sorted(set(re.findall(r"\(0008,0060\) CS \[(\w+) *\]", found.stdout + found.stderr))),
                "qido": [len(pacs.qido(STUDY, modality)) for modality in ("SR", "DOC")],
                "deliveries": [reported["delivered"], reported["deliveries"]],
                "exit": node.terminate(),
            }


def node_port(pacs: Orthanc, node: NodeProcess) -> None:
    """Tell Orthanc the node's port, which is known after both have started."""
    body = json.dumps({"AET": "R2GEN", "Host": "127.0.0.1", "Port": node.port}).encode()
    pacs.put("/modalities/r2gen", body)


def soak(folder: Path, studies: int, kills: int, seed: int, preset: str) -> dict[str, Any]:
    """Studies in a row while the node is killed at random moments and Orthanc is down for a while.

    The modality sends each image until it was answered 0x0000, as modalities do; every fifth study has two images.
    """
    random.seed(seed)
    began = time.monotonic()
    facts: Counter[str] = Counter()
    with orthanc(folder / "orthanc", free_port()) as pacs:
        words = ("--forward", f"ORTHANC@127.0.0.1:{pacs.port}", "--close-after", 4, "--format", "sr",
                 "--retry-after", 0.5, "--preset", preset)  # fmt: skip
        with node_process(folder, *words) as node:
            sender = threading.Thread(target=_modality, args=(node, studies, facts))
            sender.start()
            done = threading.Event()
            outage = threading.Thread(target=_outage, args=(pacs, facts, studies, done))
            outage.start()
            for kill in range(1, kills + 1):
                target = kill * studies // (kills + 1)
                wait_for(lambda: reported(node) >= target, 3600)  # noqa: B023
                time.sleep(random.uniform(0, 2))
                states = Counter(node.states())
                facts["killed while reporting"] += states["generating"] > 0
                facts["killed while sending"] += states["sending"] + states["ready"] > 0
                node.kill()
                facts["kills"] += 1
                sys.stderr.write(f"kill {kill} of {kills} after {target} reports, {dict(states)}\n")
                node.start(ready=False)
            sender.join()
            done.set()
            outage.join()
            last = wait_for(lambda: _all_done(node), 3600)
            per_study = Counter(uid for uid, sop_class, _ in pacs.instances() if sop_class == SR)
            listed = node.status()["studies"]
            expected = [f"{STUDY}.{number}" for number in range(studies)]
            facts["seconds"] = round(time.monotonic() - began)
            return {
                **facts,
                "states": last,
                "without a report": sum(per_study[uid] == 0 for uid in expected),
                "with one": sum(per_study[uid] == 1 for uid in expected),
                "with more": sum(per_study[uid] > 1 for uid in expected),
                "of no study": len(set(per_study) - set(expected)),
                "revisions": len(listed) - studies,
                "begun again": sum(study["attempts"] > 1 for study in listed),
                "left in incoming": len(list((node.spool / "incoming").iterdir())),
            }


def reported(node: NodeProcess) -> int:
    """Studies that were reported, as another process reads the queue."""
    database = sqlite3.connect(f"file:{node.spool}/queue.sqlite3?mode=ro", uri=True, timeout=60)
    query = "SELECT count(*) FROM studies WHERE state NOT IN ('received', 'quiet', 'generating')"
    try:
        return int(database.execute(query).fetchone()[0])
    finally:
        database.close()


def _modality(node: NodeProcess, studies: int, facts: Counter[str]) -> None:
    """Never more than 20 studies ahead of the reports, so that the node is killed while it does everything."""
    for number in range(studies):
        wait_for(lambda: reported(node) > number - 20, 3600)  # noqa: B023
        uid = f"{STUDY}.{number}"
        images = [radiograph(uid, 1, side=128)]
        images += [radiograph(uid, 2, side=128, ViewPosition="LL")] if number % 5 == 4 else []
        while images:
            answered = [status == 0 for status in _store(node.port, images)]
            images = images[sum(answered) :] if all(answered) else images
            if images:
                facts["sent again"] += 1
                time.sleep(0.2)
        facts["studies sent"] += 1


def _store(port: int, images: list[Any]) -> list[int]:
    try:
        return store(port, *images)
    except (OSError, RuntimeError):
        return []


def _outage(pacs: Orthanc, facts: Counter[str], studies: int, done: threading.Event) -> None:
    while facts["studies sent"] < studies // 3 and not done.wait(0.1):
        pass
    pacs.stop()
    while facts["studies sent"] < studies // 2 and not done.wait(0.1):
        pass
    time.sleep(2)
    pacs.start()
    facts["outages"] += 1


def _all_done(node: NodeProcess) -> dict[str, int]:
    counts: dict[str, int] = node.status()["counts"]
    return counts if set(counts) <= {"sent", "refused", "dead"} else {}


def throughput(folder: Path, studies: int, preset: str, forms: str, side: int) -> dict[str, Any]:
    """Studies of one view by the embedded demo bundle, all of them received before the first is reported.

    `outside` is the share of the time from the first report to the last that was spent neither in `encode` nor in
    `prefill` and `decode`: reading, preprocessing, writing results, the queue, and the speed of the disk.
    """
    from pynetdicom import AE, evt

    sink = AE(ae_title="SINK")
    for sop_class in (SR, PDF):
        sink.add_supported_context(sop_class)
    port = free_port()
    sink.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0x0000)])
    words = ("--forward", f"SINK@127.0.0.1:{port}", "--close-after", 5, "--format", forms, "--preset", preset)
    with node_process(folder, *words) as node:
        images = [radiograph(f"{STUDY}.{number}", side=side) for number in range(studies)]
        received = time.monotonic()
        assert store(node.port, *images) == [0] * studies
        received = time.monotonic() - received
        wait_for(lambda: _all_done(node), 3600)
        log = [json.loads(line) for line in node.log.splitlines()]
        reports = [line for line in log if line["event"] == "study reported"]
        total = sum(line["ms"] for line in reports)
        model = sum(line["encode_ms"] + line["decode_ms"] for line in reports)
        sink.shutdown()
        return {
            "studies": len(reports), "preset": preset, "forms": forms, "side": side,
            "studies_per_minute": round(60_000 * len(reports) / total, 1), "ms_per_study": round(total / len(reports)),
            "outside_encode_and_decode": round(1 - model / total, 3),
            "receive_ms_per_image": round(1000 * received / studies, 1),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.serving.hospital")
    parser.add_argument("what", choices=("roundtrip", "soak", "throughput"))
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--format", default="sr,pdf")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--disk", type=Path, help="folder to work in; default: in memory")
    given = parser.parse_args()
    parent = given.disk or (MEMORY if MEMORY.is_dir() else None)
    folder = Path(tempfile.mkdtemp(prefix="r2gen-hospital-", dir=parent))
    try:
        if given.what == "roundtrip":
            result = roundtrip(folder)
        elif given.what == "soak":
            result = soak(folder, given.studies, given.kills, given.seed, given.preset)
        else:
            result = throughput(folder, given.studies, given.preset, given.format, given.side)
        sys.stdout.write(json.dumps(result) + "\n")
    except BaseException:
        log = folder / "node.log"
        sys.stderr.write(log.read_text()[-4000:] if log.exists() else "no log\n")
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
