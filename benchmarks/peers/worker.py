"""The contender's side: a process that loads one engine, then generates whenever its stdin says so.

Run by `__main__.py` in the contender's own environment; needs the standard library and that engine only.
Protocol, one JSON object a line: first `{"load_s": ...}`, then for every `{"beams": N, "new": M}` an answer
`{"prefill_ms": ..., "decode_ms": [...], "total_ms": ...}`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

PROMPT = [1, *range(100, 179)]
"""80 ids."""

Run = Callable[[int, int], dict[str, Any]]


def timed(steps: Callable[[Callable[[], None]], None]) -> dict[str, Any]:
    """Time `steps`, which calls its argument when the first token is there and after every further one."""
    marks: list[float] = []
    started = perf_counter()
    steps(lambda: marks.append(perf_counter()))
    return {
        "prefill_ms": (marks[0] - started) * 1000,
        "decode_ms": [(after - before) * 1000 for before, after in pairwise(marks)],
        "total_ms": (marks[-1] - started) * 1000,
    }


def transformers_eager(model: Path, threads: int, dtype: str = "float32") -> Run:
    """What the published code runs: `LlamaForCausalLM` with its KV cache."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    llama = LlamaForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def run(beams: int, new: int) -> dict[str, Any]:
        with torch.inference_mode():
            if beams > 1:
                config = GenerationConfig(
                    num_beams=beams, min_new_tokens=new, max_new_tokens=new, eos_token_id=2, pad_token_id=0
                )
                embeds = llama.get_input_embeddings()(torch.tensor([PROMPT]))
                started = perf_counter()
                llama.generate(inputs_embeds=embeds, generation_config=config)
                return {"prefill_ms": None, "decode_ms": [], "total_ms": (perf_counter() - started) * 1000}

            def steps(mark: Callable[[], None]) -> None:
                out = llama(torch.tensor([PROMPT]), use_cache=True, logits_to_keep=1)
                mark()
                for _ in range(new - 1):
                    token = out.logits[:, -1:].argmax(-1)
                    out = llama(token, past_key_values=out.past_key_values, use_cache=True)
                    mark()

            return timed(steps)

    return run


def onnxruntime_genai(model: Path, threads: int) -> Run:
    """A folder of onnxruntime-genai's own builder (int4, accuracy level 4)."""
    import numpy as np
    import onnxruntime_genai as og

    path = model / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config), encoding="utf-8")
    loaded = og.Model(str(model))

    def run(beams: int, new: int) -> dict[str, Any]:
        params = og.GeneratorParams(loaded)
        length = len(PROMPT) + new
        options: dict[str, Any] = {"max_length": length, "min_length": length, "do_sample": False}
        if beams > 1:
            options |= {"num_beams": beams, "past_present_share_buffer": False}
        params.set_search_options(**options)

        def steps(mark: Callable[[], None]) -> None:
            generator = og.Generator(loaded, params)
            generator.append_tokens(np.array([PROMPT] * 1, np.int32))
            generator.generate_next_token()
            mark()
            for _ in range(new - 1):
                generator.generate_next_token()
                mark()

        return timed(steps)

    return run


def openvino_genai(model: Path, threads: int) -> Run:
    """OpenVINO GenAI on what optimum-intel exported; its prompt cache is off."""
    import openvino as ov
    import openvino_genai as ov_genai

    scheduler = ov_genai.SchedulerConfig()
    # It would find every round's prompt in its cache.
    scheduler.enable_prefix_caching = False
    pipe = ov_genai.LLMPipeline(str(model), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads)

    def run(beams: int, new: int) -> dict[str, Any]:
        import numpy as np

        config = ov_genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens, config.ignore_eos = new, new, True
        config.do_sample, config.num_beams = False, beams
        ids = ov.Tensor(np.array([PROMPT], np.int64))
        mask = ov.Tensor(np.ones((1, len(PROMPT)), np.int64))
        started = perf_counter()
        found = pipe.generate(ov_genai.TokenizedInputs(ids, mask), config)
        total = (perf_counter() - started) * 1000
        metrics = found.perf_metrics
        if beams > 1:
            return {"prefill_ms": None, "decode_ms": [], "total_ms": total}
        return {"prefill_ms": metrics.get_ttft().mean, "decode_ms": [metrics.get_tpot().mean], "total_ms": total}

    return run


def llama_cpp(model: Path, threads: int) -> Run:
    """llama.cpp through llama-cpp-python, Q4_0."""
    from llama_cpp import Llama

    llama = Llama(
        str(model / "model.gguf"), n_ctx=512, n_threads=threads, n_threads_batch=threads, use_mmap=False, verbose=False
    )

    def run(beams: int, new: int) -> dict[str, Any]:
        assert beams == 1
        llama.reset()

        def steps(mark: Callable[[], None]) -> None:
            llama.eval(PROMPT)
            token = llama.sample(temp=0.0, repeat_penalty=1.0)
            mark()
            for _ in range(new - 1):
                llama.eval([token])
                token = llama.sample(temp=0.0, repeat_penalty=1.0)
                mark()

        return timed(steps)

    return run


def r2gen(model: Path, threads: int, engine: str = "onnxruntime") -> Run:
    """r2gen's decoder and loop on an exported `decoder/`, the prompt as embeddings."""
    import numpy as np

    from benchmarks.peers.ours import open_decoder
    from r2gen_export.decoding import Decoding
    from r2gen_export.runtime.decoding.generate import generate

    decoder, table = open_decoder(model, threads, engine)

    def run(beams: int, new: int) -> dict[str, Any]:
        decoding = Decoding(
            num_beams=beams, min_new_tokens=new, max_new_tokens=new, repetition_penalty=1.0, length_penalty=1.0
        )
        started = perf_counter()
        prompt = table.lookup(np.array([PROMPT]))
        found = generate(decoder, table, prompt, decoding, bos_token_id=1, eos_token_id=2)[0]
        total = (perf_counter() - started) * 1000
        return {"prefill_ms": found.prefill_ms, "decode_ms": list(found.decode_ms), "total_ms": total}

    return run


ENGINES: dict[str, Any] = {
    "r2gen-onnxruntime": r2gen,
    "r2gen-openvino": functools.partial(r2gen, engine="openvino"),
    "transformers": transformers_eager,
    "transformers-bf16": functools.partial(transformers_eager, dtype="bfloat16"),
    "transformers-fp16": functools.partial(transformers_eager, dtype="float16"),
    "onnxruntime-genai": onnxruntime_genai,
    "openvino-genai": openvino_genai,
    "llama.cpp": llama_cpp,
}


def main() -> None:
    """Load, then answer until stdin ends."""
    engine, model, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines that print would break into the protocol
    started = perf_counter()
    run = ENGINES[engine](model, threads)
    print(json.dumps({"load_s": perf_counter() - started}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
