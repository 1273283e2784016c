"""The measurement: fresh processes of every configuration, in turn, so that drift of the machine hits all alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, Final

from benchmarks.latency.settings import BenchSettings, Configuration
from benchmarks.latency.trackers import Nvml, Rapl, Watch
from benchmarks.latency.worker_pool import Group, studies_needed
from benchmarks.machine_rates import Machine, measure_rates
from r2gen_export.studies.archives import Archives
from r2gen_export.studies.collect import collect_studies
from r2gen_export.system.cores import available_cores

MOST_PHANTOMS: Final = 256
SEED: Final = 20_251_125
"""Of the phantoms: every run of the same shape reports on the same pictures."""


@dataclass
class Measured:
    """What came of one configuration.

    `starts`: one for each time its processes were started: `loaded`, `warm_up` and `rounds` as `worker_process.py`
    answers.
    """

    configuration: Configuration
    watch: Watch
    starts: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def studies(settings: BenchSettings, configurations: Sequence[Configuration]) -> Iterator[list[tuple[Path, ...]]]:
    """The studies that are reported on: those of `images`, or phantoms drawn for this call.

    Raises:
        R2GenError: `R2G-DATA-*`, `R2G-IMAGE-MISSING`; `R2G-DICOM-*` for the first study that no report is written for.
    """
    if settings.images is not None:
        with Archives() as archives:
            listed = collect_studies([settings.images], archives=archives)
            yield [study.readable_images(f"study {number}") for number, study in enumerate(listed.studies, start=1)]
        return
    from r2gen_export.phantoms import write_phantoms

    count = min(MOST_PHANTOMS, studies_needed(settings, configurations))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "phantoms"
        write_phantoms(
            folder, count, SEED, two_view=0.0, val_fraction=0.0, test_fraction=0.0, workers=1, progress=False
        )
        yield [study.images for study in collect_studies([folder / "annotation.json"]).studies]


def measure(
    settings: BenchSettings,
    configurations: Sequence[Configuration],
    pictures: Sequence[Sequence[Path]],
    say: Callable[[str], None],
) -> tuple[list[Measured], Machine]:
    """Time every configuration `settings.processes` times over, and the machine in between.

    Raises:
        R2GenError: what loading or reporting raises; nothing of the measurement is kept then.
    """
    nvml, rapl = Nvml(), Rapl()
    found = [Measured(one, Watch(rapl, nvml)) for one in configurations]
    threads = available_cores()
    moments = []
    started = monotonic()
    for number in range(settings.processes):
        place = f"process {number + 1} of {settings.processes}"
        if number:
            left = (monotonic() - started) / number * (settings.processes - number)
            place += f", about {timedelta(seconds=round(left))} left"
        say(f"{place}: rates of the machine")
        moments.append(measure_rates(threads))
        _one_process_each(settings, found, pictures, _prefixed(say, f"{place}: "))
    moments.append(measure_rates(threads))
    return found, Machine(threads, tuple(moments))


def _prefixed(say: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda line: say(prefix + line)


def _one_process_each(
    settings: BenchSettings,
    found: Sequence[Measured],
    pictures: Sequence[Sequence[Path]],
    say: Callable[[str], None],
) -> None:
    """Load all, then round after round one report from each, the others stopped."""
    with ExitStack() as stack:
        groups = []
        for measured in found:
            say(f"{measured.configuration.name}: load")
            group = stack.enter_context(Group(settings, measured.configuration, pictures))
            measured.starts.append({"loaded": group.load(), "warm_up": [], "rounds": []})
            group.stop()
            groups.append(group)
        for round_ in range(settings.warmup + settings.rounds):
            warm = round_ < settings.warmup
            at, of = (round_ + 1, settings.warmup) if warm else (round_ + 1 - settings.warmup, settings.rounds)
            say(f"{'warm-up' if warm else 'round'} {at} of {of}")
            for measured, group in zip(found, groups, strict=True):
                kept = measured.starts[-1]["warm_up" if warm else "rounds"]
                kept.append(_round(measured, group, round_, timed=not warm))


def _round(measured: Measured, group: Group, round_: int, *, timed: bool) -> dict[str, Any]:
    group.go_on()
    # Warm-ups are kept apart: what they met does not say how steady the timed rounds were.
    watch = measured.watch if timed else Watch(measured.watch.rapl, measured.watch.nvml)
    watch.round_begins()
    answers = group.run(round_)
    cost = watch.round_ended(sum(one["cpu_ms"] for one in answers))
    group.stop()
    return {"answers": answers, "cost": cost}
