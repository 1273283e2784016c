"""`r2gen export`: checkpoint + vision encoder + LLM -> bundle, checked against PyTorch before it appears."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from r2gen_export import bundle as layout
from r2gen_export.bundle import Dims, ImageSpec, Manifest, ParityCheck, Prompt, Source, seal, sha256_file
from r2gen_export.decoding import FAST, PAPER, Decoding, Semantics
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.phantom_findings import record_findings
from r2gen_export.exporting.settings import ExportSettings
from r2gen_export.precision import TENSOR_PRECISIONS
from r2gen_export.system.files import atomic_dir
from r2gen_export.system.versions import installed_version

if TYPE_CHECKING:
    from r2gen_export.exporting.parity.gate import Plan
    from r2gen_export.exporting.source_model import Sources
    from r2gen_export.exporting.target import Choice
    from r2gen_export.training.model import R2GenGPT

TOOLS: Final = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxscript", "peft", "tokenizers", "numpy")


def export_bundle(
    settings: ExportSettings, *, progress: Progress | None = None, say: Callable[[str], None] = lambda line: None
) -> Manifest:
    """Write a bundle, whole or not at all.

    Args:
        settings: sources and target.
        say: told what the checkpoint is.
        progress: a running display to add the stages to; one of its own on stderr when None.

    Returns:
        The manifest as written.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, `R2G-CHECKPOINT-*`, `R2G-MODEL-*` before any work; `R2G-PARITY-FAILED` when the
            graphs do not compute what PyTorch computes; `R2G-OUTPUT-*`.
    """
    from r2gen_export.exporting.decoder.export import write_decoder
    from r2gen_export.exporting.estimate import PeakMemory
    from r2gen_export.exporting.parity import gate
    from r2gen_export.exporting.source_model import load_sources
    from r2gen_export.exporting.tokenizer import check_tokenizer, write_embeddings, write_tokenizer
    from r2gen_export.exporting.vision import export_vision
    from r2gen_export.exporting.vision_precision import lower_precision

    choice, plan = _plan(settings, say)
    with PeakMemory() as memory, atomic_dir(settings.out) as folder, _display(progress) as shown:
        with _stage(shown, "loading sources"):
            sources = load_sources(
                settings.checkpoint,
                settings.vision,
                settings.llm,
                overrides=settings.overrides,
                allow_unexpected=settings.allow_unexpected,
                llm_dtype=gate.llm_dtype(plan, settings.llm),
                say=say,
            )
            model = sources.model
            assert model.tokenizer is not None
            prompt = bundle_prompt(model)
            dims = bundle_dims(model, sources.image)
            presets = bundle_presets(settings, sources, dims, prompt)
            source = _source(settings, sources)
            probe = gate.Probe.make(sources.image, presets, settings.semantics, settings.parity_max_new_tokens)
        with _stage(shown, "running PyTorch for the parity gate", len(probe.decodings)) as advance:
            wanted = gate.reference(model, probe, plan, dims=dims, prompt=prompt, advance=advance)
        with _stage(shown, "writing tokenizer and embeddings"):
            write_tokenizer(model.tokenizer, folder / layout.TOKENIZER)
            halves = ((prompt.before, prompt.before_ids), (prompt.after, prompt.after_ids))
            checks = check_tokenizer(model.tokenizer, folder / layout.TOKENIZER, halves)
            merge_lora(model, llm=plan.gate == "whole")
            write_embeddings(model.embed_tokens, folder / layout.EMBED_TOKENS, plan.embeddings)
        with _stage(shown, "exporting the vision encoder"):
            size = {"height": sources.image.height, "width": sources.image.width}
            vision_opset = export_vision(model, folder / layout.VISION, **size)
            lower_precision(folder / layout.VISION, choice.vision_precision)
        with _stage(shown, "exporting the decoder", dims.num_layers) as advance:
            decoder_opset = write_decoder(
                model.llama_model,
                (folder / layout.DECODER).parent,
                dialect=choice.dialect,
                precision=choice.precision,
                head_precision=choice.head_precision,
                advance=advance,
            )
        with _stage(shown, "comparing ONNX with PyTorch", gate.steps(plan, probe, dims)) as advance:
            wanted = gate.round_reference(model, wanted, plan)
            image, llama = sources.image, model.llama_model if plan.gate == "layers" else None
            del model, sources
            gc.collect()
            compared = gate.compare(
                folder, dims, prompt, probe=probe, wanted=wanted, plan=plan, image=image, llama=llama, advance=advance
            )
            checks += compared.checks
            gate.require(checks)
        with _stage(shown, "sealing the bundle"):
            facts = _Facts(source, dims, prompt, presets, image, vision_opset, decoder_opset, checks)
            manifest = _manifest(settings, choice, plan, facts)
            sealed = seal(folder, replace(manifest, reference=compared.reference))
        if count := settings.phantom_studies:
            with _stage(shown, "reporting on phantoms", count) as advance:
                sealed = record_findings(folder, sealed, count, settings.phantom_seed, advance=advance)
    if memory.peak:
        say(f"peak memory of its own: {memory.peak / 2**30:.2f} GiB (files mapped into memory not counted)")
    return sealed


def _plan(settings: ExportSettings, say: Callable[[str], None]) -> tuple[Choice, Plan]:
    """How the bundle is written and checked, after what the export will take was said and found to be there."""
    from transformers import LlamaConfig

    from r2gen_export.exporting.estimate import default_embeddings, estimate, require_room
    from r2gen_export.exporting.parity.gate import Plan
    from r2gen_export.exporting.source_model import check_files
    from r2gen_export.exporting.target import choose
    from r2gen_export.training.hub import source_config

    _check_settings(settings)
    check_files(settings.vision, settings.llm)
    llm = LlamaConfig(**source_config(settings.llm, "LLM", "llama"))
    choice = choose(settings, llm)
    say(choice.reason)
    embeddings = settings.embeddings or default_embeddings(choice.precision)
    needed = estimate(
        llm,
        dialect=choice.dialect,
        precision=choice.precision,
        embeddings=embeddings,
        gate=settings.gate,
        runs=settings.phantom_studies > 0,
    )
    say(str(needed))
    require_room(needed, Path(settings.out))
    plan = Plan(needed.gate, choice.precision, choice.head_precision, choice.vision_precision, embeddings)
    return choice, plan


@dataclass(frozen=True)
class _Facts:
    """What an export found out on its way, for the manifest."""

    source: Source
    dims: Dims
    prompt: Prompt
    presets: dict[str, Decoding]
    image: ImageSpec
    vision_opset: int
    decoder_opset: int
    checks: tuple[ParityCheck, ...]


def _manifest(settings: ExportSettings, choice: Choice, plan: Plan, facts: _Facts) -> Manifest:
    return Manifest(
        model_id=settings.model_id or Path(settings.out).resolve().name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=facts.source,
        semantics=settings.semantics,
        dialect=choice.dialect,  # type: ignore[arg-type]
        dims=facts.dims,
        prompt=facts.prompt,
        presets=facts.presets,
        default_preset=settings.default_preset,
        image=facts.image,
        precision={
            "vision": choice.vision_precision,
            "decoder": choice.precision,
            "lm_head": choice.head_precision,
            "embed_tokens": plan.embeddings,
        },
        opset={"vision": facts.vision_opset, "decoder": facts.decoder_opset},
        tools=tool_versions(),
        parity=facts.checks,
        synthetic=settings.synthetic,
        target=choice.target,
    )


def merge_lora(model: R2GenGPT, *, llm: bool = True) -> None:
    """Fold LoRA weights into the layers they adapt, in place; a model without LoRA stays as it is.

    `llm` false leaves the LLM's alone, which would take memory of its own: they are merged as the weights stream by.
    """
    from peft import PeftModel

    for name in ("visual_encoder", "llama_model") if llm else ("visual_encoder",):
        part = getattr(model, name)
        if isinstance(part, PeftModel):
            setattr(model, name, part.merge_and_unload(safe_merge=True))


def bundle_prompt(model: R2GenGPT) -> Prompt:
    """The prompt's text and ids; ids of `<unk>` and padding are 0 where the tokenizer has none, as published."""
    from r2gen_export.training.model import prompt_pieces

    tokenizer = model.tokenizer
    assert tokenizer is not None
    before_ids, after_ids = prompt_pieces(tokenizer, model.config.prompt)
    unk = tokenizer.unk_token_id
    return Prompt(
        before="Human: <Img>",
        after=f"</Img> {model.config.prompt} \nAssistant:",
        before_ids=before_ids,
        after_ids=after_ids,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        unk_token_id=0 if unk is None else unk,
    )


