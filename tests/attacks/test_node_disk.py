"""A spool on a disk that fills up: the sender is told 0xA700 and keeps its image, and the node goes on afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from r2gen_export.serving import status
from r2gen_export.serving.node import running_node
from r2gen_export.serving.settings import MEBI, Limits, NodeSettings, parse_dimse
from tests.serving.node_site import radiograph, store


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def node_on(disk: Path, reserve: int) -> NodeSettings:
    limits = Limits(reserve_bytes=reserve)
    place = parse_dimse("PACS@127.0.0.1:9")
    return NodeSettings("R2GEN", ("PACS",), (place,), disk / "spool", port=0, metrics_port=0, limits=limits)


def test_an_image_that_fills_the_disk_is_refused_whole(disk: Path) -> None:
    """It is larger than what is free, so the disk fills while it comes in."""
    with running_node(node_on(disk, reserve=1)) as node:
        assert store(node.server.port, radiograph("1.2.826.1", side=2048)) == [0xA700]
        assert list((disk / "spool/incoming").iterdir()) == []
        assert store(node.server.port, radiograph("1.2.826.2", side=512)) == [0], "there is space again"
        assert [row["images"] for row in status.studies(node.queue)] == [1]


def test_below_the_reserve_nothing_is_taken(disk: Path) -> None:
    with running_node(node_on(disk, reserve=2 * MEBI)) as node:
        filler = disk / "filler"
        filler.write_bytes(bytes(2 * MEBI))
        assert node.problems() == ["the disk is full"]
        assert node.health is not None
        with pytest.raises(urllib.error.HTTPError, match="503") as unhealthy:
            urllib.request.urlopen(f"http://127.0.0.1:{node.health.port}/health")
        assert json.loads(unhealthy.value.read()) == {"healthy": False, "problems": ["the disk is full"]}
        assert store(node.server.port, radiograph("1.2.826.1", side=64)) == [0xA700]
        assert 'r2gen_node_store_answers_total{status="0xA700"} 1.0' in node.metrics.text().decode()
        filler.unlink()
        assert store(node.server.port, radiograph("1.2.826.1", side=64)) == [0]
        assert node.problems() == []


def test_a_full_disk_takes_no_row_and_no_success(disk: Path) -> None:
    """The last byte is gone before the queue is written: no 0x0000 without a row."""
    with running_node(node_on(disk, reserve=1)) as node:
        filler = (disk / "filler").open("wb", buffering=0)
        answers: list[int] = []
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            filler.close()
        for number in range(3):
            answers += store(node.server.port, radiograph(f"1.2.826.{number}", side=8))
        assert set(answers) == {0xA700}
        (disk / "filler").unlink()
        assert status.studies(node.queue) == []
        assert store(node.server.port, radiograph("1.2.826.1", side=8)) == [0]
        assert [row["images"] for row in status.studies(node.queue)] == [1]
