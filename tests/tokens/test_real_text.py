"""The tokenizer on text that nobody wrote for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from talaria.corpus.document import read_documents
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import Shards, write_shards
from talaria.tokens.tokenizer import Tokenizer

DATA = Path(os.environ.get("TALARIA_DATA", Path(__file__).parents[2] / "../shared/data")) / "raw_text"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no public data at {DATA}; set TALARIA_DATA"),
]


def test_tiny_shakespeare_by_character(tmp_path: Path) -> None:
    settings = TokenizerSettings(kind="character", special_tokens=False, validation="tail", validation_fraction=0.1)
    path = str(DATA / "tinyshakespeare.txt.gz")
    documents = list(read_documents([path], max_document_characters=100_000))
    text = "".join(document.text for document in documents)
    tokenizer = Tokenizer.train([text], settings)
    write_shards(documents, tokenizer, tmp_path, settings)
    train, validation = Shards(tmp_path, "train"), Shards(tmp_path, "validation")
    assert tokenizer.vocab_size == 65
    assert (train.n_tokens, validation.n_tokens) == (1_003_854, 111_540)  # nanoGPT's numbers
    assert tokenizer.decode(train.tokens(0, 10**9).tolist() + validation.tokens(0, 10**9).tolist()) == text


def test_web_pages_papers_and_encyclopedia_survive() -> None:
    paths = [str(DATA / "*.jsonl.gz"), str(DATA / "wiki_demo.txt.gz")]
    texts = [document.text[:3000] for document in read_documents(paths)]
    tokenizer = Tokenizer.train(texts, TokenizerSettings(vocab_size=2048))
    ids_of_texts = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids) for ids in ids_of_texts] == texts
    n_bytes = sum(len(text.encode()) for text in texts)
    n_tokens = sum(len(ids) for ids in ids_of_texts)
    assert n_tokens < n_bytes / 2