def bundle_dims(model: R2GenGPT, image: ImageSpec) -> Dims:
    """The sizes of both graphs; the number of image tokens comes from encoding one empty view.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED` when the encoder does not take images of the size its processor makes.
    """
    import torch

    llm = model.llama_model.config
    try:
        with torch.no_grad():
            embeds = model.encode_images(torch.zeros(1, 3, image.height, image.width))
    except (ValueError, RuntimeError) as error:
        message = (
            f"the vision encoder does not take the {image.height} x {image.width} pixels of its processor: {error}"
        )
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "correct `size` in preprocessor_config.json") from error
    return Dims(
        image_tokens=embeds.shape[1],
        d_llm=llm.hidden_size,
        vocab_size=llm.vocab_size,
        num_layers=llm.num_hidden_layers,
        num_kv_heads=llm.num_key_value_heads,
        head_dim=getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads,
        max_positions=llm.max_position_embeddings,
    )


def bundle_presets(settings: ExportSettings, sources: Sources, dims: Dims, prompt: Prompt) -> dict[str, Decoding]:
    """`paper` as the checkpoint says, or its data set's (MIMIC-CXR's when unknown), `fast`, and the caller's.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` when prompt and report together exceed the LLM's positions.
    """
    paper = sources.decoding or PAPER.get(str(sources.dataset), PAPER["mimic_cxr"])
    paper = replace(paper, **{name: value for name, value in settings.decoding.items() if value is not None})
    presets = {"paper": paper, "fast": FAST, **settings.presets}
    length = prompt.length(dims.image_tokens)
    for name, preset in presets.items():
        if length + preset.max_new_tokens > dims.max_positions:
            message = (
                f"preset {name!r} writes up to {preset.max_new_tokens} tokens after a prompt of {length}, "
                f"but the LLM has {dims.max_positions} positions"
            )
            raise R2GenError("R2G-CONFIG-VALUE", message, "lower max_new_tokens or use a longer LLM")
    return presets


