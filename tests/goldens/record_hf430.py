"""Record what transformers 4.30.2 generates: `python tests/goldens/record_hf430.py`.

It makes a virtual environment of its own (a gigabyte, under the system's folder for temporary files) with the release
R2GenGPT was published with, runs itself there, and writes beside this file `hf430.json` (generated ids),
`tokenizer430.json` (the slow LLaMA tokenizer's ids and texts) and, when it is not there, `llama.model` (a small
sentencepiece model).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE / "hf430.json"
TEXTS = HERE / "tokenizer430.json"
MODEL = HERE / "llama.model"
NEEDS = (
    "transformers==4.30.2", "tokenizers==0.13.3", "torch==2.13.0", "numpy<2", "accelerate<1", "sentencepiece<0.3",
    "protobuf>=5",
)  # fmt: skip


def main() -> None:
    """Create the environment and run `record` in it."""
    home = Path(tempfile.gettempdir()) / "r2gen-hf430"
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *NEEDS], check=True)
    subprocess.run([python, __file__, "--record"], check=True)


def record() -> None:
    """Run every trial under transformers 4.30.2 and write token ids, cut behind EOS, and beam scores."""
    import torch
    import transformers
    from hf430 import BOS, VOCABULARIES, fill, llama_fields, trials
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    assert transformers.__version__ == "4.30.2"
    torch.set_num_threads(1)
    models = {}
    for vocab in VOCABULARIES:
        models[vocab] = LlamaForCausalLM(LlamaConfig(**llama_fields(vocab))).eval()
        fill(models[vocab], vocab)
    found = []
    for trial in trials():
        out = models[trial.vocab_size].generate(
            inputs_embeds=torch.from_numpy(trial.prompts),
            attention_mask=torch.ones(trial.prompts.shape[:2], dtype=torch.long),
            generation_config=GenerationConfig(
                **trial.settings,
                bos_token_id=BOS,
                eos_token_id=trial.eos_token_id,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            ),
        )
        rows = out.sequences.tolist()
        assert all(row[0] == BOS for row in rows), "the dummy BOS comes first"
        rows = [row[1:] for row in rows]
        eos = trial.eos_token_id
        entry = {"token_ids": [row[: row.index(eos) + 1] if eos in row else row for row in rows]}
        if trial.settings["num_beams"] > 1:
            entry["scores"] = [round(score, 6) for score in out.sequences_scores.tolist()]
        found.append(entry)
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in found)
    OUT.write_text(f'{{"transformers":"{transformers.__version__}","trials":[\n{lines}\n]}}\n', encoding="utf-8")


def train_sentencepiece() -> None:
    """A BPE model with LLaMA's settings: byte fallback, no normalisation, dummy prefix, digits apart."""
    import sentencepiece
    from texts import PROMPT_HALVES, WORDS

    words = [word for word in WORDS if word.isascii()]
    lines = [*PROMPT_HALVES, *(" ".join(words[at:] + words[:at]) for at in range(len(words)))]
    # The model file keeps its prefix: a bare name, so that it holds no folder of this machine.
    with contextlib.chdir(HERE):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=MODEL.stem, model_type="bpe", vocab_size=480,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=True, split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    MODEL.with_suffix(".vocab").unlink()


def record_texts() -> None:
    """Ids of strings and published texts of ids, by the slow tokenizer as the published code makes and calls it."""
    from texts import id_rows, strings
    from transformers import LlamaTokenizer

    if not MODEL.exists():
        train_sentencepiece()
    with tempfile.TemporaryDirectory() as folder:
        LlamaTokenizer(str(MODEL)).save_pretrained(folder)
        tokenizer = LlamaTokenizer.from_pretrained(folder, use_fast=False)
    tokenizer.pad_token_id = 0
    encoded = [[text, tokenizer(text, add_special_tokens=False).input_ids] for text in strings()]
    decoded = []
    for row in id_rows(len(tokenizer)):
        ids = [1, *row]  # the dummy BOS
        if ids[0] == 0:
            ids = ids[1:]
        if ids[0] == 1:
            ids = ids[1:]
        text = tokenizer.decode(ids, add_special_tokens=False).split("</s>")[0].strip().replace("<unk>", "")
        decoded.append([row, text])
    content = {"transformers": "4.30.2", "encoded": encoded, "decoded": decoded}
    TEXTS.write_text(json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--record" in sys.argv:
        record_texts()
    record() if "--record" in sys.argv else main()
