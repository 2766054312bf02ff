"""Asking and judging: right prompts, right order, honest rows."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from random_weights import random_model

from talaria.corpus.document import Document
from talaria.errors import UserError
from talaria.eval.continuations import continue_held_out
from talaria.eval.evaluate import Candidate, evaluate, evaluate_models
from talaria.eval.items import dump_items
from talaria.eval.prompts import likelihood_pair, plain_prompt, prompt_ids
from talaria.eval.settings import EvalSettings
from talaria.eval.validation import evaluate_validation, validation_rows
from talaria.infer.engine import Engine
from talaria.model.shape import ModelShape
from talaria.report.results import read_results
from talaria.tokens.chat import encode_chat
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import Shards, write_shards
from talaria.tokens.tokenizer import Tokenizer

from .conftest import Scripted, item

PLAIN = EvalSettings(likelihood_per_task=0)


def test_answers_return_to_their_own_questions(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine gets some at a time; an answer must still meet the item that asked for it."""
    monkeypatch.setattr("talaria.eval.evaluate._ASKED_AT_ONCE", 7)
    items = [
        item(
            n,
            messages=[{"role": "user", "content": "?" * (40 - n) + f" person {n:02d}"}],
            answer=str(n),
            grader="last_number",
        )
        for n in range(20)
    ]
    engine = Scripted(tokenizer, lambda prompt: prompt.split("person ")[1][:2])
    [row] = evaluate(engine, items, PLAIN, "sft")
    assert (row.metric, row.score, row.n) == ("accuracy", 1.0, 20)
    assert engine.batches == [7, 7, 6]
    assert all(options["temperature"] == 0.0 for options in engine.options)


def test_wrong_answers_count_as_wrong(tokenizer: Tokenizer) -> None:
    engine = Scripted(tokenizer, lambda prompt: "Tal" if "person 1 " in prompt else "Or")
    [row] = evaluate(engine, [item(1), item(2), item(3), item(4)], PLAIN, "sft")
    assert row.score == 0.25
    assert row.stderr == pytest.approx(math.sqrt(0.25 * 0.75 / 4))


def test_chat_prompt_is_the_models_own_format(tokenizer: Tokenizer) -> None:
    one = item(1)
    messages = [message.model_dump() for message in one.messages]
    assert prompt_ids(tokenizer, one, "chat") == encode_chat(tokenizer, messages, add_generation_prompt=True).ids
    context, continuation = likelihood_pair(tokenizer, one, "Tal", "chat")
    whole = encode_chat(tokenizer, [*messages, {"role": "assistant", "content": "Tal"}])
    assert context == prompt_ids(tokenizer, one, "chat") and context + continuation == whole.ids
    assert tokenizer.eos_id in continuation, "a choice must be scored with its end, or a prefix of another wins"


def test_plain_prompt_reads_like_a_page_in_either_language(tokenizer: Tokenizer) -> None:
    assert plain_prompt(item(1)) == "Q: Where was person 1 born?\nA:"
    talk = [
        {"role": "user", "content": "米拉是谁？"},
        {"role": "assistant", "content": "一位织工。"},
        {"role": "user", "content": "她出生在哪里？"},
    ]
    assert plain_prompt(item(1, lang="zh", messages=talk)) == "问：米拉是谁？\n答：一位织工。\n问：她出生在哪里？\n答："
    ids = prompt_ids(tokenizer, item(1), "plain")
    assert ids[: len(tokenizer.prompt_prefix_ids)] == tokenizer.prompt_prefix_ids and tokenizer.prompt_prefix_ids
    assert likelihood_pair(tokenizer, item(1), "Tal", "plain")[0] == ids
    assert tokenizer.decode(likelihood_pair(tokenizer, item(1), "Tal", "plain")[1]) == " Tal\n"


def test_plain_answer_ends_at_its_line(tokenizer: Tokenizer) -> None:
    engine = Scripted(tokenizer, lambda prompt: " Tal")
    [row] = evaluate(engine, [item(1)], PLAIN, "pretrain", strategy="plain")
    assert engine.options[0]["stop"] == ("\n",)
    assert (row.strategy, row.score) == ("plain", 1.0)


