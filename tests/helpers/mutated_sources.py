"""Source files with random damage: `python -m tests.helpers.mutated_sources --runs 5000`.

Each run copies a tiny model, damages one file (bytes flipped, cut off, or one JSON field replaced), and reads it as an
export does. It may be read or refused with a coded error; any other exception, a dead process or `R2G-INTERNAL` is a
failure, printed with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**63, 10**400, 0.0, -0.5, 0.5, 1e-40, 1e30, float("nan"),
    float("inf"), "", "1", "auto", "\ud800", "\0", "../x", [], [None], [1, 2], ["a"], [[]], {}, {"a": 1},
    {"content": "x"}, {"rope_type": "yarn"},
)  # fmt: skip

EXTRA_FIELDS = (
    "rope_parameters", "rope_scaling", "quantization_config", "sliding_window", "dtype", "layer_types", "auto_map",
    "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "crop_size", "do_center_crop", "size",
    "eos_token_id", "head_dim", "legacy", "sp_model_kwargs", "weight_map",
)  # fmt: skip


def make_models(folder: Path) -> Path:
    """Tiny models with every kind of file a source may have."""
    import numpy as np
    import torch

    from r2gen_export.training.checkpoint import save_checkpoint
    from r2gen_export.training.model import ModelConfig, R2GenGPT
    from tests.helpers.tiny import make_tiny_llm, make_tiny_vision

    make_tiny_vision(folder / "vision")
    make_tiny_llm(folder / "llm")
    shutil.copytree(folder / "llm", folder / "sharded")
    model = R2GenGPT.from_sources(folder / "vision", folder / "llm", ModelConfig())
    model.llama_model.save_pretrained(folder / "sharded", max_shard_size="20KB")
    (folder / "sharded" / "model.safetensors").unlink()
    shutil.copytree(folder / "llm", folder / "bin")
    (folder / "bin" / "model.safetensors").unlink()
    torch.save(dict(model.llama_model.state_dict()), folder / "bin" / "pytorch_model.bin")
    _slow_tokenizer(folder)
    save_checkpoint(model, folder / "own", {"dataset": "iu_xray"})
    tensors = {name: value.detach() for name, value in model.trainable()}
    settings = {"global_only": False, "freeze_vm": True, "vis_use_lora": False, "beam_size": 2, "end_sym": "</s>"}
    (folder / "files").mkdir()
    torch.save({"model": tensors, "config": settings, "epoch": 1}, folder / "files" / "a.pth")
    rich = {**settings, "score": np.float64(0.5), "weights": np.ones(2), "path": Path("save/v1")}
    content = {"state_dict": tensors, "hyper_parameters": rich, "loops": collections.defaultdict(int, a=1)}
    torch.save(content, folder / "files" / "b.ckpt")
    torch.save(content, folder / "files" / "c.ckpt", _use_new_zipfile_serialization=False)
    return folder


def _slow_tokenizer(folder: Path) -> None:
    from tests.helpers.tiny import make_tiny_llm

    slow = make_tiny_llm(folder / "slow", vocab_size=481)
    (slow / "tokenizer.json").unlink()
    shutil.copyfile(Path(__file__).parents[1] / "goldens" / "llama.model", slow / "tokenizer.model")
    (slow / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True}))
    (slow / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    (slow / "added_tokens.json").write_text(json.dumps({"cardiomegaly": 480}))


def _llm(folder: Path, _: Path) -> None:
    import torch

    from r2gen_export.training.hub import load_llm, stored_dtype

    stored_dtype(folder)
    model = load_llm(folder, torch.float32)
    model(input_ids=torch.tensor([[1, 5, 7]]))


def _vision(folder: Path, _: Path) -> None:
    import torch

    from r2gen_export.training.hub import load_vision

    load_vision(folder)(torch.zeros(1, 3, 32, 32))


def _processor(folder: Path, _: Path) -> None:
    import numpy as np

    from r2gen_export.studies.images import preprocess
    from r2gen_export.training.source_files.preprocessor import image_spec

    image = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    pixels = preprocess([image], image_spec(folder))
    assert np.isfinite(pixels).all(), "what passes export must be able to infer"


def _tokenizer(folder: Path, _: Path) -> None:
    from r2gen_export.exporting.tokenizer import check_tokenizer, write_tokenizer
    from r2gen_export.training.hub import load_tokenizer
    from r2gen_export.training.model import prompt_pieces

    tokenizer = load_tokenizer(folder)
    before, _ = prompt_pieces(tokenizer, "Describe.")
    write_tokenizer(tokenizer, folder / "written.json")
    check_tokenizer(tokenizer, folder / "written.json", [("Human: <Img>", before)])


def _own(folder: Path, models: Path) -> None:
    from r2gen_export.training import checkpoint
    from r2gen_export.training.model import R2GenGPT

    config = checkpoint.read_config(folder)
    checkpoint.train_facts(folder)
    checkpoint.load_checkpoint(R2GenGPT.from_sources(models / "vision", models / "llm", config), folder)


def _file(name: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, models: Path) -> None:
        from r2gen_export.training import checkpoint, published
        from r2gen_export.training.model import R2GenGPT

        trained = published.understand(published.read_file(folder / name), {})
        published.describe(trained)
        checkpoint.load_published(R2GenGPT.from_sources(models / "vision", models / "llm", trained.config), trained)

    return read


TARGETS: tuple[tuple[str, str, Callable[[Path, Path], None]], ...] = (
    ("llm", "config.json", _llm),
    ("llm", "generation_config.json", _tokenizer),
    ("llm", "model.safetensors", _llm),
    ("sharded", "model.safetensors.index.json", _llm),
    ("bin", "pytorch_model.bin", _llm),
    ("vision", "config.json", _vision),
    ("vision", "model.safetensors", _vision),
    ("vision", "preprocessor_config.json", _processor),
    ("llm", "tokenizer.json", _tokenizer),
    ("llm", "tokenizer_config.json", _tokenizer),
    ("slow", "tokenizer.model", _tokenizer),
    ("slow", "tokenizer_config.json", _tokenizer),
    ("slow", "special_tokens_map.json", _tokenizer),
    ("slow", "added_tokens.json", _tokenizer),
    ("own", "config.json", _own),
    ("own", "adapter.safetensors", _own),
    ("files", "a.pth", _file("a.pth")),
    ("files", "b.ckpt", _file("b.ckpt")),
    ("files", "c.ckpt", _file("c.ckpt")),
)


def damage(data: bytes, name: str, rng: random.Random) -> bytes:
    """A file's bytes with one kind of damage."""
    kinds = ["flip", "cut", "head", "insert"] + ["field"] * 8 * name.endswith(".json")
    match rng.choice(kinds):
        case "field":
            return _field(data, rng)
        case "cut":
            return data[: rng.randrange(len(data))]
        case "insert":
            at = rng.randrange(len(data))
            return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
        case kind:
            damaged = bytearray(data)
            limit = len(data) if kind == "flip" else min(len(data), 2000)
            for _ in range(rng.choice((1, 1, 2, 5, 20))):
                damaged[rng.randrange(limit)] = rng.randrange(256)
            return bytes(damaged)


