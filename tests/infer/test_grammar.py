"""Answers held to a JSON schema or a regex: whatever the model, what comes out fits, and nobody else notices."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import random_model

import talaria
from infer.conftest import LLAMA, ByteTokenizer, tiny_model
from talaria.errors import UsageError, UserError
from talaria.infer.contract import Sampling
from talaria.infer.engine import Engine
from talaria.infer.grammar import LONGEST, Grammars
from talaria.infer.kv_cache import KVCache
from talaria.model.shape import ModelShape
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

TEXT = 'hello world, 你好世界 😀 {"name": "Ada", "age": 36} <|end|> ' * 20
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["你好", "😀 ", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def bpe_engine(context: int = 400, **options: Any) -> Engine:
    tokenizer = Tokenizer.train([TEXT], TokenizerSettings(vocab_size=330))
    # Rows beyond the tokenizer's pad the model's vocabulary.
    shape = ModelShape(vocab_size=tokenizer.vocab_size + 6, n_layers=1, d_model=16, n_heads=2, context=context)
    return Engine(random_model(shape), tokenizer, **options)


@pytest.fixture(scope="module")
def bpe() -> Engine:
    return bpe_engine()


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose longest text is short."""
    kind = rng.choice(["string", "integer", "boolean", "enum", "const", "null", "pattern", "object", "array", "anyOf"])
    if depth > 2 and kind in ("object", "array", "anyOf"):
        kind = "enum"
    if kind == "string":
        return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 6)}
    if kind == "integer":
        low = rng.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 300)}
    if kind == "enum":
        return {"enum": rng.sample(["你好", "😀", 'a"b', "back\\slash", 3, None, True, "x" * 9], rng.randint(1, 4))}
    if kind == "const":
        return {"const": rng.choice(["好", {"k": [1, "😀"]}, 0])}
    if kind == "pattern":
        return {"type": "string", "pattern": "^[a-f好]{1,4}$"}
    if kind == "object":
        names = rng.sample(["a", "名", "long name", "😀"], rng.randint(1, 3))
        required = [name for name in names if rng.random() < 0.6]
        properties = {name: random_schema(rng, depth + 1) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": rng.randint(0, 1), "maxItems": 2}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    return {"type": kind}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """What JSON Schema says of the keywords that `random_schema` uses, told apart from the library under test."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        wanted = schema.get("enum", [schema.get("const")])
        return any(type(value) is type(one) and value == one for one in wanted)
    kind = schema["type"]
    if kind == "string":
        longest = schema.get("maxLength", 1 << 30)
        matches = re.fullmatch(schema.get("pattern", "(?s:.*)").strip("^$"), value) if isinstance(value, str) else None
        return matches is not None and schema.get("minLength", 0) <= len(value) <= longest
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "array":
        few = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return few and all(fits(item, schema["items"]) for item in value)
    if kind == "object":
        properties = schema["properties"]
        if not isinstance(value, dict) or not set(schema["required"]) <= value.keys() <= properties.keys():
            return False
        return all(fits(item, properties[name]) for name, item in value.items())
    return value is None if kind == "null" else type(value) is bool


def test_the_checker_itself_can_refuse() -> None:
    person = {"name": "Ada", "age": 36, "tags": ["b"]}
    assert fits(person, PERSON)
    for wrong in ({"age": 151}, {"age": True}, {"tags": []}, {"tags": ["c"]}, {"name": "Ada Lo"}, {"more": 1}):
        assert not fits(person | wrong, PERSON)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_model_keeps_to_a_random_schema(bpe: Engine, seed: int) -> None:
    schema = random_schema(random.Random(seed))
    ways = {"temperature": [0.0, 1.0, 3.0][seed % 3], "top_p": [1.0, 0.7][seed % 2], "top_k": [None, 3][seed % 2]}
    for answer in bpe.generate(["hello"], json_schema=schema, max_tokens=300, seed=seed, n=3, **ways):
        assert answer.finish_reason == "stop"
        assert fits(json.loads(answer.text), schema), (schema, answer.text)


def test_without_its_schema_the_same_model_writes_no_json(bpe: Engine) -> None:
    [answer] = bpe.generate(["hello"], max_tokens=300, seed=1)
    with pytest.raises(ValueError):
        json.loads(answer.text)


@pytest.mark.parametrize("regex", ["(你好|再见)[!！]", "[0-9]{4}-[0-9]{2}", "😀{2,3}", "a|bc|", r"\w{3}"])
def test_a_random_model_keeps_to_a_regex(bpe: Engine, regex: str) -> None:
    for answer in bpe.generate(["hello"], regex=regex, max_tokens=100, seed=3, n=4, temperature=2.0):
        assert answer.finish_reason == "stop"
        assert re.fullmatch(regex, answer.text), answer.text


def test_bytes_and_characters_are_tokens_too() -> None:
    engine = Engine(tiny_model(LLAMA, context=200), ByteTokenizer())
    [answer] = engine.generate(["x"], json_schema=PERSON, max_tokens=190, seed=2)
    assert fits(json.loads(answer.text), PERSON)

    tokenizer = Tokenizer.train(["ab好😀01"], TokenizerSettings(kind="character", special_tokens=False))
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, context=64)
    engine = Engine(random_model(shape), tokenizer)
    assert not tokenizer.stop_ids
    [answer] = engine.generate(["a"], regex="[ab]好[01]{3}", seed=2)
    assert re.fullmatch("[ab]好[01]{3}", answer.text)
    assert answer.finish_reason == "stop"
    with pytest.raises(UserError, match="no token of this model"):
        engine.generate(["a"], json_schema={"type": "object"})


