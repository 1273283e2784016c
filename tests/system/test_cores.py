"""Threads and CPUs: hyper-threads counted once, containers' limits kept, and what the user names taken or refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.system.cores import allowed_cpus, available_cores, cpu_quotas, physical_cores, thread_count, use_cpus


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
    whole = available_cores(tmp_path / "none", tmp_path / "none")
    assert 1 <= whole <= len(allowed_cpus())
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    quota = tmp_path / "cpu.max"
    for text, cores in (("max 100000", whole), ("100000 100000", 1), ("20000 100000", 1), ("99900000 100000", whole)):
        quota.write_text(text)
        assert available_cores(tmp_path, own) == cores


def test_the_least_quota_of_nested_groups_holds(tmp_path: Path) -> None:
    """Version 2: a job in a slice has no `cpu.max` at the root; each level may limit."""
    own = tmp_path / "own"
    own.write_text("0::/slice/job/step\n")
    for group, text in (("slice", "800000 100000"), ("slice/job", "250000 100000"), ("slice/job/step", "max 100000")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "cpu.max").write_text(text)
    assert cpu_quotas(tmp_path, own) == [2.5, 8.0]
    own.write_text("0::/of/the/host\n")  # a container that sees its host's path and its own files
    (tmp_path / "cpu.max").write_text("300000 100000")
    assert cpu_quotas(tmp_path, own) == [3.0]


@pytest.mark.parametrize("mounted", ["cpu,cpuacct", "cpu"])
def test_a_quota_of_version_1(tmp_path: Path, mounted: str) -> None:
    own = tmp_path / "own"
    own.write_text("5:cpuset:/\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    for group, quota in ((".", "-1"), ("docker", "-1"), ("docker/abc", "150000")):
        folder = tmp_path / mounted / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quotas(tmp_path, own) == [1.5]


def test_thread_counts() -> None:
    most = len(allowed_cpus())
    assert thread_count(None) == available_cores()
    assert thread_count(most) == most
    for wrong in (0, -1, most + 1):
        with pytest.raises(R2GenError, match=f"{wrong} threads on {most} CPUs"):
            thread_count(wrong)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_stays_on_the_cpus_it_is_given() -> None:
    last = max(allowed_cpus())
    code = f"from r2gen_export.system.cores import *; use_cpus('{last}'); print(allowed_cpus(), thread_count(None))"
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
