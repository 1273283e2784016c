"""stdout and stderr that are closed, full or of another encoding; and a disk that fills up in the middle of many."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from r2gen_export.bundle import demo_bundle, load_manifest, seal

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, str(ROOT / "cli.py")]
PHANTOM = ROOT / "tests/data/phantom.png"
SHORT = ("--preset", "fast", "--min-new-tokens", "3", "--max-new-tokens", "6")

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def shell(redirection: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`r2gen ARGUMENTS` behind a shell's redirection."""
    command = ["bash", "-c", f'"$@" {redirection}', "bash", *CLI, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", **variables}
    return subprocess.run(command, capture_output=True, check=False, env=environment)


@pytest.fixture(scope="module")
def plain() -> bytes:
    """What stdout holds with streams as they should be."""
    done = shell("", "infer", PHANTOM, *SHORT)
    assert done.returncode == 0
    return done.stdout


@needs_full
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_a_report_needs_no_stderr(plain: bytes, redirection: str) -> None:
    done = shell(redirection, "infer", PHANTOM, *SHORT)
    assert (done.returncode, done.stdout) == (0, plain)


@needs_full
@pytest.mark.parametrize(("redirection", "said"), [(">&-", "it is closed"), (">/dev/full", "the disk is full")])
@pytest.mark.parametrize("arguments", [("infer", PHANTOM, *SHORT, "--quiet"), ("--help",)], ids=("infer", "help"))
def test_a_stdout_that_takes_nothing_is_an_error(redirection: str, said: str, arguments: tuple[object, ...]) -> None:
    done = shell(redirection, *arguments)
    assert done.returncode == 2
    first, fix = done.stderr.decode().splitlines()
    assert first == f"R2G-OUTPUT-WRITE: stdout: {said}"
    assert fix.startswith("  fix: ")


@needs_full
def test_nothing_can_be_said_at_all() -> None:
    assert shell(">/dev/full 2>/dev/full", "infer", PHANTOM, *SHORT).returncode == 2
    assert shell("2>/dev/full", "infer", "none.png").returncode == 2


@pytest.fixture(scope="module")
def accented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle, with a decoder of its tokenizer that writes U+2265 and U+00E9 for `e`."""
    bundle = tmp_path_factory.mktemp("bundles") / "accented"
    shutil.copytree(demo_bundle(), bundle)
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": "e"}, "content": "\u2265\u00e9"}
    steps = tokenizer["decoder"]
    steps = steps["decoders"] if steps["type"] == "Sequence" else [steps]
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [*steps, replace]}
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer))
    seal(bundle, dataclasses.replace(load_manifest(bundle), files={}))
    return bundle


@pytest.mark.parametrize(
    ("encoding", "more"),
    [("cp1252", ()), ("cp1252", ("--stream",)), ("ascii", (PHANTOM,)), ("utf-8", ())],
    ids=("cp1252", "streamed", "ascii, many", "utf-8"),
)
def test_an_encoding_that_lacks_characters_costs_no_report(accented: Path, encoding: str, more: tuple[object]) -> None:
    done = shell("", "infer", PHANTOM, *more, "--bundle", accented, *SHORT, "--quiet", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text, errors = done.stdout.decode(encoding), done.stderr.decode()
    assert text.count("Research use only") == (2 if more == (PHANTOM,) else 1)
    if encoding == "utf-8":
        assert "\u2265\u00e9" in text
        assert errors == ""
    else:
        assert ("\\u2265\u00e9" if encoding == "cp1252" else "\\u2265\\xe9") in text
        assert errors.count("WARNING") == 1
        assert f"stdout is {encoding}" in errors


@pytest.mark.parametrize("limit", [1_000, 9_000])
def test_a_disk_that_fills_up_keeps_the_lines_that_are_whole(tmp_path: Path, limit: int) -> None:
    """A limit on the size of the file stands for it; 1,000 bytes do not hold a report."""
    folder, out = tmp_path / "many", tmp_path / "out/reports.jsonl"
    folder.mkdir()
    for number in range(12):
        shutil.copy(PHANTOM, folder / f"{number}.png")
    command = [*CLI, "infer", str(folder), "--format", "json", *SHORT, "--quiet", "--out", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2
    *told, first, fix = done.stderr.splitlines()
    assert first.startswith("R2G-OUTPUT-WRITE: the file of --out: ")
    assert fix.startswith("  fix: ")
    partial = out.with_name("reports.jsonl.partial")
    if limit == 1_000:
        assert (told, list(out.parent.iterdir())) == ([], [])
        return
    lines = partial.read_text().splitlines(keepends=True)
    assert lines and all(line.endswith("\n") and json.loads(line) for line in lines)
    assert told == [
        f"{partial} has the {len(lines)} of 12 studies that were finished; the same command with --resume does the rest"
    ]


def test_an_output_that_is_there_is_refused_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "report.txt"
    out.write_text("mine")
    refused = shell("", "infer", "none.png", "--bundle", tmp_path / "none", "--out", out)
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"R2G-OUTPUT-EXISTS")
    assert out.read_text() == "mine"
    done = shell("", "infer", PHANTOM, *SHORT, "--out", out, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "Research use only" in out.read_text()
    assert list(tmp_path.iterdir()) == [out]


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    """A bundle there is refused by its path, not as a broken graph; images there are read, and so is `.`"""
    folder = tmp_path / os.fsdecode(b"lat\xe4n")
    shutil.copytree(demo_bundle(), folder / "bundle")
    shutil.copy(PHANTOM, folder / "1.png")
    refused = shell("", "infer", PHANTOM, "--quiet", "--bundle", folder / "bundle")
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"R2G-CONFIG-VALUE: the path of the bundle is not UTF-8")
    out = folder / os.fsdecode(b"\xff")
    refused = shell("", "export", "--checkpoint", "c", "--vision", "v", "--llm", "l", "--out", out)
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"R2G-CONFIG-VALUE: the path of --out is not UTF-8"), "before its sources are read"
    assert not out.exists()
    done = shell("", "infer", folder, *SHORT, "--quiet", "--names")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"lat\\udce4n/1.png" in done.stdout
    inside = [*CLI, "infer", "1.png", *SHORT, "--bundle", "bundle", "--quiet"]
    assert subprocess.run(inside, cwd=folder, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("open_it", [lambda: None, io.StringIO], ids=("none", "memory"))
def test_the_library_can_be_used_without_streams(
    monkeypatch: pytest.MonkeyPatch, open_it: Callable[[], io.StringIO | None]
) -> None:
    """pythonw has none, a notebook other ones."""
    from r2gen_export.commands.console import say

    stream = open_it()
    monkeypatch.setattr(sys, "stderr", stream)
    say("line")
    assert stream is None or stream.getvalue() == "line\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on address space")
@pytest.mark.parametrize("kilobytes", [200_000, 230_000, 250_000])
def test_little_memory_is_said_to_be_that(kilobytes: int) -> None:
    """Where it ends differs between machines: at a library, a graph, an image; or it suffices."""
    command = f'ulimit -v {kilobytes}; exec "$@"'
    arguments = ["infer", str(PHANTOM), "--format", "json", "--quiet", "--device", "cpu"]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *CLI, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        assert json.loads(done.stdout)["text"]
        return
    assert done.stdout == ""
    if done.returncode == -signal.SIGABRT:  # the tokenizer's Rust ends the process; nothing in it can catch that
        assert "memory allocation of" in done.stderr
        return
    assert done.returncode == 2, done.stderr
    assert "R2G-RESOURCE-MEMORY" in done.stderr or "R2G-IMAGE-SIZE" in done.stderr, done.stderr
    assert "memory" in done.stderr
