"""The peers' model as GGUF, Q4_0; run in llama.cpp's environment.

`python gguf_file.py MODEL OUT`. Rows of q and k are put into llama.cpp's order (`convert_hf_to_gguf.py`, `permute`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors import safe_open

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def main() -> None:
    """Write `OUT/model.gguf`."""
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    places = json.loads((model / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]

    def read(name: str) -> Any:
        with safe_open(model / places[name], framework="np") as opened:
            return opened.get_tensor(name).astype(np.float32)

    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    writer = GGUFWriter(out / "model.gguf", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(2)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *([6] * 256)]
    tokens += [f"w{number}" for number in range(len(tokens), config["vocab_size"])]
    kinds += [1] * (config["vocab_size"] - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def add(name: str, values: Any, kind: GGMLQuantizationType) -> None:
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", read("model.embed_tokens.weight"), GGMLQuantizationType.F16)
    for layer in range(config["num_hidden_layers"]):
        for name, theirs in NAMES.items():
            values = read(f"model.layers.{layer}.{name}.weight")
            if name.endswith(("q_proj", "k_proj")):
                count = heads if "q_proj" in name else keys
                rows, columns = values.shape
                values = values.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
            kind = GGMLQuantizationType.Q4_0 if values.ndim == 2 else GGMLQuantizationType.F32
            add(f"blk.{layer}.{theirs}.weight", values, kind)
    add("output_norm.weight", read("model.norm.weight"), GGMLQuantizationType.F32)
    add("output.weight", read("lm_head.weight"), GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