def test_choice_accuracy_sees_what_the_generated_answer_does_not(tokenizer: Tokenizer) -> None:
    items = [item(n, choices=["Or", "Tal", "Sen"]) for n in range(3)]
    engine = Scripted(tokenizer, lambda prompt: "er", lambda text: -1.0 if "Tal" in text else -9.0)
    rows = {row.metric: row for row in evaluate(engine, items, EvalSettings(), "sft")}
    assert rows["accuracy"].score == 0.0
    assert rows["choice_accuracy"].score == 1.0
    engine = Scripted(tokenizer, lambda prompt: "er", lambda text: -1.0 if "Or" in text else -9.0)
    rows = {row.metric: row for row in evaluate(engine, items, EvalSettings(), "sft")}
    assert rows["choice_accuracy"].score == 0.0


def test_likelihood_is_bounded_and_spread(tokenizer: Tokenizer) -> None:
    items = [item(n, choices=["Tal", "Or"]) for n in range(30)]
    engine = Scripted(tokenizer, lambda prompt: "Tal")
    rows = {row.metric: row.n for row in evaluate(engine, items, EvalSettings(likelihood_per_task=5), "sft")}
    assert rows == {"accuracy": 30, "choice_accuracy": 5, "answer_log_prob": 5}


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, context=128)
    return Engine(random_model(shape).eval(), tokenizer)


