"""As `test_sentinel_names.py`, of the commands that take longer: `train`, `verify --images` and `bench`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TinySources
from tests.helpers.sentinel import FAULTS, NAME, PHANTOM, ROOT, Site, assert_nameless, failing, make_site, run, written

FAULT = """
import errno, pathlib, sys
opened = pathlib.Path.open
def fails(self, *arguments, **options):
    if "{name}" in str(self) and self.suffix == ".png":
        raise {fault}
    return opened(self, *arguments, **options)
pathlib.Path.open = fails
"""
"""A `sitecustomize`, for processes that a command starts."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny matrices: more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(site: Site, sources: TinySources, out: Path, *more: object) -> tuple[int, str]:
    """`train` for one epoch into a folder that bears the name too; its status, output and all files it wrote."""
    out = out.with_name(f"{NAME}-{out.name}")
    status, text = run(
        "train", "--annotation", site.annotation, "--base-dir", site.folder / "images", "--vision", sources.vision,
        "--llm", sources.llm, "--out", out, "--epochs", 1, "--accelerator", "cpu", "--workers", 0, *more,
    )  # fmt: skip
    return status, text + written(out)


def test_a_training_names_no_study(site: Site, tiny_sources: TinySources, tmp_path: Path) -> None:
    for name, more in (("cached", ()), ("read", ("--no-cache",)), ("scored", ("--select", "rouge_l"))):
        status, text = trained(site, tiny_sources, tmp_path / name, *more)
        assert status == 0, text[-2000:]
        assert_nameless(text)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_training_that_cannot_read_an_image(site: Site, tiny_sources: TinySources, tmp_path: Path, kind: str) -> None:
    """Into the feature cache, and at each step; both ways for the kinds that have code of their own."""
    ways = (("cached", ()), ("read", ("--no-cache",)))
    both = kind in ("stale handle", "out of memory", "Ctrl-C", "bug")
    for name, more in ways if both else ways[list(FAULTS).index(kind) % 2 :][:1]:
        with failing(FAULTS[kind]) as hit:
            status, text = trained(site, tiny_sources, tmp_path / name, *more)
        assert hit
        assert status == (130 if kind == "Ctrl-C" else status or 1), text
        assert_nameless(text)
        if kind not in ("Ctrl-C", "out of memory"):
            assert "image_path[0] of the annotation" in text


def test_a_training_whose_reading_process_fails(site: Site, tiny_sources: TinySources, tmp_path: Path) -> None:
    """What fails there comes back to this process with its code."""
    for kind in ("stale handle", "bug", "out of memory"):
        with failing(FAULTS[kind]):
            status, text = trained(site, tiny_sources, tmp_path / kind, "--no-cache", "--workers", 1)
        assert status in (1, 2), text
        assert_nameless(text)


def test_a_training_whose_data_are_damaged(site: Site, tiny_sources: TinySources, tmp_path: Path) -> None:
    def no_annotation() -> None:
        site.annotation.write_text(f'{{"train": [{{"id": "{NAME}", "report": "{NAME}"')

    damages: tuple[Callable[[], object], ...] = (
        lambda: site.victim.write_bytes(PHANTOM.read_bytes()[:5000]),
        lambda: site.victim.write_text(f"{NAME} is no image"),
        site.victim.unlink,
        no_annotation,
        site.annotation.unlink,
    )
    for number, damage in enumerate(damages):
        damage()
        for more in ((), ("--no-cache",)):
            status, text = trained(site, tiny_sources, tmp_path / f"{number}{len(more)}", *more)
            assert status == 2, text
            assert_nameless(text)


def test_verify_with_images(site: Site, tiny_sources: TinySources, tiny_bundle: Path) -> None:
    sources = ("--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision, "--llm", tiny_sources.llm)
    short = ("verify", tiny_bundle, *sources, "--parity-tokens", 3, "--images")
    for form, source, kind in (
        ("text", site.list, "stale handle"), ("json", site.annotation, "bug"),
        ("json", site.folder / "images", "out of memory"), ("text", site.victim, "Ctrl-C"),
    ):  # fmt: skip
        with failing(FAULTS[kind]) as hit:
            status, text = run(*short, source, "--format", form)
        assert hit
        assert status in ((130,) if kind == "Ctrl-C" else (1, 2)), text
        assert_nameless(text)
    status, text = run(*short, site.list, "--format", "json")
    assert status == 0, text
    assert_nameless(text)


def test_bench_with_images(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ("bench", "--devices", "cpu", "--runs", 1, "--processes", 1, "--warmup", 1, "--max-new-tokens", 3)
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        # As on a command line: the report records it.
        patched.setattr(sys, "argv", ["r2gen", *map(str, short), "--images", str(site.list), "--out", str(out)])
        status, text = run(*short, "--images", site.list, "--out", out)
    assert status == 0, text
    assert_nameless(text, written(out))
    shutil.rmtree(out)
    for fault, more in (
        ('OSError(errno.ESTALE, "Stale file handle", str(self))', ()),
        ("RuntimeError(str(self))", ("--batch", 2)),
        ("MemoryError(str(self))", ("--quiet",)),
        ("KeyboardInterrupt(str(self))", ()),
    ):
        hook = tmp_path / "hook"
        hook.mkdir(exist_ok=True)
        (hook / "sitecustomize.py").write_text(FAULT.format(name=NAME, fault=fault))
        with monkeypatch.context() as patched:
            patched.setenv("PYTHONPATH", os.pathsep.join([str(hook), str(ROOT)]))
            status, text = run(*short, *more, "--images", site.annotation, "--out", out)
        assert status in (1, 2), text
        assert_nameless(text)
        assert fault.startswith("Keyboard") or "stud" in text.splitlines()[-2], text
        assert not out.exists()
    for damaged in (site.victim, site.annotation):
        damaged.write_text(f"{NAME} is neither image nor annotation")
        status, text = run(*short, "--images", site.annotation, "--out", out)
        assert status == 2, text
        assert_nameless(text)
