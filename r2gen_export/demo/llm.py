"""The demo's LLaMA: learns to write a report from phrases that stand where the image tokens will stand.

A published LLaMA follows instructions before R2GenGPT meets it. A model of half a million parameters has to learn that
first: each finding's phrase ("small left effusion") is the mean of its token embeddings, laid over a random part of the
image positions. Afterwards the model is frozen, and `r2gen train` has to find image tokens it understands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from r2gen_export.demo.tokenizer import save_tokenizer, train_tokenizer
from r2gen_export.phantoms import keywords, sample_findings, write_report
from r2gen_export.training.model import PROMPT_AFTER, PROMPT_BEFORE

BOS, EOS = 1, 2
IGNORE = -100


@dataclass(frozen=True)
class LlmSettings:
    """Sizes of the tiny LLaMA and of its training. Lengths in tokens, `reports` and `steps` as counts."""

    vocab_size: int = 640
    hidden_size: int = 96
    intermediate_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    image_tokens: int = 49
    max_positions: int = 384
    reports: int = 60_000
    steps: int = 4_000
    batch_size: int = 64
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Corpus:
    """Token ids of sampled reports and of the phrases which describe the same findings."""

    reports: list[list[int]]
    phrases: list[list[list[int]]]


def sample_corpus(reports: int, seed: int) -> list[tuple[list[str], str]]:
    """`reports` pairs of (phrases of the findings, report text) from the phantoms' grammar."""
    rng = np.random.default_rng([seed, 1])
    pairs = []
    for _ in range(reports):
        findings = sample_findings(rng)
        phrases = keywords(findings)
        pairs.append((phrases if phrases else ["normal"], write_report(findings, rng)))
    return pairs


def tokenize_corpus(pairs: list[tuple[list[str], str]], tokenizer: Tokenizer) -> Corpus:
    """Ids of the reports (with `</s>`) and of the phrases."""
    reports = tokenizer.encode_batch([text + "</s>" for _, text in pairs], add_special_tokens=False)
    known = {phrase for phrases, _ in pairs for phrase in phrases}
    ids = {phrase: tokenizer.encode(phrase, add_special_tokens=False).ids for phrase in known}
    return Corpus([encoding.ids for encoding in reports], [[ids[phrase] for phrase in phrases] for phrases, _ in pairs])


def phrase_slots(
    phrases: list[list[list[int]]], embed: torch.nn.Embedding, slots: int, generator: torch.Generator
) -> torch.Tensor:
    """Stand-ins for image tokens [B, slots, d]: phrase embeddings on random positions, over noise, normalised.

    LayerNorm without weights ends it, because the projector ends in a LayerNorm too.
    """
    width = max(len(group) for group in phrases)
    length = max(len(ids) for group in phrases for ids in group)
    padded = torch.zeros(len(phrases), width, length, dtype=torch.long)
    for row, group in enumerate(phrases):
        for column, ids in enumerate(group):
            padded[row, column, : len(ids)] = torch.tensor(ids)
    device = embed.weight.device
    known = (padded != 0).to(device)
    vectors = (embed(padded.to(device)) * known[..., None]).sum(2) / known.sum(2).clamp(min=1)[..., None]
    vectors = F.layer_norm(vectors, vectors.shape[-1:]) * known.any(2)[..., None]  # [B, P, d]

    share = 0.05 + 0.6 * torch.rand(len(phrases), 1, width, generator=generator)
    here = torch.rand(len(phrases), slots, width, generator=generator) < share
    # Every phrase stands on at least one position, or the report could not be known from its input.
    sure = torch.randint(slots, (len(phrases), width), generator=generator)
    here.scatter_(1, sure[:, None, :], True)
    weight = here * (0.5 + torch.rand(len(phrases), slots, width, generator=generator))
    noise = torch.randn(len(phrases), slots, vectors.shape[-1], generator=generator)
    strength = 0.1 + 0.4 * torch.rand(len(phrases), 1, 1, generator=generator)
    return F.layer_norm(weight.to(device) @ vectors + (strength * noise).to(device), vectors.shape[-1:])


def _batch_loss(
    model: LlamaForCausalLM, corpus: Corpus, rows: list[int], prompt: tuple[list[int], list[int]], slots: torch.Tensor
) -> torch.Tensor:
    before, after = prompt
    device = slots.device
    reports = [corpus.reports[row] for row in rows]
    longest = max(map(len, reports))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    targets = torch.full((len(rows), longest), IGNORE)
    for row, report in enumerate(reports):
        ids[row, : len(report)] = torch.tensor(report)
        targets[row, : len(report)] = torch.tensor(report)
    embed = model.get_input_embeddings()
    head = embed(torch.tensor([BOS, *before], device=device)).expand(len(rows), -1, -1)
    tail = embed(torch.tensor(after, device=device)).expand(len(rows), -1, -1)
    inputs = torch.cat([head, slots, tail, embed(ids.to(device))], dim=1)
    # The last prompt position predicts the first report token.
    logits = model(inputs_embeds=inputs, logits_to_keep=longest + 1).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), ignore_index=IGNORE)


def train_llm(out: Path, settings: LlmSettings, seed: int, device: str, progress: Progress) -> float:
    """Train tokenizer and LLaMA on sampled reports and write them to `out` as a Hugging Face folder.

    Returns:
        The mean cross-entropy in nats per token over the last 100 steps.
    """
    torch.manual_seed(seed)
    pairs = sample_corpus(settings.reports, seed)
    texts = [text for _, text in pairs[:20_000]] + [" ".join(phrases) for phrases, _ in pairs[:2_000]]
    tokenizer = train_tokenizer([*texts, PROMPT_BEFORE, PROMPT_AFTER], settings.vocab_size)
    corpus = tokenize_corpus(pairs, tokenizer)
    prompt = (
        tokenizer.encode(PROMPT_BEFORE, add_special_tokens=False).ids,
        tokenizer.encode(PROMPT_AFTER, add_special_tokens=False).ids,
    )
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        max_position_embeddings=settings.max_positions,
        pad_token_id=0,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.1,  # about 1 / sqrt(width)
    )
    model = LlamaForCausalLM(config).train()
    model.to(torch.device(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    task = progress.add_task("language model", total=settings.steps)
    losses: list[float] = []
    order: list[int] = []
    for step in range(settings.steps):
        if len(order) < settings.batch_size:
            order = torch.randperm(len(corpus.reports), generator=generator).tolist()
        rows, order = order[: settings.batch_size], order[settings.batch_size :]
        # Fewer positions cost less; the last quarter sees the real number, whose distances it will meet.
        short = step < 0.75 * settings.steps and step % 2 == 0
        count = max(4, settings.image_tokens // 4) if short else settings.image_tokens
        slots = phrase_slots([corpus.phrases[row] for row in rows], model.get_input_embeddings(), count, generator)
        loss = _batch_loss(model, corpus, rows, prompt, slots)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.update(task, advance=1, description=f"language model, loss {np.mean(losses[-100:]):.3f}")
    model.eval().cpu().save_pretrained(out)
    save_tokenizer(tokenizer, out)
    return float(np.mean(losses[-100:]))
