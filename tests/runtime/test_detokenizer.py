"""Token ids to text: the published clean-up, and pieces that add up to the whole whatever the ids are."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from r2gen_export.errors import R2GenError
from r2gen_export.runtime.detokenizer import Detokenizer, clean_text, settled
from tests.helpers.tiny import SENTENCES, SPECIALS

LLAMA_DECODER = (
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
)
"""The decoder of LLaMA's own tokenizer.json."""


def _llama() -> Tokenizer:
    """Every byte as a token, words with `▁`, and `<`, `/`, `s`, `u` apart, so that `</s>` can also be spelt."""
    words = ["▁the", "▁lungs", "▁are", "▁clear", "▁", ".", "<", "/", "s", ">", "u", "n", "k", "é"]
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(list(LLAMA_DECODER))
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _trained(decoder: object, pre_tokenizer: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


TOKENIZERS = {
    "llama": _llama,
    "metaspace": lambda: _trained(decoders.Metaspace(), pre_tokenizers.Metaspace()),
    "bytelevel": lambda: _trained(decoders.ByteLevel(), pre_tokenizers.ByteLevel()),
    "wordpiece": lambda: _trained(decoders.WordPiece(), pre_tokenizers.Whitespace()),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request, tmp_path_factory):
    tokenizer = TOKENIZERS[request.param]()
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    tokenizer.save(str(path))
    return tokenizer, Detokenizer(path, unk_token_id=0, bos_token_id=1)


def published_decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """`R2GenGPT.decode` of the published code, on lists."""
    if ids[0] == 0:
        ids = ids[1:]
    if ids and ids[0] == 1:
        ids = ids[1:]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return text.split("</s>")[0].strip().replace("<unk>", "")


def _random_ids(rng: random.Random, vocab: int) -> list[int]:
    # Runs of bytes and specials are what streaming can get wrong, so they come often.
    pools = (range(3), range(3, min(259, vocab)), range(min(vocab - 20, 259), vocab))
    return [rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 14))]


def test_text_is_the_published_one(tokenizer):
    """LLaMA's own tokenizers are compared with the slow one in `tests/exporting/test_slow_tokenizer.py`."""
    hf, detokenizer = tokenizer
    if detokenizer.sentencepiece:
        return
    rng = random.Random(0)
    for _ in range(500):
        ids = _random_ids(rng, hf.get_vocab_size())
        assert detokenizer.text(ids) == published_decode(hf, ids)


def test_pieces_add_up_to_the_text(tokenizer):
    hf, detokenizer = tokenizer
    rng = random.Random(1)
    for _ in range(500):
        ids = _random_ids(rng, hf.get_vocab_size())
        stream = detokenizer.stream()
        pieces = [stream.push(token) for token in ids]
        assert "".join([*pieces, stream.finish()]) == detokenizer.text(ids), ids


@pytest.mark.parametrize("tokenizer", ["llama", "metaspace", "bytelevel"], indirect=True)
def test_words_come_while_they_are_generated(tokenizer):
    hf, detokenizer = tokenizer
    ids = [hf.token_to_id(token) for token in ("▁the", "▁lungs")]
    ids = hf.encode("the lungs").ids if None in ids else ids
    stream = detokenizer.stream()
    assert [stream.push(token) for token in ids[:2]] == ["the", " lungs"]


def test_only_decoders_that_never_take_back_may_stream(tmp_path):
    grows = set()
    for name, make in TOKENIZERS.items():
        make().save(str(tmp_path / name))
        if Detokenizer(tmp_path / name, unk_token_id=0, bos_token_id=1).grows:
            grows.add(name)
    assert grows == {"llama", "metaspace", "bytelevel"}


def test_a_character_of_several_bytes_comes_whole(tmp_path):
    tokenizer = _llama()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    stream = Detokenizer(tmp_path / "tokenizer.json", unk_token_id=0, bos_token_id=1).stream()
    lung = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é€".encode()]
    pieces = [stream.push(token) for token in lung]
    assert set(pieces) == {""}
    assert stream.push(tokenizer.token_to_id("▁clear")) == "é€ clear"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  the heart </s> more", "the heart"),
        ("the <unk>heart", "the heart"),
        ("</s>", ""),
        ("<unk>", ""),
        ("a </s> b </s>", "a"),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


def test_what_is_settled_stays():
    rng = random.Random(2)
    for _ in range(3000):
        raw = "".join(rng.choice(["a", " ", "<", "/", "s", ">", "<unk>", "</s>", "<u", "nk>"]) for _ in range(6))
        for cut in range(len(raw)):
            assert clean_text(raw).startswith(settled(raw[:cut])), (raw, cut)


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(R2GenError, match=r"tokenizer\.json is not a tokenizer") as caught:
        Detokenizer(tmp_path / "tokenizer.json", unk_token_id=0, bos_token_id=1)
    assert caught.value.code == "R2G-BUNDLE-MANIFEST"


def test_old_semantics_drop_the_dummy_only(tokenizer):
    """4.30's output begins with `<s>`: the published `decode` drops that and leaves generated `<unk>` and `<s>`."""
    made, detokenizer = tokenizer
    if detokenizer.sentencepiece:
        return
    rng = random.Random(5)
    for _ in range(200):
        ids = [rng.choice([0, 1, 5]), *_random_ids(rng, made.get_vocab_size())]
        wanted = published_decode(made, [1, *ids])
        assert detokenizer.text(ids, "hf-4.30") == wanted
        stream = detokenizer.stream("hf-4.30")
        assert "".join([*map(stream.push, ids), stream.finish()]) == wanted


def test_pieces_of_tokens_add_up_to_the_text_before_cleaning(tokenizer):
    hf, detokenizer = tokenizer
    rng = random.Random(3)
    by_token = 0
    for _ in range(300):
        ids = _random_ids(rng, hf.get_vocab_size())
        for semantics in ("hf-current", "hf-4.30"):
            pieces = detokenizer.pieces(ids, semantics)
            assert len(pieces) == len(ids)
            assert clean_text("".join(pieces)) == detokenizer.text(ids, semantics)
            body = detokenizer._body(ids, semantics)
            by_token += detokenizer._pieces_by_token(body, "".join(pieces), semantics) is not None
    assert by_token > 0
    assert detokenizer.pieces([]) == ()


def test_a_piece_is_the_word_of_its_token(tmp_path):
    tokenizer = _llama()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    detokenizer = Detokenizer(tmp_path / "tokenizer.json", unk_token_id=0, bos_token_id=1)
    ids = [tokenizer.token_to_id(token) for token in ("<s>", "▁the", "▁lungs", "<0xC3>", "<0xA9>", ".", "</s>")]
    assert detokenizer.pieces(ids) == ("", " the", " lungs", "", "é", ".", "</s>")
    assert detokenizer.piece(tokenizer.token_to_id("▁lungs")) == " lungs"
