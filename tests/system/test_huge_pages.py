"""Huge pages: asked for before a process allocates, once, and only where that changes something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r2gen_export.system.huge_pages import HUGE, TUNABLES, huge_page_environment, use_huge_pages

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")

RESTART = f"""
import os, sys
from r2gen_export.system.huge_pages import restart_with_huge_pages
print("start", flush=True)
restart_with_huge_pages()
print(os.getpid(), os.environ.get("{TUNABLES}"), sys.argv[1:], flush=True)
"""


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A kernel that gives huge pages where they are asked for."""
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    return tmp_path / "enabled"


def test_asked_for_only_where_it_helps(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TUNABLES, raising=False)
    assert huge_page_environment(asked) == {TUNABLES: f"{HUGE}=1"}
    assert huge_page_environment(tmp_path / "none") == {}
    for always in ("[always] madvise never", "always madvise [never]"):
        asked.write_text(always)
        assert huge_page_environment(asked) == {}


def test_what_the_user_set_stays(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TUNABLES, "glibc.malloc.check=3")
    assert huge_page_environment(asked) == {TUNABLES: f"glibc.malloc.check=3:{HUGE}=1"}
    monkeypatch.setenv(TUNABLES, f"{HUGE}=0")
    assert huge_page_environment(asked) == {}


def test_a_process_starts_again_once_as_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TUNABLES, raising=False)
    if not huge_page_environment():
        pytest.skip("this kernel gives huge pages always or never")
    process = subprocess.Popen(
        [sys.executable, "-c", RESTART, "one", "two words"], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    lines = (process.communicate()[0]).splitlines()
    assert process.returncode == 0
    assert lines == ["start", "start", f"{process.pid} {HUGE}=1 ['one', 'two words']"]


def test_memory_is_collapsed() -> None:
    held = bytearray(64 << 20)
    held[::4096] = b"x" * (len(held) // 4096)
    done = use_huge_pages()
    if not done:
        pytest.skip("this kernel collapses no pages")
    assert done >= 32 << 20
