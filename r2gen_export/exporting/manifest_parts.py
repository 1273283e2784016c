"""Parts of a bundle's manifest that come from the source model: prompt, sizes, presets, origin, tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export.bundle import Dims, ImageSpec, Prompt, Source, sha256_file
from r2gen_export.decoding import FAST, PAPER, Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.settings import ExportSettings
from r2gen_export.system.versions import installed_version

if TYPE_CHECKING:
    from r2gen_export.exporting.source_model import Sources
    from r2gen_export.training.model import R2GenGPT

TOOLS: Final = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxscript", "peft", "tokenizers", "numpy")


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


def bundle_source(settings: ExportSettings, sources: Sources) -> Source:
    """Where the weights came from, for the manifest."""
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
