"""Steps on models of known shapes: PyTorch's speed, r2gen's speed, and whether both compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.steps import Answer, Context, median_ms
from benchmarks.gpu.steps.bundle import compare
from benchmarks.gpu.weights import decoder_bytes, fill_decoder, fill_vision, random_weight
from benchmarks.peers.model import SHAPES, decoder_dims
from r2gen_export.bundle import Dims
from r2gen_export.decoding import Decoding
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.backends.ort_providers import PLAIN, Acceleration, choose_providers
from r2gen_export.system.gpu import free_memory

PROMPT, FORCED, ROOM = 80, 8, 170
"""Positions of the prompt, those decoded behind it for the comparison, and most that follow."""

VARIANTS: Final = {
    "plain": PLAIN,
    "cuda_graph": Acceleration(cuda_graph=True, int4_gemm=False),
    "int4_gemm": Acceleration(cuda_graph=False, int4_gemm=True),
    "both": Acceleration(cuda_graph=True, int4_gemm=True),
}
"""What is timed of every decoder; `int4_gemm` of quantised ones only."""

HEADROOM: Final = 1.5
"""Times the bytes of its weights that a decoder may need while it loads."""


def reference(context: Context, shape: str) -> Answer:
    """transformers in eager mode on the same weights: logits to compare with, times in float16 and bfloat16."""
    import torch

    if context.torch_device == "cpu" and not context.few:
        return {"skipped": "the installed torch has no CUDA"}
    model = _torch_model(shape, context.torch_device)
    size = sum(tensor.nbytes for name, tensor in model.named_parameters() if "embed_tokens" not in name)
    answer: Answer = {"weights_gb": round(size / 1e9, 3)}
    prompt, forced = _inputs(SHAPES[shape]["hidden_size"])
    for dtype in (torch.float16, torch.bfloat16):
        model = model.to(dtype)
        with torch.no_grad():
            logits, times = _torch_passes(model, prompt, forced, context)
        times["gb_s"] = round(size / times["decode_ms"] / 1e6, 1)
        answer[str(dtype).removeprefix("torch.")] = times
        if dtype == torch.float16:
            np.save(context.scratch / f"reference-{shape}.npy", logits)
    return answer


def _torch_model(shape: str, device: str) -> Any:
    """A LLaMA of that shape in float16, its weights those of the recipes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.float16)
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=False, attn_implementation="sdpa")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    rotary = type(model.model.rotary_emb)(model.config)  # on "meta" its table would have no values
    model.to_empty(device=device)
    model.model.rotary_emb = rotary.to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1)
            else:
                parameter.copy_(random_weight(name, *parameter.shape, device=device))
    return model