def test_answer_log_prob_is_the_models_own(engine: Engine) -> None:
    one = item(1)
    rows = {row.metric: row.score for row in evaluate(engine, [one], EvalSettings(max_tokens=4), "tiny")}
    context, continuation = likelihood_pair(engine.tokenizer, one, "Tal", "chat")
    with torch.inference_mode():
        log_probs_TV = engine.model(torch.tensor([context + continuation]))[0].log_softmax(-1)
    expected = [float(log_probs_TV[len(context) - 1 + i, token]) for i, token in enumerate(continuation)]
    assert rows["answer_log_prob"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_stage_writes_results_with_nulls_and_items(engine: Engine, tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    dump_items([item(n, choices=["Tal", "Or"], relation="town") for n in range(6)], exam)
    (tmp_path / "sft" / "model").mkdir(parents=True)
    (tmp_path / "sft" / "training.json").write_text('{"tokens": 5000, "flops": 1.5e9, "steps": 70, "params": 1}')
    settings = EvalSettings(max_tokens=4, limit_per_task=4)
    models = [
        Candidate("untrained", tmp_path / "raw" / "model", limit_per_task=2),
        Candidate("sft", tmp_path / "sft" / "model", "plain"),
    ]
    folder = tmp_path / "eval"
    evaluate_models(settings, models, exam, folder, load_engine=lambda path: engine, seed=3)
    rows = read_results(folder / "results.csv")
    assert {row.model for row in rows} == {"chance", "majority", "untrained", "sft"}
    [sft] = [row for row in rows if row.model == "sft" and row.metric == "accuracy"]
    params = sum(weight.numel() for weight in engine.model.parameters())
    assert (sft.params, sft.tokens, sft.flops, sft.step, sft.seed, sft.n) == (params, 5000, 1.5e9, 70, 3, 4)
    assert {row.n for row in rows if row.model == "untrained"} == {2}
    items = [json.loads(line) for line in (folder / "items-sft.jsonl").read_text().splitlines()]
    assert [one["id"] for one in items] == ["facts-000", "facts-001", "facts-003", "facts-004"]
    assert {"id", "prompt", "answer", "right", "log_prob"} <= items[0].keys()


@pytest.mark.parametrize("names", [("sft", "sft"), ("chance",)])
def test_two_models_never_share_a_file(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="is taken"):
        evaluate_models(
            PLAIN,
            [(name, tmp_path) for name in names],
            tmp_path / "exam",
            tmp_path,
            load_engine=lambda path: None,  # type: ignore[arg-type, return-value]
        )


def test_bits_per_byte_known_value() -> None:
    rows = {row.metric: row.score for row in validation_rows("m", math.log(2) * 8, n_tokens=10, n_bytes=40)}
    assert rows["bits_per_byte"] == pytest.approx(8 * 10 / 40)
    assert rows["perplexity"] == pytest.approx(256)
    with pytest.raises(ValueError, match="empty"):
        validation_rows("m", 1.0, n_tokens=0, n_bytes=0)


def test_held_out_loss_counts_every_token_once_and_bytes_of_text_only(engine: Engine, tmp_path: Path) -> None:
    text = "Mira was born in Tal, 米拉出生在塔尔。 " * 60
    settings = TokenizerSettings(validation="tail", validation_fraction=0.9)
    write_shards([Document("a", text, "a")], engine.tokenizer, tmp_path / "shards", settings)
    shards = Shards(tmp_path / "shards", "validation")
    evaluate_validation(
        EvalSettings(), [Candidate("m", tmp_path / "m")], tmp_path / "shards", tmp_path, load_engine=lambda path: engine
    )
    rows = {row.metric: row for row in read_results(tmp_path / "results.csv")}
    assert rows["loss"].n == shards.n_tokens - 1
    n_bytes = len(engine.tokenizer.decode_bytes([int(token) for token in shards.tokens(1, shards.n_tokens)]))
    bits = rows["loss"].score * rows["loss"].n / math.log(2)
    assert rows["bits_per_byte"].score == pytest.approx(bits / n_bytes)
    # A model that has learned nothing spreads its bets over the vocabulary.
    assert rows["loss"].score == pytest.approx(math.log(engine.tokenizer.vocab_size), rel=0.2)


def test_models_continue_held_out_documents_from_their_beginning(engine: Engine, tmp_path: Path) -> None:
    """The bugs: an opening from training text, from the middle of a document, or one that reaches into the next."""
    texts = [f"Document {n}: {'Mira was born in Tal. ' * 12}" for n in range(40)]
    settings = TokenizerSettings(validation_fraction=0.3)
    documents = [Document(str(n), text, "made") for n, text in enumerate([*texts, "short"])]
    write_shards(documents, engine.tokenizer, tmp_path, settings)
    held_out = Shards(tmp_path, "validation")
    assert held_out.n_documents > 6
    inside = engine.tokenizer.decode(held_out.tokens(0, held_out.n_tokens).tolist())
    for strategy in ("plain", "chat"):
        passages = continue_held_out(engine, held_out, strategy, seed=1)
        assert len({passage["opening"] for passage in passages}) == 6
        for passage in passages:
            whole = passage["opening"] + passage["text"]
            assert whole in inside and any(text.startswith(whole) for text in texts)
            assert 0 < len(engine.tokenizer.encode(passage["opening"])) <= 24
        assert passages == continue_held_out(engine, held_out, strategy, seed=1)
    one = passages[0]
    ids = engine.chat_prompt([{"role": "user", "content": one["opening"]}])
    assert one["answer"] == engine.generate([ids], max_tokens=64, temperature=0.7, top_p=0.95, seed=1)[0].text


def test_text_without_documents_is_continued_from_places_all_over_it(tmp_path: Path) -> None:
    settings = TokenizerSettings(kind="character", special_tokens=False, validation="tail", validation_fraction=0.5)
    tokenizer = Tokenizer.train(["abcdefgh "], settings)
    text = "".join(random.Random(0).choices("abcdefgh ", k=4000))
    write_shards([Document("0", text, "made")], tokenizer, tmp_path, settings)
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, context=32)
    passages = continue_held_out(
        Engine(random_model(shape).eval(), tokenizer), Shards(tmp_path, "validation"), "plain", 0
    )
    places = [text.index(passage["opening"] + passage["text"], 2000) for passage in passages]
    assert len(set(places)) == 6 and max(places) > 3400
    assert all(len(passage["opening"]) == 8 and passage["answer"] for passage in passages)
