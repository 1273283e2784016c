"""Threads and CPUs: hyper-threads counted once, containers' limits kept, and what the user names taken or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.runtime.cores import allowed_cpus, available_cores, physical_cores, thread_count, use_cpus


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    for cpu, shared in enumerate(["0,4", "1,5", "2,6", "3,7"] * 2):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "core_cpus_list").write_text(shared + "\n")
    assert physical_cores(set(range(8)), tmp_path) == 4
    assert physical_cores({0, 4}, tmp_path) == 1
    assert physical_cores({0, 5}, tmp_path) == 2
    assert physical_cores({0, 1, 2}, tmp_path / "none") == 3


def test_a_containers_quota_limits_the_cores(tmp_path: Path) -> None:
    whole = available_cores(tmp_path / "none")
    assert 1 <= whole <= len(allowed_cpus())
    quota = tmp_path / "cpu.max"
    for text, cores in (("max 100000", whole), ("100000 100000", 1), ("20000 100000", 1), ("99900000 100000", whole)):
        quota.write_text(text)
        assert available_cores(quota) == cores


def test_thread_counts() -> None:
    assert thread_count(None) == available_cores()
    assert thread_count(7) == 7
    for wrong in (0, -1, 1025):
        with pytest.raises(R2GenError, match=f"{wrong} threads"):
            thread_count(wrong)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_stays_on_the_cpus_it_is_given() -> None:
    last = max(allowed_cpus())
    code = f"from r2gen_export.runtime.cores import *; use_cpus('{last}'); print(allowed_cpus(), thread_count(None))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == [f"{{{last}}}", "1"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
@pytest.mark.parametrize("listed", ["", "a", "3-1", "-1", "0,", "0-99999", "1000"])
def test_lists_that_are_none_are_refused(listed: str) -> None:
    before = allowed_cpus()
    with pytest.raises(R2GenError, match="CPU") as caught:
        use_cpus(listed)
    assert caught.value.code == "R2G-CONFIG-VALUE"
    assert allowed_cpus() == before