def _torch_passes(
    model: Any, prompt: NDArray[np.float32], forced: NDArray[np.float32], context: Context
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Logits [1 + FORCED, vocab], and the milliseconds of a prefill and a decode step."""
    import torch

    first, *steps = (torch.from_numpy(part).to(context.torch_device, model.dtype) for part in (prompt, *forced))

    def prefill() -> Any:
        return model(inputs_embeds=first, use_cache=True, logits_to_keep=1)

    out = prefill()
    logits, cache = [out.logits[0, -1].float().cpu().numpy()], out.past_key_values
    for step in steps:
        out = model(inputs_embeds=step, past_key_values=cache, use_cache=True)
        logits.append(out.logits[0, -1].float().cpu().numpy())

    def decode() -> Any:
        return model(inputs_embeds=steps[0], past_key_values=cache, use_cache=True)

    times = {
        "prefill_ms": median_ms(prefill, 5, context),
        "decode_ms": median_ms(decode, 4 if context.few else 48, context),
    }
    return np.stack(logits), times


def _inputs(width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings [1, PROMPT, d] and [FORCED, 1, 1, d], exact in float16."""
    rng = np.random.default_rng(0)
    prompt, forced = (rng.normal(0, 0.02, (*front, width)) for front in ((1, PROMPT), (FORCED, 1, 1)))
    return prompt.astype(np.float16).astype(np.float32), forced.astype(np.float16).astype(np.float32)


def shape(context: Context, name: str) -> Answer:
    """r2gen's runtime on a decoder of a known shape: prefill, decode, beams, whole reports, each acceleration."""
    recipe, folder = context.work / "recipes" / name, context.scratch / "shape"
    needed = decoder_bytes(recipe)
    memory = None if context.few else free_memory(0)
    if memory and memory[0] < needed * HEADROOM:
        return {
            "skipped": f"needs {needed * HEADROOM / 1e9:.1f} GB of the GPU's memory, {memory[0] / 1e9:.1f} are free"
        }
    facts = json.loads((recipe / "recipe.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes((recipe / "model.onnx").read_bytes())
    read = fill_decoder(recipe, folder / "model.onnx.data", context.torch_device)
    if context.torch_device == "cuda":
        import torch

        torch.cuda.empty_cache()
    answer: Answer = {"read_gb": round(read / 1e9, 3), "variants": {}}
    for variant, acceleration in VARIANTS.items():
        quantised = PRECISIONS[facts["precision"]].blocks is not None
        if (acceleration.int4_gemm and not quantised) or (acceleration != PLAIN and context.device == "cpu"):
            continue
        try:
            answer["variants"][variant] = _measured(context, folder / "model.onnx", facts, acceleration, read)
        except Exception as error:  # one acceleration that fails must not hide the others
            answer["variants"][variant] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        context.keep(answer)
    (folder / "model.onnx.data").unlink()  # the next decoder needs the room
    return answer


def _measured(context: Context, path: Path, facts: Answer, acceleration: Acceleration, read: int) -> Answer:
    """Times of a decoder opened with an acceleration, and its logits against PyTorch's."""
    from r2gen_export.runtime.backends.ort_decoder import DecoderSession

    dims, few = decoder_dims(facts["config"]), context.few
    providers = choose_providers(context.device).providers
    session = DecoderSession(path, dims, providers=providers, acceleration=acceleration)
    prompt, forced = _inputs(dims.d_llm)
    state = session.prefill(prompt, ROOM)
    logits = [state.logits[0].copy()]
    for embeds in forced:
        state.decode(embeds)
        logits.append(state.logits[0].copy())
    decode = median_ms(lambda: state.decode(forced[0]), 4 if few else 64)
    answer: Answer = {
        "cuda_graph": session.acceleration.cuda_graph,
        "decode_ms": decode,
        "gb_s": round(read / decode / 1e6, 1),
        "prefill_ms": median_ms(lambda: session.prefill(prompt, ROOM), 2 if few else 5),
    }
    answer["extend9_ms"] = median_ms(_extended(state, np.repeat(forced[0], 9, axis=1)), 2 if few else 8)
    state.reorder(np.zeros(3, np.int64))
    three = np.repeat(forced[0], 3, axis=0)
    state.decode(three)
    state.decode(three)
    answer["beam3_decode_ms"] = median_ms(lambda: state.decode(three), 3 if few else 12)
    answer["beam3_reorder_ms"] = median_ms(_reordered(state, three), 2 if few else 6) - answer["beam3_decode_ms"]
    free = [free_memory(0)]
    for _ in range(1 if few else 2):  # what the second time takes more is lost
        answer |= _reports(session, dims, prompt, 6 if few else 100)
        free.append(free_memory(0))
    answer["free_gib"] = [round(memory[0] / 2**30, 2) for memory in free if memory]
    with suppress(FileNotFoundError):
        expected = np.load(context.scratch / f"reference-{facts['shape']}.npy")
        compared = compare({"logits": expected}, {"logits": np.stack(logits)})["logits"]
        top = int((expected.argmax(1) == np.stack(logits).argmax(1)).sum())
        answer["against_torch"] = {**compared, "top1": f"{top} of {len(logits)}"}
    return answer


def _extended(state: Any, nine: NDArray[np.float32]) -> Callable[[], None]:
    """What verifying eight drafted tokens takes, all refused."""

    def work() -> None:
        state.extend(nine)
        state.rollback(9)

    return work


def _reordered(state: Any, three: NDArray[np.float32]) -> Callable[[], None]:
    """A reorder and the step behind it, which waits for it: the copy itself runs on while Python goes on."""

    def work() -> None:
        state.reorder(np.array([0, 0, 1]))
        state.decode(three)

    return work


class _Table:
    """Random token embeddings [vocab, d]."""

    def __init__(self, dims: Dims) -> None:
        rng = np.random.default_rng(1)
        self._table = (rng.standard_normal((dims.vocab_size, dims.d_llm), np.float32) * 0.02).astype(np.float16)

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._table[ids].astype(np.float32)


def _reports(session: Any, dims: Dims, prompt: NDArray[np.float32], tokens: int) -> Answer:
    """Whole reports of the generation loop, logits processors included."""
    from r2gen_export.runtime.decoding.generate import generate

    table, answer = _Table(dims), {}
    for name, beams in (("greedy", 1), ("beam3", 3)):
        decoding = Decoding(num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens)
        report = generate(session, table, prompt, decoding, bos_token_id=1, eos_token_id=2)[0]
        answer[f"{name}_loop_ms_per_token"] = round(float(np.median(report.decode_ms)), 3)
        answer[f"{name}_report_ms"] = round(report.prefill_ms + sum(report.decode_ms), 1)
    return answer


def vision(context: Context, name: str) -> Answer:
    """Swin-base on the device and on the CPU, two views."""
    from r2gen_export.runtime.backends.ort_vision import VisionSession

    recipe, folder = context.work / "recipes" / name, context.scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vision.onnx").write_bytes((recipe / "vision.onnx").read_bytes())
    fill_vision(recipe, folder / "vision.data")
    pixels = np.random.default_rng(0).normal(0, 1, (2, 3, 224, 224)).astype(np.float32)
    outputs, answer = {}, {}
    for side, device in (("cpu", "cpu"), ("device", context.device)):
        session = VisionSession(folder / "vision.onnx", providers=choose_providers(device).providers)
        outputs[side] = session.encode(pixels)
        answer[f"{side}_ms_2_views"] = median_ms(lambda: session.encode(pixels), 2 if device == "cpu" else 20)  # noqa: B023
    answer["parity"] = compare({"image": outputs["cpu"]}, {"image": outputs["device"]})["image"]
    return answer
