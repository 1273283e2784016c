"""What drafts bring at a real shape: recorded reports replayed through the verifier, peers decoding as long in turn.

Random weights write no reports, so the tokens are those of two kinds of reports, whatever the logits say: what the demo
model wrote about phantoms (a model's reports resemble each other), and the phantoms' own (as different as their
grammar makes them). Passes, verification and roll-back are those of a model that would have written them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.peers.ours import Replay, open_decoder, replay
from r2gen_export import bundle as layout
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.runtime.backends.decoders import AnyDecoder
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.ngrams import SortedNgrams

JOINED: Final = 3
"""Reports put together to one of about 100 tokens, the length of a real one; the demo's have about 36."""

STUDIES: Final = 1500

Reports = list[list[int]]


def replay_reports(
    ours: Mapping[str, tuple[Path, str]],
    count: int,
    threads: int,
    peers: Sequence[str],
    run_peer: Callable[[str, int], float],
) -> None:
    """Print what drafts make of reports, and their time beside the peers' plain decoding of as many tokens.

    Args:
        ours: for the name of each contender of ours the folder of its conversion and its engine.
        count: reports replayed; the first third warms up and is not counted.
        threads: CPU threads.
        peers: names of contenders.
        run_peer: milliseconds a contender takes for a prompt of 80 and so many tokens.
    """
    written, phantoms = _recorded()
    for kind, reports, site in (
        ("reports the demo model wrote", written, phantoms),
        ("phantoms' own reports", phantoms, []),
    ):
        replayed, earlier = reports[:count], reports[count:]
        stores: dict[str, list[Reports]] = {
            f"store of {len(earlier)} earlier ones": [earlier, *([site] if site else [])]
        }
        if site:
            stores["empty store that learns"] = []
        for contender, (folder, engine) in ours.items():
            opened = open_decoder(folder, threads, engine)
            for name, sources in stores.items():
                found, others = _timed(opened, replayed, sources, peers=peers, run_peer=run_peer)
                print(f"{kind}, {name}, {contender}: {_summary(found[count // 3 :])}")
                spent = sum(one.milliseconds for one in found[count // 3 :])
                for peer, times in others.items():
                    print(f"  x {spent / sum(times[count // 3 :]):.2f} of {peer}'s plain decoding")


def _timed(
    opened: tuple[AnyDecoder, EmbeddingTable],
    reports: Reports,
    sources: Sequence[Reports],
    *,
    peers: Sequence[str],
    run_peer: Callable[[str, int], float],
) -> tuple[list[Replay], dict[str, list[float]]]:
    """Every report replayed; behind each the peers' turn with as many tokens."""
    decoder, embed_tokens = opened
    drafter = Drafter([SortedNgrams.build(one) for one in sources], vocab_size=32000)
    found: list[Replay] = []
    others: dict[str, list[float]] = {peer: [] for peer in peers}
    for report in reports:
        found += replay(decoder, embed_tokens, [report], drafter, eos=2)
        for peer, times in others.items():
            times.append(run_peer(peer, len(report)))
    return found, others


def _summary(runs: Sequence[Replay]) -> str:
    passes = sum(run.passes for run in runs)
    accepted, drafted = (sum(getattr(run, name) for run in runs) / passes for name in ("accepted", "drafted"))
    tokens = statistics.mean(run.tokens for run in runs)
    each = statistics.mean(run.milliseconds for run in runs)
    return (
        f"{len(runs)} reports of {tokens:.0f} tokens, {accepted:.2f} of {drafted:.2f} drafts accepted a pass, "
        f"{passes / len(runs):.1f} passes, {each:.0f} ms a report"
    )


def _recorded() -> tuple[Reports, Reports]:
    """Token ids of reports: what the demo model wrote about phantoms it had not seen, and what phantoms say."""
    from tokenizers import Tokenizer

    from r2gen_export.evaluation.phantom_findings import write_held_out
    from r2gen_export.runtime.pipeline import Pipeline

    tokenizer = Tokenizer.from_file(str(demo_bundle() / layout.TOKENIZER))
    eos = load_manifest(demo_bundle()).prompt.eos_token_id
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "phantoms"
        write_held_out(folder, STUDIES, progress=False)
        studies = json.loads((folder / "annotation.json").read_text(encoding="utf-8"))["test"]
        images = [[folder / "images" / path for path in study["image_path"]] for study in studies]
        outcomes = Pipeline.from_bundle(device="cpu").generate_many(images, batch_size=16, preset="fast")
        written = [[one for one in outcome.unwrap().token_ids if one != eos] for outcome in outcomes]
    own = [tokenizer.encode(study["report"], add_special_tokens=False).ids for study in studies]
    return _joined(written), _joined(own)


def _joined(reports: Reports) -> Reports:
    groups = zip(*(reports[start::JOINED] for start in range(JOINED)), strict=False)
    return [[*(token for one in group for token in one), 2] for group in groups]
