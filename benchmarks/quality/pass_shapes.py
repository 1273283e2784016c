"""Tokens that change with the shape of a pass: `python -m benchmarks.quality.pass_shapes --llm FOLDER`.

A LLaMA (a folder in transformers' format) is written in each precision and fed what it writes itself behind random
prompts, greedily, one position a pass. The same positions then come in two other ways, and the positions are counted at
which another token would be chosen: `beside`, a row among eight; `drafts`, several positions a pass of which some are
taken back, as speculative decoding does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.ours import convert, open_decoder
from r2gen_export.exporting.parity.compare import step_logits
from r2gen_export.runtime.backends.decoders import AnyDecoder
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.row_check import rows_agree

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

PROMPT: Final = 8
MOST_DRAFTS: Final = 6
ROWS: Final = 8


def written(decoder: AnyDecoder, table: EmbeddingTable, prompt: Integers, tokens: int) -> tuple[Integers, Floats]:
    """What the model writes behind a prompt [S], [n], and the logits it chose from, [n, vocab]."""
    state = decoder.prefill(table.lookup(prompt[None]), tokens + MOST_DRAFTS)
    ids, logits = [], [state.logits[0].copy()]
    for _ in range(tokens - 1):
        ids.append(int(logits[-1].argmax()))
        state.decode(table.lookup(np.array([ids[-1:]])))
        logits.append(state.logits[0].copy())
    return np.array([*ids, logits[-1].argmax()]), np.stack(logits)


def beside(decoder: AnyDecoder, table: EmbeddingTable, prompts: Integers, ids: Integers) -> Floats:
    """Logits [B, n, vocab] behind prompts [B, S] and each token but the last of [B, n], eight rows a pass."""
    parts = [slice(first, first + ROWS) for first in range(0, len(prompts), ROWS)]
    return np.concatenate(
        [
            step_logits(decoder.prefill(table.lookup(prompts[part]), ids.shape[1]), table, ids[part, :-1])
            for part in parts
        ]
    )


def drafted(decoder: AnyDecoder, table: EmbeddingTable, prompt: Integers, ids: Integers, seed: int) -> Floats:
    """The same logits [n, vocab] of one row whose passes verify drafts, some of which are wrong."""
    rng = np.random.default_rng(seed)
    state = decoder.prefill(table.lookup(prompt[None]), len(ids) + MOST_DRAFTS)
    logits, done = [state.logits.copy()], 0
    while done < len(ids) - 1:
        right = min(int(rng.integers(1, MOST_DRAFTS)), len(ids) - 1 - done)
        wrong = int(rng.integers(0, MOST_DRAFTS - right + 1))
        tokens = np.concatenate([ids[done : done + right], rng.integers(0, table.vocab_size, wrong)])
        logits.append(state.extend(table.lookup(tokens[None]))[0, :right].copy())
        state.rollback(wrong)
        done += right
    return np.concatenate(logits)


def rows_of(decoder: AnyDecoder, table: EmbeddingTable, reports: int, tokens: int) -> Iterator[str]:
    """What was found, as cells of a table."""
    prompts = np.random.default_rng(1).integers(0, table.vocab_size, (reports, PROMPT))
    pairs = [written(decoder, table, prompt, tokens) for prompt in prompts]
    ids, plain = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
    wide = [
        drafted(decoder, table, prompt, own, seed) for seed, (prompt, own) in enumerate(zip(prompts, ids, strict=True))
    ]
    scale = np.abs(plain).max()
    for logits in (beside(decoder, table, prompts, ids), np.stack(wide)):
        other = logits.argmax(axis=-1) != ids
        yield f"{other.mean():.2%} of tokens, {other.any(axis=1).sum()} of {reports} texts"
        yield f"{np.abs(logits - plain).max() / scale:.1e}"
    yield "yes" if rows_agree(decoder, table, table.vocab_size) else "no"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", type=Path, required=True, help="folder of a LLaMA")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reports", type=int, default=40, help="texts that it writes")
    parser.add_argument("--tokens", type=int, default=60, help="of each text")
    parser.add_argument("--precision", action="append", help="may be repeated; four of them when left out")
    options = parser.parse_args()
    print("| engine | precision | beside | logits differ | drafts | logits differ | batches |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for precision in options.precision or ["fp32", "int8", "int4", "int4-128"]:
            folder = Path(scratch) / precision
            folder.mkdir()
            convert(options.llm, folder, precision)
            for engine in ("onnxruntime", "openvino"):
                decoder, table = open_decoder(folder, options.threads, engine)
                cells = " | ".join(rows_of(decoder, table, options.reports, options.tokens))
                print(f"| {engine} | {precision} | {cells} |", flush=True)
                del decoder


if __name__ == "__main__":
    main()