def test_every_token_has_its_own_bytes_in_the_grammar(bpe: Engine) -> None:
    """Also where half a character is a token."""
    tokenizer = bpe.tokenizer
    vocabulary = Grammars(tokenizer)._vocabulary
    assert any(not 0 < (tokenizer.token_bytes(id) or b"a")[0] < 0x80 for id in range(tokenizer.vocab_size))
    for id in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(id)
        # No UTF-8 text holds the byte 0xFF, which is therefore marked as no text.
        assert vocabulary.is_special_token(id) == (data in (b"", b"\xff"))
        assert data in (b"", b"\xff") or vocabulary.decode_bytes([id]) == data


def test_control_tokens_come_only_at_the_end(bpe: Engine) -> None:
    tokenizer = bpe.tokenizer
    # Biased as far as it goes towards every control token, the answer has none inside, and spells one as text.
    pushed = dict.fromkeys(tokenizer.special_ids.values(), 100.0)
    answers = bpe.generate(["a"], json_schema=PERSON, max_tokens=200, seed=1, n=4, logit_bias=pushed)
    for answer in answers:
        assert fits(json.loads(answer.text), PERSON)
        assert not {*answer.token_ids[:-1]} & {*tokenizer.special_ids.values()}
    # An end is taken as soon as it is allowed, and only then.
    ends = dict.fromkeys(tokenizer.stop_ids, 100.0)
    [answer] = bpe.generate(["a"], regex="[a-z]{3,}", max_tokens=50, logit_bias=ends, temperature=0)
    assert len(answer.text) == 3
    assert answer.token_ids[-1] in tokenizer.stop_ids
    [quoted] = bpe.generate(["a"], json_schema={"const": "<|end|>"}, max_tokens=50)
    assert json.loads(quoted.text) == "<|end|>"


def test_neighbours_are_not_touched_and_do_not_touch(bpe: Engine) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"json_schema": PERSON},
        {"temperature": 0.0},
        {"regex": "[a-z]{5,9}", "presence_penalty": 1.0},
        {"repetition_penalty": 1.5},
        {"json_schema": PERSON, "logit_bias": {40: 5.0}, "top_p": 0.6},
    ]
    alone = [bpe.generate(["hello"], max_tokens=60, seed=9, **way)[0] for way in ways]
    requests = {
        bpe.submit(bpe.tokenizer.prompt_prefix_ids + bpe.tokenizer.encode("hello"), sampling, 9): index
        for index, sampling in enumerate(Sampling(**{"max_tokens": 60, **way}) for way in ways)
    }
    texts, log_probs = [""] * len(ways), [[] for _ in ways]
    while bpe.busy:
        for id, chunk in bpe.step():
            texts[requests[id]] += chunk.text
            log_probs[requests[id]] += chunk.log_probs
    assert texts == [answer.text for answer in alone]
    for together, single in zip(log_probs, alone, strict=True):
        assert together == pytest.approx(single.log_probs, abs=1e-4)
    assert fits(json.loads(texts[1]), PERSON) and re.fullmatch("[a-z]{5,9}", texts[3])


