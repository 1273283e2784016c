"""R2GenGPT in PyTorch (arXiv 2309.09812; published code: wang-zhanyu/R2GenGPT, models/R2GenGPT.py).

Swin -> mean over the views of a study -> Linear -> LayerNorm -> image tokens inside the prompt of a frozen LLaMA.
Attribute names are the published ones, so that published checkpoints fit: `visual_encoder`, `llama_proj`,
`layer_norm`, `llama_model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    SwinConfig,
    SwinModel,
)

from r2gen_export.decoding import Decoding
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.training.hub import PAD_TOKEN_ID, load_llm, load_tokenizer, load_vision, source_name

__all__ = [
    "PROMPT",
    "PROMPT_AFTER",
    "PROMPT_BEFORE",
    "Alignment",
    "ModelConfig",
    "R2GenGPT",
    "load_tokenizer",
    "prompt_pieces",
    "report_text",
    "trainable_size",
]

Alignment = Literal["shallow", "delta", "deep"]

PROMPT = "Generate a comprehensive and detailed diagnosis report for this chest xray image."
PROMPT_BEFORE = "Human: <Img>"
PROMPT_AFTER = f"</Img> {PROMPT} \nAssistant:"
IGNORE = -100
PROJECTOR = ("llama_proj.", "layer_norm.")


@dataclass(frozen=True)
class ModelConfig:
    """What of the published settings shapes the model. Ranks and alphas are LoRA's; `max_length` is in tokens."""

    vision: str = "microsoft/swin-base-patch4-window7-224"
    llm: str = "meta-llama/Llama-2-7b-chat-hf"
    alignment: Alignment = "shallow"
    global_only: bool = False
    llm_lora: bool = False
    vis_r: int = 16
    vis_alpha: int = 16
    llm_r: int = 16
    llm_alpha: int = 16
    lora_dropout: float = 0.1
    prompt: str = PROMPT
    end_sym: str = "</s>"
    max_length: int = 100

    def __post_init__(self) -> None:
        if self.alignment not in get_args(Alignment):
            message = f"alignment is {self.alignment!r}, expected one of {', '.join(get_args(Alignment))}"
            raise R2GenError("R2G-CONFIG-VALUE", message)
        for name in ("vis_r", "vis_alpha", "llm_r", "llm_alpha", "max_length"):
            if getattr(self, name) < 1:
                raise R2GenError("R2G-CONFIG-VALUE", f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise R2GenError("R2G-CONFIG-VALUE", f"lora_dropout is {self.lora_dropout}, expected 0 <= p < 1")


def prompt_pieces(tokenizer: PreTrainedTokenizerBase, prompt: str = PROMPT) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids before and after the image tokens, tokenised separately without special tokens (`prompt_wrap`)."""
    before, after = f"Human: <Img><ImageHere></Img> {prompt} \nAssistant:".split("<ImageHere>")
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (before, after)]
    return tuple(ids[0]), tuple(ids[1])


def report_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Generated ids to text, as the published `decode`: drop a leading `<unk>` and `<s>`, cut at `</s>`."""
    ids = list(token_ids)
    for special in (0, 1):
        if ids and ids[0] == special:
            ids = ids[1:]
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return text.split("</s>", maxsplit=1)[0].strip().replace("<unk>", "")


class R2GenGPT(nn.Module):
    """The model with its frozen and trainable parts.

    Frozen parts have `requires_grad` False and stay in eval mode after `.train()`; in the shallow alignment the
    encoder runs without autograd. Projector, LayerNorm and LoRA are float32; the LLM keeps the dtype it comes in.

    Args:
        visual_encoder: the Swin encoder (wrapped by peft here when the alignment is delta).
        llama_model: the LLM (wrapped by peft here when `config.llm_lora`).
        tokenizer: the LLM's tokenizer, `pad_token_id` 0. None: the model can count and encode, not prompt.
        config: alignment and prompt.
    """

    def __init__(
        self,
        visual_encoder: SwinModel,
        llama_model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerBase | None,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.image_features = int(visual_encoder.num_features)
        self.d_llm = int(llama_model.config.hidden_size)
        self.visual_encoder: Any = visual_encoder
        self.llama_model: Any = llama_model
        visual_encoder.requires_grad_(config.alignment == "deep")
        llama_model.requires_grad_(False)
        if config.alignment == "delta":
            lora = LoraConfig(
                r=config.vis_r,
                lora_alpha=config.vis_alpha,
                target_modules=["query", "value"],
                lora_dropout=config.lora_dropout,
                bias="none",
            )
            self.visual_encoder = get_peft_model(visual_encoder, lora)
        if config.llm_lora:
            lora = LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=config.llm_r,
                lora_alpha=config.llm_alpha,
                lora_dropout=config.lora_dropout,
                # peft's own choice for LLaMA, which the published code relies on, written down.
                target_modules=["q_proj", "v_proj"],
            )
            self.llama_model = get_peft_model(llama_model, lora)
        self.llama_proj = nn.Linear(self.image_features, self.d_llm)
        self.layer_norm = nn.LayerNorm(self.d_llm)
        self._prompt_ids = prompt_pieces(tokenizer, config.prompt) if tokenizer is not None else None
        self.train(False)

    @classmethod
    def from_sources(
        cls, vision: str | Path, llm: str | Path, config: ModelConfig, dtype: torch.dtype | str = torch.float32
    ) -> R2GenGPT:
        """Load Swin (float32), LLaMA (`dtype`) and tokenizer from local folders or hub ids.

        `config.vision` and `config.llm` are replaced by the sources' names (without folders).

        Raises:
            R2GenError: `R2G-MODEL-MISSING` (what was tried), `R2G-MODEL-UNSUPPORTED` (other model type, tokenizer
                larger than the LLM's vocabulary), `R2G-MODEL-NONFINITE` (the tensors by name).
        """
        tokenizer = load_tokenizer(llm)
        encoder = load_vision(vision)
        llama = load_llm(llm, dtype)
        if len(tokenizer) > llama.config.vocab_size:
            message = f"the tokenizer of {str(llm)!r} has {len(tokenizer)} ids, the LLM {llama.config.vocab_size}"
            raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "use the tokenizer the LLM was trained with")
        named = {**vars(config), "vision": source_name(vision), "llm": source_name(llm)}
        return cls(encoder, llama, tokenizer, ModelConfig(**named))

    def train(self, mode: bool = True) -> R2GenGPT:
        """Switch the trained parts to training mode; frozen parts stay in eval mode (no dropout, no drop path)."""
        super().train(mode)
        frozen = [self.llama_model] if self.config.alignment == "deep" else [self.llama_model, self.visual_encoder]
        for part in frozen:
            part.eval()
            for name, module in part.named_modules():
                if name.endswith(("lora_dropout", "lora_dropout.default")):
                    module.train(mode)
        return self

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of what is trained: what a checkpoint holds, under the published names."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def trainable_parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for _, parameter in self.trainable())

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The LLM's token embedding table [vocab, d]."""
        table: nn.Embedding = self.llama_model.get_input_embeddings()
        return table

    def encode_views(self, pixel_values: Tensor) -> Tensor:
        """Swin features of single views: [N, 3, H, W] float32 -> [N, T, C]; T is 1 when `global_only`."""
        # A frozen encoder needs no graph; autograd would keep every activation of it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.alignment != "shallow"):
            output = self.visual_encoder(pixel_values)
        return output.pooler_output.unsqueeze(1) if self.config.global_only else output.last_hidden_state

    def project(self, features: Tensor) -> Tensor:
        """Features averaged over the views [B, T, C] -> image embeds [B, T, d]: Linear, LayerNorm."""
        return self.layer_norm(self.llama_proj(features))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """The views of one study [V, 3, H, W] -> image embeds [1, T, d]."""
        return self.project(self.encode_views(pixel_values).mean(0, keepdim=True))

    def encode_batch(self, studies: Sequence[Tensor]) -> Tensor:
        """Studies of unequal numbers of views, each [V_i, 3, H, W] -> image embeds [B, T, d]."""
        return self.encode_flat(torch.cat(list(studies)), [len(study) for study in studies])

    def encode_flat(self, pixel_values: Tensor, views: Sequence[int]) -> Tensor:
        """The same with the views of all studies in one tensor [sum(views), 3, H, W]."""
        parts = self.encode_views(pixel_values).split(list(views))
        return self.project(torch.stack([part.mean(0) for part in parts]))

    def wrap_prompt(self, image_embeds: Tensor) -> Tensor:
        """BOS, prompt and image tokens: [B, T, d] -> inputs_embeds [B, S, d] in the LLM's dtype."""
        tokenizer, (before, after) = self._prompt()
        table = self.embed_tokens
        head = table(torch.tensor([[tokenizer.bos_token_id, *before]], device=image_embeds.device))
        tail = table(torch.tensor([after], dtype=torch.long, device=image_embeds.device))
        rows = len(image_embeds)
        parts = [head.expand(rows, -1, -1), image_embeds.to(head.dtype), tail.expand(rows, -1, -1)]
        return torch.cat(parts, dim=1)

    def _prompt(self) -> tuple[PreTrainedTokenizerBase, tuple[tuple[int, ...], tuple[int, ...]]]:
        if self.tokenizer is None or self._prompt_ids is None:
            raise InternalError("this R2GenGPT was built without a tokenizer")
        return self.tokenizer, self._prompt_ids

    def forward(self, image_embeds: Tensor, input_ids: Tensor) -> Tensor:
        """Mean cross-entropy (nats per token) of the reports, the loss of the published `forward`.

        Args:
            image_embeds: [B, T, d] from `encode_flat` or `project`.
            input_ids: int64 [B, L], `report + "</s>"` without specials, cut at `max_length`, padded right with 0.

        Id 0 is no target, as published; so an `<unk>` inside a report is none either. The published code pads to
        `max_length` and masks; padding on the right of causal attention changes nothing before it.
        """
        prompt = self.wrap_prompt(image_embeds)
        inputs = torch.cat([prompt, self.embed_tokens(input_ids).to(prompt.dtype)], dim=1)
        # The last prompt position predicts the first token of the report.
        output = self.llama_model(inputs_embeds=inputs, use_cache=False, logits_to_keep=input_ids.shape[1] + 1)
        targets = input_ids.masked_fill(input_ids == PAD_TOKEN_ID, IGNORE)
        return F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)

    @torch.no_grad()
    def generate(self, pixel_values: Tensor, decoding: Decoding) -> Tensor:
        """Ids [1, L] of the report of one study [V, 3, H, W], through transformers."""
        return self.generate_from(self.encode_images(pixel_values), decoding)

    @torch.no_grad()
    def generate_from(self, image_embeds: Tensor, decoding: Decoding) -> Tensor:
        """Ids [B, L] of the reports of B studies from image embeds [B, T, d], through transformers.

        Rows end with `</s>`; shorter ones are padded behind it. `decoding.seed` seeds sampling.
        """
        tokenizer, _ = self._prompt()
        inputs = self.wrap_prompt(image_embeds)
        config = generation_config(decoding, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=PAD_TOKEN_ID)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        devices = [inputs.device] if inputs.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=decoding.seed is not None):
            if decoding.seed is not None:
                torch.manual_seed(decoding.seed)
            # The model folder's generation_config.json (LLaMA-2-chat samples) must not fill in what is left default.
            ids: Tensor = self.llama_model.generate(
                inputs_embeds=inputs, attention_mask=mask, generation_config=config, use_model_defaults=False
            )
        return ids


def generation_config(decoding: Decoding, *, bos: int, eos: int, pad: int) -> GenerationConfig:
    """Settings of a report as transformers' `generate` takes them; `bos`, `eos` and `pad` are token ids."""
    sampling: dict[str, Any] = {}
    if decoding.do_sample:
        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    return GenerationConfig(
        num_beams=decoding.num_beams,
        min_new_tokens=decoding.min_new_tokens,
        max_new_tokens=decoding.max_new_tokens,
        repetition_penalty=decoding.repetition_penalty,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        early_stopping=decoding.early_stopping,
        do_sample=decoding.do_sample,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        **sampling,
    )


def trainable_size(vision: SwinConfig, llm: LlamaConfig, config: ModelConfig) -> int:
    """Number of trained values for two architectures, counted on the meta device: no weights are made.

    Swin-base with LLaMA-7B: shallow 4,206,592 and delta 4,976,640 (the paper's 4.2 M and 5.0 M).
    """
    with torch.device("meta"):
        return R2GenGPT(SwinModel(vision), LlamaForCausalLM(llm), None, config).trainable_parameters()