def _field(data: bytes, rng: random.Random) -> bytes:
    """One field, at any depth, replaced, removed or added."""
    record = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place: Any = record
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            if isinstance(place, dict) and rng.random() < 0.15:
                del place[key]
            elif isinstance(place, dict) and rng.random() < 0.25:
                place[rng.choice(EXTRA_FIELDS)] = copy.deepcopy(rng.choice(VALUES))
            else:
                place[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return json.dumps(record).encode("utf-8", "surrogatepass")


@contextmanager
def damaged_copy(models: Path, seed: int) -> Iterator[tuple[Path, str, Callable[[Path, Path], None]]]:
    """A copy of one folder with damage in one file, what was damaged, and its reader."""
    rng = random.Random(seed)
    folder, name, read = TARGETS[seed % len(TARGETS)]
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / folder
        shutil.copytree(models / folder, target)
        (target / name).write_bytes(damage((target / name).read_bytes(), name, rng))
        yield target, f"{folder}/{name}", read


def outcome(models: Path, seed: int) -> tuple[str, str]:
    """What was damaged, and `read`, the code of the error, or what went wrong."""
    from r2gen_export.errors import R2GenError

    with damaged_copy(models, seed) as (damaged, name, read):
        try:
            read(damaged, models)
        except R2GenError as error:
            whole = error.code != "R2G-INTERNAL" and error.message and error.fix
            return name, error.code if whole else f"FAILURE: {error}"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return name, f"FAILURE: {type(error).__name__}: {str(error)[:200]}"
    return name, "read"


def _work(models: Path, seeds: list[int], results: Any) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # sentencepiece and tokenizers print what they raise
    for seed in seeds:
        results.send((seed, "begun", ""))
        results.send((seed, *outcome(models, seed)))
    results.send((-1, "", ""))


def sweep(models: Path, seeds: list[int], timeout: float = 60.0) -> list[tuple[int, str, str]]:
    """Outcomes (seed, file, outcome) of all seeds, in child processes: one that dies or hangs is a failure."""
    done: list[tuple[int, str, str]] = []
    left = list(seeds)
    context = multiprocessing.get_context("fork")
    while left:
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(models, left, send))
        child.start()
        send.close()
        at = None
        while True:
            try:
                seed, name, result = receive.recv() if receive.poll(timeout) else (None, "", "")
            except EOFError:
                seed = None
            if seed is None or seed == -1:
                break
            if name == "begun":
                at = seed
            else:
                done.append((seed, name, result))
                left.remove(seed)
        child.kill()
        child.join()
        if left and at in left:
            folder, file, _ = TARGETS[at % len(TARGETS)]
            done.append((at, f"{folder}/{file}", "FAILURE: the process died or hung"))
            left.remove(at)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        models = make_models(Path(scratch))
        done = sweep(models, list(range(options.seed, options.seed + options.runs)))
    by_file: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for _, name, result in done:
        by_file[name][result.partition(":")[0]] += 1
    lines = []
    for name, counts in sorted(by_file.items()):
        lines.append(f"{name:36} " + ", ".join(f"{result} {count}" for result, count in counts.most_common()))
    failures = [entry for entry in done if entry[2].startswith("FAILURE")]
    lines += [f"seed {seed}: {name}: {result}" for seed, name, result in failures]
    lines.append(f"{len(done)} runs, {len(failures)} failures, {time.monotonic() - start:.0f} s")
    sys.stdout.write("\n".join(lines) + "\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
