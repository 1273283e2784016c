"""The embedding table: mapped, in three precisions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.parity.rounded_weights import round_embeddings
from r2gen_export.exporting.tokenizer import write_embeddings
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable


def test_embedding_table_is_mapped_and_reads_both_precisions(tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    ids = np.array([[3, 3], [0, 9]])
    for dtype in (np.float32, np.float16):
        np.save(tmp_path / "table.npy", values.astype(dtype))
        table = EmbeddingTable(tmp_path / "table.npy")
        assert isinstance(table._table, np.memmap)
        assert (table.vocab_size, table.width) == (10, 4)
        found = table.lookup(ids)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values.astype(dtype).astype(np.float32)[ids])
    with pytest.raises(IndexError):
        table.lookup(np.array([10]))


@pytest.mark.parametrize("width", [32, 96, 70, 5])
def test_int8_embeddings_are_what_rounding_says_and_only_rows_in_use_are_read(tmp_path, width):
    torch.manual_seed(width)
    weight = torch.randn(5000, width) * torch.rand(5000, 1)
    weight[7] = 0
    write_embeddings(torch.nn.Embedding.from_pretrained(weight.half()), tmp_path / "table.npy", "int8")
    assert (tmp_path / "table.npy").stat().st_size == pytest.approx(5000 * (width + 4 * -(-width // 32)), abs=512)
    table = EmbeddingTable(tmp_path / "table.npy")
    assert isinstance(table._table, np.memmap)
    assert (table.vocab_size, table.width) == (5000, width)
    ids = np.array([[0, 7, 4999], [4095, 4096, 7]])
    found = table.lookup(ids)
    assert (found.dtype, found.shape) == (np.float32, (2, 3, width))
    rounded = round_embeddings(weight.half(), "int8").numpy()
    np.testing.assert_array_equal(found, rounded[ids])
    values = weight.half().float().numpy()
    blocks = np.pad(np.abs(values), ((0, 0), (0, -width % 32))).reshape(5000, -1, 32).max(-1)
    step = np.repeat(blocks / 128, 32, axis=-1)[:, :width]
    assert (np.abs(rounded - values) <= step * 1.001).all()
    assert np.abs(rounded - values).max() > 0
    with pytest.raises(IndexError):
        table.lookup(np.array([5000]))


def test_embedding_table_refuses_other_files(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.zeros((2, 3, 4), np.float32))
    shapes = [path]
    np.save(tmp_path / "integers.npy", np.zeros((2, 3), np.int64))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("text")
    np.save(tmp_path / "int8.npy", np.zeros((2, 3), np.int8))
    np.save(tmp_path / "scales.npy", np.zeros(4, [("codes", "i1", (64,)), ("scales", "<f4", (1,))]))
    np.save(tmp_path / "codes.npy", np.zeros(4, [("codes", "i1"), ("scales", "<f4", (1,))]))
    names = ("integers.npy", "objects.npy", "text.npy", "absent.npy", "int8.npy", "scales.npy", "codes.npy")
    shapes += [tmp_path / name for name in names]
    for one in shapes:
        with pytest.raises(R2GenError) as caught:
            EmbeddingTable(one)
        assert caught.value.code == "R2G-BUNDLE-GRAPH"
        assert str(tmp_path) not in caught.value.message
