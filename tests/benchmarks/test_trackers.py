"""Readings of the system, from folders that look like the kernel's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.latency import stability as steadiness
from benchmarks.latency.measure import Measured
from benchmarks.latency.trackers import Nvml, Rapl, Watch, processor_seconds
from benchmarks.machine_rates import Machine, Rates
from tests.benchmarks.synthetic import starts


def package(folder: Path, number: int, energy: int, wraps: int = 1000) -> Path:
    domain = folder / f"intel-rapl:{number}"
    domain.mkdir(parents=True)
    (domain / "energy_uj").write_text(f"{energy}\n", encoding="ascii")
    (domain / "max_energy_range_uj").write_text(f"{wraps}\n", encoding="ascii")
    return domain / "energy_uj"


def test_rapl_adds_packages_and_survives_a_wrapped_counter(tmp_path):
    first, second = package(tmp_path, 0, 100), package(tmp_path, 1, 900)
    package(tmp_path / "intel-rapl:0", 7, 5)
    rapl = Rapl(tmp_path)
    before = rapl.read()
    first.write_text("400", encoding="ascii")
    second.write_text("99", encoding="ascii")
    assert rapl.joules(before, rapl.read()) == pytest.approx((300 + 200) / 1e6)
    assert rapl.reason == ""


def test_no_counters_have_a_reason(tmp_path):
    rapl = Rapl(tmp_path)
    assert rapl.reason == "this system shows no RAPL counters"
    assert rapl.joules(rapl.read(), rapl.read()) is None


def test_processor_seconds(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 100 200 5000 50 10 20 300 0 0\ncpu0 1 1 1 1\n", encoding="ascii")
    busy, stolen = processor_seconds(stat)
    assert busy / stolen == pytest.approx((1000 + 100 + 200 + 10 + 20) / 300)
    assert processor_seconds(tmp_path / "none") is None


def measured(totals: list[list[float]], **watch: Any) -> Measured:
    return Measured(None, Watch(Rapl(Path("/nowhere")), Nvml(), **watch), starts(totals))  # type: ignore[arg-type]


RISING = [[100.0 + 2 * number + 8 * process for number in range(4)] for process in range(6)]
STEADY = Machine(2, (Rates(50.0, 100.0, 800.0, 30.0),) * 3)


def test_a_steady_run_has_no_warnings():
    found = steadiness.steadiness(
        measured([[100.0, 101.0, 99.0, 100.0]] * 6, wall_s=2.4, own_s=2, busy_s=2.1), STEADY, 2
    )
    assert found["warnings"] == []
    assert found["foreign_cores"] == pytest.approx(0.1 / 2.4)


def test_drafts_that_had_seen_the_report_are_said():
    one = measured([[100.0] * 4] * 6, wall_s=2.4, own_s=2, busy_s=2.1)
    one.starts[0]["rounds"][0]["answers"][0]["reports"][0]["drafted"] = 5
    (warning,) = steadiness.steadiness(one, STEADY, 2)["warnings"]
    assert "studies came more than once" in warning


@pytest.mark.parametrize(
    ("totals", "watch", "machine", "said"),
    [
        (RISING, {}, STEADY, "drifted by +"),
        ([[100.0, 100.5, 99.5, 220.0]] * 6, {}, STEADY, "far slower"),
        ([[100.0] * 4] * 6, {"busy_s": 5.0}, STEADY, "other programs kept 1.2 of 2 cores busy"),
        ([[100.0] * 4] * 6, {"stolen_s": 0.5}, STEADY, "the hypervisor took 0.21 of 2 cores"),
        ([[100.0] * 4] * 6, {"readable": False}, STEADY, "could not be read"),
        ([[100.0] * 4] * 6, {"gpu_throttle": 0x40}, STEADY, "GPU's clocks were lowered (NVML reasons 0x40)"),
        ([[100.0] * 4] * 6, {}, Machine(2, (*STEADY.moments, Rates(50.0, 100.0, 800.0, 20.0))), "1.50 times its"),
        ([[100.0] * 4] * 6, {}, Machine(2, (*STEADY.moments, Rates(50.0, 60.0, 800.0, 30.0))), "product took up to"),
        ([[100.0] * 4] * 6, {}, Machine(2, (*STEADY.moments, Rates(25.0, 100.0, 800.0, 30.0))), "bandwidth varied"),
    ],
)  # fmt: skip
def test_what_makes_numbers_doubtful_is_said(totals, watch, machine, said):
    given = {"wall_s": 2.4, "own_s": 2.0, "busy_s": 2.1, **watch}
    warnings = steadiness.steadiness(measured(totals, **given), machine, 2)["warnings"]
    assert any(said in warning for warning in warnings), warnings
