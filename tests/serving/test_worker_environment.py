"""The processes that write reports get huge pages for a large model on the CPU, from their start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from r2gen_export.serving.worker import Worker, WorkerSettings
from r2gen_export.serving.worker_environment import worker_environment
from r2gen_export.system.huge_pages import HUGE, TUNABLES, huge_page_environment


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo counts as large."""
    monkeypatch.setattr("r2gen_export.runtime.backends.decoders.LARGE", 0)
    monkeypatch.delenv(TUNABLES, raising=False)
    if not huge_page_environment():
        pytest.skip("this kernel gives huge pages always or never")


def has_huge_pages(pid: int | None) -> bool:
    """By the variables with which the process started."""
    return f"{TUNABLES}={HUGE}=1".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_only_a_large_model_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TUNABLES in worker_environment(None, "cpu")
    assert TUNABLES in worker_environment(None, "openvino")
    assert TUNABLES not in worker_environment(None, "cuda")
    assert TUNABLES not in worker_environment("no such bundle", "cpu")
    monkeypatch.setattr("r2gen_export.runtime.backends.decoders.LARGE", 1 << 40)
    assert TUNABLES not in worker_environment(None, "cpu")


def test_the_nodes_process() -> None:
    pytest.importorskip("pydicom")
    worker = Worker(WorkerSettings(device="cpu"))
    try:
        worker.start()
        assert has_huge_pages(worker.pid)
    finally:
        worker.stop()


def test_the_services_process(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    from r2gen_export.serving.http_jobs import Jobs
    from r2gen_export.serving.http_metrics import HttpMetrics
    from r2gen_export.serving.http_settings import HttpLimits
    from r2gen_export.serving.http_worker import HttpWorkerSettings
    from r2gen_export.serving.log import EventLog

    async def start() -> bool:
        jobs = Jobs(HttpWorkerSettings(device="cpu"), HttpLimits(), tmp_path, HttpMetrics(), EventLog())
        running = asyncio.create_task(jobs.run())
        while jobs.ready is None:
            assert not running.done(), jobs.problem
            await asyncio.sleep(0.05)
        huge = has_huge_pages(jobs.pid)
        jobs.kill()
        await running
        return huge

    assert asyncio.run(start())