def test_an_answer_that_gave_way_goes_on_where_it_was() -> None:
    prompts, whole = ["hello", "world", "你好", "Ada"], bpe_engine()
    tight = bpe_engine(cache_bytes=14 * KVCache.bytes_per_block(whole.model.shape, torch.float32))
    people = {"type": "array", "items": PERSON, "minItems": 2, "maxItems": 2}
    expected = [whole.generate([p], seed=[i], json_schema=people, max_tokens=150)[0] for i, p in enumerate(prompts)]
    answers = tight.generate(prompts, seed=[0, 1, 2, 3], json_schema=people, max_tokens=150)
    assert tight._scheduler.n_preempted > 0
    assert [a.text for a in answers] == [e.text for e in expected]
    for answer in answers:
        assert all(fits(person, PERSON) for person in json.loads(answer.text))


def test_a_stream_gives_the_same_text_and_n_answers_differ(bpe: Engine) -> None:
    answers = bpe.generate(["hello"], json_schema=PERSON, max_tokens=200, seed=4, n=3)
    assert len({answer.text for answer in answers}) == 3
    streamed = list(bpe.stream("hello", json_schema=PERSON, max_tokens=200, seed=4))
    assert "".join(chunk.text for chunk in streamed) == answers[0].text
    assert streamed[-1].finish_reason == "stop"


def test_a_cut_answer_says_so(bpe: Engine) -> None:
    [cut] = bpe.generate(["hello"], json_schema=PERSON, max_tokens=4, seed=4)
    assert cut.finish_reason == "length"
    assert PERSON["properties"] and cut.text.startswith("{")
    [stopped] = bpe.generate(["hello"], json_schema=PERSON, max_tokens=200, seed=4, stop=['"age"'])
    assert stopped.finish_reason == "stop"
    assert '"age"' not in stopped.text and stopped.text.startswith('{"name"')


def test_log_probs_are_the_raw_models(bpe: Engine) -> None:
    [answer] = bpe.generate(["hello"], json_schema=PERSON, max_tokens=200, seed=5, temperature=0.5, top_logprobs=3)
    prompt = bpe.tokenizer.prompt_prefix_ids + bpe.tokenizer.encode("hello")
    with torch.inference_mode():
        logits_TV = bpe.model(torch.tensor([[*prompt, *answer.token_ids]]))[0]
    expected_TV = logits_TV.log_softmax(dim=-1)
    places = range(len(prompt) - 1, len(prompt) + len(answer.token_ids) - 1)
    assert answer.log_probs == pytest.approx(
        [expected_TV[place, token].item() for place, token in zip(places, answer.token_ids, strict=True)], abs=1e-4
    )
    # What the model would have said instead is told too, also where the schema did not let it say it.
    for place, top in zip(places, answer.top_log_probs, strict=True):
        best = expected_TV[place, : bpe.tokenizer.vocab_size].topk(3).values.tolist()
        assert [value for _, value in top] == pytest.approx(best, abs=1e-4)
    assert [top[0][0] for top in answer.top_log_probs] != answer.token_ids


