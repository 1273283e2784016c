"""`r2gen bench` on the embedded demo bundle: one real run, read from every side."""

from __future__ import annotations

import csv
import getpass
import json
import re
import socket
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.latency.environment import command_line
from benchmarks.latency.metrics import METRICS
from benchmarks.peers.results import PEERS_SCHEMA, write_results
from r2gen_export.bundle import NOTICE, demo_bundle, load_manifest
from r2gen_export.reporting.report import STAGES
from r2gen_export.system.cores import available_cores, processor_name
from tests.command import run_cli, run_here


@dataclass
class Contender:
    """As `benchmarks.peers` has them after its rounds."""

    name: str = "<engine>"
    load_s: float = 1.5
    peak_gb: float = 1.0
    samples: dict = field(
        default_factory=lambda: {1: [{"prefill_ms": 12.0, "decode_ms": [4.0, 5.0, 4.5], "total_ms": 30.0}]}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configurations, two processes of each, with another engine's figures beside them."""
    folder = tmp_path_factory.mktemp("bench")
    peers = folder / "peers.json"
    write_results(peers, [Contender()], {"shape": "tiny", "threads": 2}, beams=3)
    done = run_cli("bench", "--devices", "cpu", "--batch", "1,2", "--runs", 4, "--processes", 2, "--max-new-tokens", 12,
                   "--peers", peers, "--out", folder / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert NOTICE in done.stdout
    assert re.search(r"x the floor of [\d.,]+ ms \((memory|arithmetic)\): ", done.stdout)
    return folder / "out"


@pytest.fixture(scope="module")
def report(run: Path) -> dict:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def test_the_folder(run):
    assert sorted(path.name for path in run.iterdir()) == ["report.html", "report.json", "report.md", "samples.csv"]
    assert not list(run.parent.glob(".*.part"))


def test_configurations_and_samples(report):
    one, two = report["configurations"]
    assert [one["name"], two["name"]] == ["cpu, fast", "cpu, fast, batch 2"]
    assert one["provider"] == "CPUExecutionProvider"
    assert one["decoding"]["max_new_tokens"] == 12
    for found in (one, two):
        assert found["metrics"]["total"]["n"] == 4
        assert found["metrics"]["load"]["n"] == found["metrics"]["peak_rss"]["n"] == 2
        assert {found["metrics"]["total"][name] for name in ("p90", "p95", "p99")} == {"n too small"}
        assert found["metrics"]["total"]["ci95"] == {}, "from four samples"
        assert [len(cluster) for cluster in found["samples"]["total"]] == [2, 2]
        assert [len(cluster) for cluster in found["sample_studies"]] == [2, 2]
        assert found["metrics"]["itl"]["n"] == sum(map(len, found["samples"]["itl"])) == 4 * 11
        assert found["metrics"].keys() <= METRICS.keys() == report["definitions"].keys()
        assert len(found["per_token"]) == 11
    assert one["sample_studies"][0] == one["sample_studies"][1], "every process goes through the same studies"
    assert one["sample_studies"][0][0] not in one["sample_studies"][0][1:], "none of which comes twice"
    assert one["words"].keys() >= {"0", "1", "2"}
    assert all(re.fullmatch("[0-9a-f]{12}", digest) for digest in one["words"].values())


def test_stages_add_up(report):
    for found in report["configurations"]:
        for process in range(2):
            for sample in range(2):
                parts = [found["samples"][name][process][sample] for name in (*STAGES, "other")]
                assert sum(parts) == pytest.approx(found["samples"]["total"][process][sample], rel=1e-3)
                assert min(parts) > 0
                ttft = found["samples"]["ttft"][process][sample]
                assert ttft == pytest.approx(sum(parts[:3]), rel=1e-3)
                tpot = found["samples"]["tpot"][process][sample]
                assert tpot == pytest.approx(found["samples"]["decode"][process][sample] / 11, rel=1e-3)


def test_floors(report):
    one, two = (found["roofline"] for found in report["configurations"])
    for stage in ("encode", "prefill", "decode"):
        times = one[stage]["measured_ms"] / one[stage]["floor_ms"]
        assert one[stage]["times_floor"] == pytest.approx(times, rel=1e-5)
        assert one[stage]["floor_ms"] == max(one[stage]["memory_ms"], one[stage]["compute_ms"])
    assert two["prefill"]["ops"] == pytest.approx(2 * one["prefill"]["ops"])
    assert two["decode"]["bytes"] < 2 * one["decode"]["bytes"], "a batch reads the weights once"


def test_samples_csv(run, report):
    with (run / "samples.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (2 + 2)
    assert sum(row["warm_up"] == "1" for row in rows) == 8
    timed = [float(row["total"]) for row in rows if row["warm_up"] == "0" and row["configuration"] == "cpu, fast"]
    clusters = report["configurations"][0]["samples"]["total"]
    assert timed == pytest.approx([value for cluster in clusters for value in cluster], rel=1e-5)
    assert all(len(row["steps_ms"].split()) == 11 for row in rows)


def test_conditions(report):
    where, what = report["environment"], report["bundle"]
    assert (where["cores"], where["cpu"]) == (available_cores(), processor_name())
    assert {"onnxruntime-gpu", "onnxruntime"} & where["packages"].keys()
    manifest = load_manifest(demo_bundle())
    assert {name: entry["sha256"] for name, entry in what["files"].items()} == {
        name: entry.sha256 for name, entry in manifest.files.items()
    }
    assert report["command"].startswith("r2gen bench --devices cpu --batch 1,2 --runs 4")
    assert set(report["machine"]["best"]) == {"read_gb_s", "gemm_fp32_gops", "gemm_int8_gops", "scalar_mops"}
    assert len(report["machine"]["moments"]) == 3


def test_nothing_names_the_machine_or_its_user(run):
    for path in run.iterdir():
        text = path.read_text(encoding="utf-8")
        assert str(run) not in text
        assert str(Path.home()) not in text or Path.home() == Path("/")
        for name in (socket.gethostname(), getpass.getuser()):
            found = re.search(rf"(?<![\w:-]){re.escape(name)}(?![\w-])", text)
            assert not found, f"{path.name}: {text[max(0, found.start() - 40) : found.end() + 40]}"


def test_every_field_is_documented(report):
    """Each in the row of what it is a field of: a word that stands elsewhere on the page does not count."""
    page = (Path(__file__).parents[2] / "benchmarks/latency/REPORT.md").read_text(encoding="utf-8")
    whole, each = (documented_fields(part) for part in page.partition("## `report.json`")[2].split("Each of", 1))
    one = report["configurations"][0]
    assert report.keys() - whole.keys() == set()
    assert one.keys() - each.keys() == set()
    for name in ("environment", "bundle", "settings", "method", "machine"):
        assert report[name].keys() - whole[name] == set()
    parts = {"steadiness": one["steadiness"], "roofline": one["roofline"]["encode"], "per_token": one["per_token"][0]}
    for name, fields in {**parts, "metrics": one["metrics"]["total"]}.items():
        assert fields.keys() - each[name] == set()


def documented_fields(text: str) -> dict[str, set[str]]:
    """Of each field in the first column of a page's tables: every name in its row."""
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    return {
        name: set(re.findall("`(.+?)`", first + rest)) for first, rest in rows for name in re.findall("`(.+?)`", first)
    }


class Page(HTMLParser):
    """Tags that were opened, those left open, and every attribute."""

    VOID = frozenset(("meta", "polygon", "polyline"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name == "src" or name.startswith("on")]
    assert {value for name, value in page.attributes if name == "href"} == {"#definitions"}
    assert ("id", "definitions") in page.attributes
    assert "url(" not in text
    assert "http" not in text
    assert NOTICE in page.text
    assert page.tags.count("figure") == 1 + 2 * 5
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert all('class="chart' in figure and "<table" in figure for figure in figures), "a table beside every chart"
    assert "<text" not in text, "text of an SVG shrinks with it"
    assert not re.search(r"min-width: *\d{3,}px", text), "a phone has 360 to 400 px"
    assert "Model r2gen-demo: 1.1 million parameters (LLM 0.57 million, vision 0.49 million)" in page.text
    assert "Reports were cut at 12 tokens (--max-new-tokens): whole ones take longer." in page.text
    assert "A batch of 2 reports of about 12 tokens takes" in page.text
    assert "From 4 timed reports only." in page.text
    assert text.index("shortest time in which this machine could") < text.index("Times the hardware&#x27;s floor")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "NaN" not in text
    assert "None" not in page.text.replace("draft", "")
    assert "&lt;engine&gt;" in text, "what a file says is text, not markup"
    assert "formula" in page.text
    assert "time per output token = decode / (tokens - 1)" in page.text


def test_peers_are_shown(run, report):
    (one,) = report["peers"]["contenders"]
    assert report["peers"]["schema"] == PEERS_SCHEMA
    assert one == {"name": "<engine>", "prefill_ms": 12.0, "token_ms": 4.5, "total_s": 0.03, "beams_total_s": None,
                   "load_s": 1.5, "peak_gb": 1.0}  # fmt: skip
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "shape tiny, threads 2" in text
    assert "| <engine> | 12.0 | 4.50 |" in text


def test_markdown(run):
    text = (run / "report.md").read_text(encoding="utf-8")
    assert NOTICE in text
    assert "| end to end | ms | 4 |" in text
    assert "n too small" in text
    assert re.search(r"A report of about 12 tokens takes [\d.]+ (s|ms) once the bundle is loaded", text)
    assert re.search(r"about [\d,]+ reports an hour, with [\d,]+ MB of memory", text)
    assert "| encode |" in text.partition("| stage | read GB/s | read from |")[2]
    assert "## Other engines" in text


def test_baseline_in_the_same_report(run, tmp_path):
    done = run_here("bench", "--devices", "cpu", "--runs", 2, "--processes", 2, "--warmup", 1, "--max-new-tokens", 12,
                   "--images", Path(__file__).parents[1] / "data", "--out", tmp_path / "out", "--quiet",
                   "--baseline", run)  # fmt: skip
    assert done.returncode == 2, "other pictures"
    assert "R2G-BENCH-CONDITIONS" in done.stderr
    assert "pictures" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = run_here("bench", "--devices", "cpu", "--runs", 4, "--processes", 2, "--batch", "1,2",
                    "--max-new-tokens", 12, "--out", tmp_path / "out", "--quiet",
                    "--baseline", run / "report.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["comparison"]
    assert [one["words"] for one in found["configurations"]] == [{"studies": 4, "same": 4}, {"studies": 8, "same": 8}]
    assert found["configurations"][0]["metrics"]
    assert "too few processes" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["bench", "/data/patients/bundle", "--out", "/home/someone/out"], "r2gen bench bundle --out out"),
        (["bench", "--images", "/data/Doe^John.png", "--runs", "4"], "r2gen bench --images ... --runs 4"),
        (["bench", "--images=/data/Doe^John.png"], "r2gen bench --images=..."),
        (["bench", "--baseline=/home/someone/old run"], "r2gen bench '--baseline=old run'"),
    ],
)
def test_command_lines_show_no_folders(arguments, shown):
    assert command_line(arguments) == shown


def test_help():
    shown = run_here("bench", "--help").stdout
    assert "r2gen bench [OPTIONS] [BUNDLE]" in shown
    assert "bench compare A B" in shown
    assert "--fail-above" in run_here("bench", "compare", "--help").stdout
    assert "\n  bench " in run_here("--help").stdout


def test_at_once(tmp_path):
    done = run_here("bench", "--devices", "cpu", "--runs", 2, "--processes", 1, "--concurrency", 2, "--quiet",
                   "--max-new-tokens", 4, "--out", tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (one,) = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["configurations"]
    assert one["name"] == "cpu, fast, 2 at once"
    assert one["metrics"]["total"]["n"] == 4
    assert one["metrics"]["reports_per_s"]["n"] == 2
    assert "share the bandwidth" in one["roofline"]["reason"]