def tool_versions() -> dict[str, str]:
    """Versions of what made the bundle, by package name."""
    names = ("r2gen", *TOOLS, "onnxruntime-gpu", "onnxruntime")
    return {name: version for name in names if (version := installed_version(name)) is not None}


def _check_settings(settings: ExportSettings) -> None:
    if settings.semantics not in get_args(Semantics):
        message = f"semantics is {settings.semantics!r}"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"choose one of {', '.join(get_args(Semantics))}")
    if settings.target not in (None, "gpu", "cpu"):
        raise R2GenError("R2G-CONFIG-VALUE", f"an export for {settings.target!r}", "choose one of gpu, cpu")
    names = {"paper", "fast", *settings.presets}
    if settings.default_preset not in names:
        message = f"the default preset {settings.default_preset!r} is not one of the presets"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"choose one of {', '.join(sorted(names))}")
    for what, chosen in (("vision encoder", settings.vision_precision), ("embedding table", settings.embeddings)):
        if chosen is not None and chosen not in TENSOR_PRECISIONS:
            message = f"the {what} cannot be written with precision {chosen!r}"
            raise R2GenError("R2G-CONFIG-VALUE", message, f"choose one of {', '.join(TENSOR_PRECISIONS)}")
    if settings.phantom_studies < 0:
        raise R2GenError("R2G-CONFIG-VALUE", f"{settings.phantom_studies} phantoms", "give 0 or more")
    limit = settings.parity_max_new_tokens
    if limit is not None and limit < 1:
        raise R2GenError("R2G-CONFIG-VALUE", f"parity_max_new_tokens is {limit}", "give 1 or more, or leave it out")


def _source(settings: ExportSettings, sources: Sources) -> Source:
    config = sources.model.config
    return Source(
        checkpoint=Path(settings.checkpoint).resolve().name,
        checkpoint_sha256=sha256_file(sources.file),
        vision=config.vision,
        llm=config.llm,
        alignment=config.alignment,
        global_only=config.global_only,
        llm_lora=config.llm_lora,
    )


@contextmanager
def _display(progress: Progress | None) -> Iterator[Progress]:
    if progress is not None:
        yield progress
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as own:
        yield own


class _Advance:
    """Moves one stage's bar."""

    def __init__(self, progress: Progress, task: object) -> None:
        self._progress, self._task = progress, task

    def __call__(self) -> None:
        self._progress.advance(self._task)  # type: ignore[arg-type]


@contextmanager
def _stage(progress: Progress, name: str, steps: int = 1) -> Iterator[_Advance]:
    """One line of the display, running until the block ends."""
    task = progress.add_task(name, total=steps)
    yield _Advance(progress, task)
    progress.update(task, completed=steps)
