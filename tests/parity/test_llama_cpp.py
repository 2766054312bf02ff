"""Exports in llama.cpp (through llama-cpp-python) and transformers: the ids and the greedy text of our own engine.

Skips without the package, which compiles llama.cpp: pip install llama-cpp-python.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import random_model

from talaria.infer.engine import Engine
from talaria.model.checkpoint import export_huggingface
from talaria.model.export_gguf import export_gguf
from talaria.model.shape import Llama3RopeScaling, ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.chat import encode_chat
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama.cpp: pip install llama-cpp-python")
transformers = pytest.importorskip("transformers")

ENGLISH = "The ferry left at noon; \"all aboard\", she said, and we didn't wait. It's 1,234 miles (or 56.7 km) away!"
CHINESE = "渡船中午开走了。“都上船！”她说，我们没有等。全程1234公里，Hello世界。"
CODE = "def f(xs: list[int]) -> int:\n    if not xs:\n        return 0\n\n\tfor x in xs:\n            s += x  # 合计\n"
SYMBOLS = "🎉🎉 ❤️ naïve café — “quoted” … 3.50€ → x² ≠ ∞\u00a0!\r\n"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好! What is <|end|> for?"},
    {"role": "assistant", "content": "It ends a turn."},
    {"role": "user", "content": "    indented\n\n12+35?"},
]
SCALING = Llama3RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
CASES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 2, "tie_embeddings": False},
    "llama, biases, rope scaling": {"bias": True, "rope_theta": 5e5, "rope_scaling": SCALING},
    "qwen3": {"qk_norm": True, "n_kv_heads": 2, "d_head": 32},
    "gpt2": {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([ENGLISH, CHINESE, CODE, SYMBOLS] * 20, TokenizerSettings(vocab_size=600))


def exported(model: Transformer, tokenizer: Tokenizer, path: Path) -> Any:
    """The model in llama.cpp, with a cache of fp32 where its own would be fp16."""
    export_gguf(model, tokenizer, path)
    return llama_cpp.Llama(
        str(path),
        n_ctx=model.shape.context,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )


def make(case: str, tokenizer: Tokenizer) -> Transformer:
    fields = {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_ff": 96, "context": 256} | CASES[case]
    return random_model(ModelShape(vocab_size=tokenizer.vocab_size, **fields)).eval()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], list[int]]:
    llama = exported(make("gpt2", tokenizer), tokenizer, tmp_path_factory.mktemp("vocabulary") / "a.gguf")

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = llama.tokenize(text.encode(), add_bos=False, special=special)
        return ids

    return encode


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, CODE, SYMBOLS], ids=["english", "chinese", "code", "symbols"])
def test_llama_cpp_reads_a_text_as_we_do(
    text: str, tokenizer: Tokenizer, vocabulary: Callable[[str, bool], list[int]]
) -> None:
    assert vocabulary(text, False) == tokenizer.encode(text)


def test_the_two_places_where_llama_cpp_cuts_otherwise(
    tokenizer: Tokenizer, vocabulary: Callable[[str, bool], list[int]]
) -> None:
    """docs/interchange.md tells these; a llama.cpp that no longer parts from us here lets us say so."""
    for text in ("x:\n   she", "\n'tall'"):
        theirs = vocabulary(text, False)
        assert theirs != tokenizer.encode(text)
        assert tokenizer.decode(theirs) == text


def test_a_control_token_in_a_text_stays_text(
    tokenizer: Tokenizer, vocabulary: Callable[[str, bool], list[int]]
) -> None:
    assert vocabulary("a<|end|>b", False) == tokenizer.encode("a<|end|>b")


def test_templates_give_our_ids_in_both(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make("qwen3", tokenizer)
    export_huggingface(model, tokenizer, tmp_path / "folder")
    llama = exported(model, tokenizer, tmp_path / "a.gguf")
    chat = [CHAT[0], {"role": "user", "content": "你好! What for?"}, *CHAT[2:]]  # no control token is spelled out
    ours = encode_chat(tokenizer, chat, add_generation_prompt=True).ids
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == ours
    template = llama.metadata["tokenizer.chat_template"]
    formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        template, eos_token="<|end|>", bos_token="<|endoftext|>", stop_token_ids=[llama.token_eos()]
    )
    prompt = formatter(messages=chat).prompt
    assert llama.tokenize(prompt.encode(), add_bos=False, special=True) == ours
    assert (llama.token_bos(), llama.token_eos()) == (tokenizer.bos_id, tokenizer.eos_id)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    ends = {id for id in range(tokenizer.vocab_size) if llama_cpp.llama_vocab_is_eog(vocab, id)}
    assert ends == tokenizer.stop_ids
    assert llama.tokenize(b"Once", special=False)[0] == tokenizer.prompt_prefix_ids[0]


@pytest.mark.parametrize("case", CASES)
def test_64_greedy_tokens_are_the_same_in_three_engines(case: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make(case, tokenizer)
    llama = exported(model, tokenizer, tmp_path / "a.gguf")
    export_huggingface(model, tokenizer, tmp_path / "folder")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    engine = Engine(model, tokenizer)
    for prompt in ([*tokenizer.prompt_prefix_ids, *tokenizer.encode(CHINESE)], engine.chat_prompt(CHAT)):
        (ours,) = engine.generate([prompt], max_tokens=64, temperature=0)
        with torch.no_grad():
            told = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[0, len(prompt) :]
        assert told.tolist() == ours.token_ids
        ids = []
        for id in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            ids.append(id)
            if len(ids) == 64 or id in tokenizer.stop_ids:
                break
        assert ids == ours.token_ids
        llama.reset()
        llama.eval(prompt)
        with torch.no_grad():
            logits = model(torch.tensor([prompt]))[0]
        # llama.cpp looks GELU up in a table of fp16.
        torch.testing.assert_close(
            torch.from_numpy(llama.scores[: len(prompt)]), logits, rtol=0, atol=1e-2 if case == "gpt2" else 1e-3
        )
