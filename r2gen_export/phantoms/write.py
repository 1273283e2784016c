"""`r2gen phantom`: a folder of synthetic studies in the R2Gen form, with labels beside the reports."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from r2gen_export.errors import R2GenError
from r2gen_export.phantoms.draw import draw_study
from r2gen_export.phantoms.findings import sample_findings
from r2gen_export.phantoms.grammar import write_report
from r2gen_export.system.cores import available_cores
from r2gen_export.system.files import atomic_dir

CHUNK: Final = 32
"""Studies per task of a worker process."""


@dataclass(frozen=True)
class _Plan:
    folder: Path
    seed: int
    size: int
    two_view: float


def write_phantoms(
    out: Path,
    studies: int,
    seed: int = 0,
    *,
    size: int = 256,
    two_view: float = 0.35,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write synthetic studies: `images/ID/N.png` (8-bit grey), `annotation.json` (R2Gen form) and `labels.json`.

    `labels.json` maps a study's id to its findings as {name, side, severity, zone}. A study depends on `seed` and its
    own number only, so that more studies of a seed begin with the same ones.

    Args:
        out: folder to write; it must not exist.
        studies: how many.
        seed: of everything that varies.
        size: side of the square pictures in pixels.
        two_view: share of studies with a lateral view beside the frontal one.
        val_fraction, test_fraction: shares of the studies in those splits, taken from the end.
        workers: processes to draw with; the usable processors when None.
        progress: show a progress bar on stderr.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for impossible shares, `R2G-OUTPUT-EXISTS`, `R2G-OUTPUT-WRITE`.
    """
    if studies < 1 or min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction > 1:
        raise R2GenError(
            "R2G-CONFIG-VALUE",
            f"{studies} studies with shares {val_fraction:g} (val) and {test_fraction:g} (test)",
            "ask for at least one study, and shares that are not negative and add up to at most 1",
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, quiet=not progress)
    with atomic_dir(Path(out)) as folder, Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("phantoms", total=studies)
        entries: list[dict[str, Any]] = []
        labels: dict[str, list[dict[str, Any]]] = {}
        for entry, findings in _draw(_Plan(folder, seed, size, two_view), studies, workers or available_cores()):
            entries.append(entry)
            labels[entry["id"]] = findings
            bar.advance(task)
        test = studies - round(studies * test_fraction)
        val = test - round(studies * val_fraction)
        splits = {"train": entries[:val], "val": entries[val:test], "test": entries[test:]}
        (folder / "annotation.json").write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")
        (folder / "labels.json").write_text(json.dumps(labels) + "\n", encoding="utf-8")


Written = tuple[dict[str, Any], list[dict[str, Any]]]
"""A study's entry of annotation.json and of labels.json."""


def _draw(plan: _Plan, studies: int, workers: int) -> Iterator[Written]:
    chunks = [range(start, min(start + CHUNK, studies)) for start in range(0, studies, CHUNK)]
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            yield from _write_studies(plan, chunk)
        return
    with ExitStack() as stack:
        # Not fork: the caller may hold threads. Ctrl-C is the parent's to handle, and it drops what is queued.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            workers, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )
        stack.callback(pool.shutdown, cancel_futures=True)
        for future in [pool.submit(_write_studies, plan, chunk) for chunk in chunks]:
            yield from future.result()


def _write_studies(plan: _Plan, numbers: range) -> list[Written]:
    return [_write_study(plan, number) for number in numbers]


def _write_study(plan: _Plan, number: int) -> Written:
    rng = np.random.default_rng([plan.seed, number])
    findings = sample_findings(rng)
    views = 2 if rng.random() < plan.two_view else 1
    name = f"phantom-{number:06d}"
    (plan.folder / "images" / name).mkdir(parents=True)
    paths = []
    for view, picture in enumerate(draw_study(findings, rng, plan.size, views)):
        paths.append(f"{name}/{view}.png")
        Image.fromarray(picture).save(plan.folder / "images" / paths[-1], compress_level=1)
    entry = {"id": name, "report": write_report(findings, rng), "image_path": paths}
    return entry, [asdict(finding) for finding in findings]