def test_the_filters_act_on_what_is_allowed(bpe: Engine) -> None:
    """top_k = 1 is the best allowed token, not nothing: the mask comes before the filters."""
    greedy = bpe.generate(["hello"], json_schema=PERSON, max_tokens=200, temperature=0)[0].text
    for way in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert bpe.generate(["hello"], json_schema=PERSON, max_tokens=200, seed=1, **way)[0].text == greedy


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"regex": "("}, "regex: unclosed group"),
        ({"regex": "(?=a)b"}, "regex: look-around"),
        ({"regex": ""}, "regex: must be"),
        ({"json_schema": {"type": "foo"}}, "json_schema: Invalid type: foo"),
        ({"json_schema": {"uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"x-guidance": {"lenient": True}, "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "/nowhere"),
        ({"json_schema": {"$ref": "http://127.0.0.1:9/x"}}, "does not fetch"),
        ({"json_schema": {"not": {}}}, "not"),
        ({"json_schema": True}, "json_schema: is bool"),
        ({"json_schema": {"const": float("nan")}}, "no JSON"),
        ({"json_schema": "{}"}, "json_schema: is str"),
        ({"json_schema": {}, "regex": "a"}, "one of them"),
    ],
)
def test_what_cannot_be_held_to_is_refused_before_anything_runs(bpe: Engine, sampling: dict, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        bpe.generate(["hello"], **sampling)
    assert "\n" not in str(caught.value)
    assert not bpe.busy


def nested(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


def products(n: int, width: int) -> dict[str, Any]:
    def one(i: int, j: int) -> dict[str, Any]:
        return {"type": "object", "properties": {f"p{i}_{j}": {"type": "string"}}}

    return {"allOf": [{"anyOf": [one(i, j) for j in range(width)]} for i in range(n)]}


EXPLODING: dict[str, dict[str, Any]] = {
    "deep": {"json_schema": nested(500)},
    "deeper than Python goes": {"json_schema": nested(5000)},
    "2^20 alternatives": {"json_schema": products(20, 2)},
    "10^4 alternatives": {"json_schema": products(4, 10)},
    "1,500 names": {
        "json_schema": {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1500)}}
    },
    "a large divisor": {"json_schema": {"type": "integer", "multipleOf": 1_000_003}},
    "a long divisor": {"json_schema": {"type": "number", "multipleOf": 1.000003}},
    "two divisors": {"json_schema": {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}},
    "a circle": {"json_schema": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}},
    "a long list": {"json_schema": {"enum": ["word" * 10 + str(i) for i in range(5000)]}},
    "ten patterns": {"json_schema": {"type": "string", "allOf": [{"pattern": f".*a.{{{i}}}b"} for i in range(8, 18)]}},
    "brackets": {"regex": "(" * 30_000 + "a" + ")" * 30_000},
    "a long regex": {"regex": "a" * (LONGEST + 1)},
    "repeats of repeats": {"regex": "((a{100}){100}){100}"},
}


@pytest.mark.parametrize("name", EXPLODING)
def test_what_explodes_is_bounded(bpe: Engine, name: str) -> None:
    begun = time.process_time()
    with pytest.raises(UserError):
        bpe.generate(["hello"], max_tokens=30, **EXPLODING[name])
    # Seconds of this process, not of the clock; unbounded, the worst of these takes a minute or all memory.
    assert time.process_time() - begun < 2
    assert bpe.generate(["hello"], max_tokens=2, seed=1)[0].token_ids


def test_a_grammar_that_fails_midway_ends_its_answer_alone(bpe: Engine) -> None:
    """All that may end the text is barred, so it cannot go on once it is whole."""
    barred = {id: float("-inf") for id in bpe.tokenizer.stop_ids} | {bpe.tokenizer.encode("b")[0]: float("-inf")}
    prompt = bpe.tokenizer.encode("hello")
    [expected] = bpe.generate([prompt], max_tokens=20, seed=1)
    lost = bpe.submit(prompt, Sampling(max_tokens=20, regex="aab", logit_bias=barred), 0)
    other = bpe.submit(prompt, Sampling(max_tokens=20), 1)
    told: dict[int, list[Any]] = {lost: [], other: []}
    while bpe.busy:
        for id, chunk in bpe.step():
            told[id].append(chunk)
    assert isinstance(told[lost][-1], UserError) and "no token" in str(told[lost][-1])
    assert "".join(chunk.text for chunk in told[other]) == expected.text
    assert bpe._scheduler.rows == []
    with pytest.raises(UserError, match="no token"):
        bpe.generate([prompt], regex="aab", logit_bias=barred)


def test_without_the_library_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bpe_engine()
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'talaria-lm\[serve\]'"):
        engine.generate(["hello"], regex="a")
    assert engine.generate(["hello"], max_tokens=2)


def test_two_formats_are_a_wrong_argument() -> None:
    with pytest.raises(UsageError, match="one of them"):
        Sampling(regex="a", json_schema={})


def test_the_example_of_the_documentation_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    [script] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "json_schema" in block]
    monkeypatch.setattr(talaria, "load", lambda _path: bpe_engine())
    exec(compile(script, "docs/serving.md", "exec"), {})
    first, last = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    assert first.startswith('{"name"') and re.fullmatch("(yes|no), [a-z ]{1,20}", last)
