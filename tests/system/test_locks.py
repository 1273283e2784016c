"""A lock is held against other processes, waited for, and given up by a process that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.system.locks import file_lock

HOLDER = """
import sys, time
from pathlib import Path
from r2gen_export.system.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_waits_for_another_process_says_so_once_and_goes_on_when_that_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        calls: list[str] = []

        def waiting() -> None:
            calls.append("waiting")
            threading.Timer(0.3, lambda: holder.send_signal(signal.SIGKILL)).start()

        with file_lock(tmp_path / "lock", waiting=waiting):
            assert holder.wait(10) == -signal.SIGKILL
        assert calls == ["waiting"]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()  # type: ignore[union-attr]


def test_a_free_lock_is_not_waited_for(tmp_path: Path) -> None:
    for _ in range(2):
        with file_lock(tmp_path / "lock", waiting=lambda: pytest.fail("waited")):
            pass


def test_where_no_lock_can_be_made_the_error_has_a_code(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(R2GenError) as caught, file_lock(tmp_path / "lock"):
        pass
    assert caught.value.code == "R2G-OUTPUT-WRITE"


def test_a_linked_lock_file_is_followed_and_what_it_holds_stays(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("content", encoding="utf-8")
    (tmp_path / "lock").symlink_to("blob")
    with file_lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").is_symlink()
    assert (tmp_path / "blob").read_text(encoding="utf-8") == "content"
