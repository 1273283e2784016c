"""r2gen's own decoder of the peers' model, and recorded reports replayed through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.peers.model import decoder_dims
from r2gen_export.decoding import Decoding
from r2gen_export.runtime.backends.decoders import AnyDecoder
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.decoding.batch_studies import GreedyStudy, Request
from r2gen_export.runtime.decoding.sequence import drain
from r2gen_export.runtime.decoding.speculative import drafted_steps
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.system.huge_pages import use_huge_pages


def convert(model: Path, out: Path, precision: str = "int4") -> None:
    """Write `decoder/` and the embedding table of a LLaMA folder."""
    import torch

    from r2gen_export.exporting.decoder.export import write_decoder
    from r2gen_export.exporting.tokenizer import write_embeddings
    from r2gen_export.training.hub import load_llm

    llama = load_llm(model, torch.float16)
    write_decoder(llama, out / "decoder", dialect="ort", precision=precision)
    table = llama.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    write_embeddings(table, out / "embed_tokens.npy", "fp16")


def open_decoder(folder: Path, threads: int, engine: str = "onnxruntime") -> tuple[AnyDecoder, EmbeddingTable]:
    """What `convert` wrote, in `onnxruntime` or `openvino`; the weights in huge pages as `generate_many` has them."""
    import json

    config = json.loads((folder / "decoder/config.json").read_text(encoding="utf-8"))
    dims = decoder_dims(config)
    path = folder / "decoder/model.onnx"
    table = EmbeddingTable(folder / "embed_tokens.npy")
    if engine == "openvino":
        decoder: AnyDecoder = OpenVinoDecoder(path, dims, threads=threads)
        decoder.share_prefix(table.lookup(np.array([[1]])))
    else:
        decoder = DecoderSession(path, dims, providers=["CPUExecutionProvider"], threads=threads)
    use_huge_pages()
    return decoder, table


@dataclass(frozen=True)
class Replay:
    """One report replayed. `milliseconds`: prompt of 80 and the whole report."""

    tokens: int
    drafted: int
    accepted: int
    passes: int
    milliseconds: float


def replay(
    decoder: AnyDecoder, table: EmbeddingTable, reports: Sequence[Sequence[int]], drafter: Drafter, eos: int
) -> list[Replay]:
    """Make the model write recorded reports: whatever its logits, the report's own token is chosen.

    Passes, verification and roll-back are those of a model that would have written these reports. Each is learned
    before the next one, as in use.
    """
    found = []
    prompt = table.lookup(np.array([[1, *range(100, 179)]]))
    for report in reports:
        decoding = Decoding(num_beams=1, min_new_tokens=0, max_new_tokens=len(report), repetition_penalty=1.0)

        def scripted(tokens: np.ndarray, scores: np.ndarray, report: Sequence[int] = report) -> int:
            return report[tokens.shape[1]]

        study = GreedyStudy(0, Request(prompt, decoding), np.array([0]), bos=1, eos=eos)
        study.draw = scripted
        started = perf_counter()
        sequence = drain(drafted_steps(decoder, table, prompt, study, drafter), None)
        spent = (perf_counter() - started) * 1000
        assert sequence.token_ids == tuple(report)
        drafter.learn(sequence.token_ids)
        found.append(Replay(len(report), sequence.drafted, sequence.accepted, len(sequence.decode_ms), spent))
    return found
