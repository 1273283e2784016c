"""Node and Orthanc in a network of their own: the round trip, and no report lost or doubled when the node is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.node_site import DX, PDF, ROOT, SR, needs_dcmtk

needs_orthanc = pytest.mark.skipif(not Path("/usr/sbin/Orthanc").exists(), reason="needs Debian's orthanc")


def hospital(*words: object) -> dict[str, Any]:
    """The result of a command of `hospital.py`, in a network namespace where this user may make one."""
    command = [sys.executable, "-m", "tests.serving.hospital", *map(str, words)]
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("unshare") and not subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        command = [*alone, *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.slow
@needs_orthanc
@needs_dcmtk
def test_results_arrive_in_the_study_that_orthanc_sent() -> None:
    """By C-STORE and by STOW-RS both: the second finds the objects there and is answered success."""
    result = hospital("roundtrip")
    assert result["sent_by_orthanc"] == 2
    assert result["in_the_study"] == sorted([DX, SR, PDF])
    assert (result["elsewhere"], result["studies"]) == (0, 1)
    assert result["find"] == ["DOC", "DX", "SR"]
    assert result["qido"] == [1, 1]
    assert result["deliveries"] == [4, 4]
    assert result["exit"] == 0


@pytest.mark.slow
@needs_orthanc
def test_each_study_has_one_report_whenever_the_node_is_killed() -> None:
    """A short soak; `python -m tests.serving.hospital soak --studies 1000 --kills 20` is the long one."""
    studies = 12
    result = hospital("soak", "--studies", studies, "--kills", 2)
    assert (result["kills"], result["outages"]) == (2, 1)
    assert result["states"] == {"sent": studies}
    assert (result["with one"], result["without a report"], result["with more"]) == (studies, 0, 0)
    assert (result["of no study"], result["left in incoming"]) == (0, 0)
