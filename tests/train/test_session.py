"""What surrounds the steps: what a run cost, data too small or too long for it, checkpoints in order, a full disk."""

from __future__ import annotations

import errno
import json
import re
import resource
from pathlib import Path
from typing import Literal

import pytest
import torch

from talaria.corpus.document import Document
from talaria.errors import UserError
from talaria.eval.evaluate import provenance_of
from talaria.model.checkpoint import load_model, save_model, save_tensors
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.model.transformer import Transformer
from talaria.run import read_metrics
from talaria.tokens.batches import Batch
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import write_shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train import meter, parallel
from talaria.train.checkpoint import checkpoints
from talaria.train.meter import Meter
from talaria.train.pretrain import pretrain
from talaria.train.settings import OptimizerSettings, PlanSettings, PretrainSettings, SftSettings, Stretch
from talaria.train.sft import name_control_tokens, sft
from talaria.train.step import StepResult, summed_loss

MODEL = ModelSettings(depth=1, d_model=16, n_heads=2, context=16)
PRETRAIN = PretrainSettings(tokens=5 * 64, batch_tokens=64)
STILL = OptimizerSettings(learning_rate=1e-12)
"""Which moves nothing: so that runs of other roundings end alike."""
SFT = SftSettings(epochs=1.0, batch_tokens=64, validation_share=0.2)
WORDS = "the wing of a sandal carries one word over sea and land to gods "


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"), 0.2)


def write_tokens(folder: Path, held_out: float) -> Path:
    settings = TokenizerSettings(vocab_size=300, validation_fraction=held_out)
    tokenizer = Tokenizer.train([WORDS] * 5, settings)
    tokenizer.save(folder / "tokenizer")
    write_shards([Document(str(i), f"{i} {WORDS}", "made") for i in range(40)], tokenizer, folder / "shards", settings)
    return folder


@pytest.fixture(scope="module")
def base(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    pretrain(PRETRAIN, MODEL, tokens, 1, folder)
    return folder


def conversations(path: Path, n: int = 20, question: str = "wing") -> list[Path]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "sea"}]
    path.write_text(f"{json.dumps({'messages': messages})}\n" * n)
    return [path]


def training(folder: Path) -> dict[str, float]:
    record: dict[str, float] = json.loads((folder / "training.json").read_text())
    return record


def test_flops_count_every_computed_position_and_totals_the_base(base: Path, tokens: Path, tmp_path: Path) -> None:
    """The bug: an answer of one token in a row of sixteen positions billed as one token's work."""
    per_token = load_model(base / "model")[0].shape.flops_per_token(16)
    cost = training(base)
    assert cost["positions"] == 5 * 64 and cost["flops"] == 5 * 64 * per_token == cost["flops_total"]
    assert cost["tokens"] == cost["tokens_total"] <= 5 * 64
    sft(SFT, base / "model", conversations(tmp_path / "c.jsonl"), None, 1, tmp_path / "sft")
    tuned = training(tmp_path / "sft")
    assert tuned["positions"] == tuned["steps"] * 64 and tuned["tokens"] < tuned["positions"] / 2
    assert tuned["flops"] == tuned["positions"] * per_token
    assert tuned["tokens_total"] == cost["tokens"] + tuned["tokens"]
    assert tuned["flops_total"] == cost["flops"] + tuned["flops"]
    provenance = provenance_of(None, tmp_path / "sft" / "model", 1)  # type: ignore[arg-type]
    assert (provenance.tokens, provenance.flops) == (tuned["tokens_total"], tuned["flops_total"])


def test_the_total_of_a_foreign_base_is_unknown_not_its_fine_tuning_alone(base: Path, tmp_path: Path) -> None:
    save_model(*load_model(base / "model"), tmp_path / "foreign" / "model")
    sft(SFT, tmp_path / "foreign" / "model", conversations(tmp_path / "c.jsonl"), None, 1, tmp_path / "sft")
    assert training(tmp_path / "sft")["flops_total"] is None
    assert provenance_of(None, tmp_path / "sft" / "model", 1).flops is None  # type: ignore[arg-type]


def test_a_model_taken_as_it_is_cost_an_unknown_amount_not_nothing(base: Path, tmp_path: Path) -> None:
    """The bug: tokens 0 and flops 0 in results.csv for a model that was trained elsewhere."""
    save_model(*load_model(base / "model"), tmp_path / "foreign" / "model")
    for place, cost in ((tmp_path / "foreign", {}), (base, training(base))):
        settings = SftSettings(base=str(place / "model"), epochs=0)
        sft(settings, place / "model", [], None, 1, tmp_path / place.name / "sft")
        found = provenance_of(None, tmp_path / place.name / "sft" / "model", 1)  # type: ignore[arg-type]
        assert (found.tokens, found.flops) == (cost.get("tokens"), cost.get("flops"))
        assert training(tmp_path / place.name / "sft")["flops"] == 0, "of its own it cost nothing more"


def test_of_the_ranks_that_take_a_model_over_the_first_alone_writes_and_all_wait(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: under torchrun every rank wrote the same files, over each other."""
    settings = SftSettings(base=str(base / "model"), epochs=0)
    waited: list[bool] = []
    monkeypatch.setattr(parallel, "barrier", lambda: waited.append((tmp_path / "sft" / "training.json").exists()))
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    sft(settings, base / "model", [], None, 1, tmp_path / "sft")
    assert not (tmp_path / "sft").exists()
    monkeypatch.setattr(parallel, "rank", lambda: 0)
    sft(settings, base / "model", [], None, 1, tmp_path / "sft")
    assert waited == [False, True]


def test_a_band_given_to_a_resumed_run_judges_only_what_is_to_come(tokens: Path, tmp_path: Path) -> None:
    """The bug: at step 5 of 10 the next losses were held against the stretches before it."""
    pretrain(PRETRAIN, MODEL, tokens, 1, tmp_path)
    ends = ((0.2, 0.4), (0.4, 0.8), (0.8, 1.0))
    band = [Stretch(begin=begin, end=end, low=1.0, high=9.0) for begin, end in ends]
    pretrain(PretrainSettings(tokens=10 * 64, batch_tokens=64), MODEL, tokens, 1, tmp_path, PlanSettings(band=band))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    losses = [row["train_loss"] for row in rows if row["step"] in (9, 10) and "train_loss" in row]
    [judged] = [row for row in rows if "stretch_loss" in row]
    assert judged["step"] == 10 and judged["stretch_loss"] == pytest.approx(sum(losses) / 2)


def test_mfu_is_a_share_of_all_ranks_in_the_dtype_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {torch.float32: 1e9, torch.bfloat16: 4e9}
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(meter, "peak_flops", peaks.__getitem__)
    result = StepResult(1.0, 10, 1000, 1.0, False, False, None)
    shares = {}
    for dtype, ranks in ((torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 1)):
        one = Meter("", 1, 0, 100, dtype, ranks, show=False)
        one.count(1, result)
        row = one.row(1, result)
        shares[dtype, ranks] = row["mfu"] / row["flops_per_second"] * 1e9  # type: ignore[operator]
        assert row["flops_per_second"] == pytest.approx(100 * row["tokens_per_second"])  # type: ignore[operator]
    assert list(shares.values()) == pytest.approx([1.0, 0.5, 0.25])


def test_a_peak_measured_in_a_bad_moment_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: one bad tenth of a second at the start, and a whole run at 130 % of what the machine can do."""
    measures, clock = iter([5e9, 4e9, 15e9, 9e9]), [0.0]

    def measure(dtype: torch.dtype) -> float:
        clock[0] += 7.0
        return next(measures)

    monkeypatch.setattr(meter, "_peaks", {})
    monkeypatch.setattr(meter, "measure_peak", measure)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = StepResult(1.0, 10, 1000, 1.0, False, False, None)
    shares, rates = [], []
    with Meter("", 4, 0, flops_per_token=10**7, show=False) as one:
        for step in range(1, 5):
            clock[0] += 1.0
            one.count(step, result)
            row = one.row(step, result)
            shares.append(row["mfu"])
            rates.append(row["tokens_per_second"])
    assert shares == pytest.approx([2.0, 10 / 15, 10 / 15, 10 / 15])
    assert rates == pytest.approx([1000] * 4), "a measure is no part of a step"
    assert next(measures) == 9e9


def test_the_first_measure_of_a_peak_is_no_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def measure(dtype: torch.dtype) -> float:
        clock[0] += 7.0
        return 5e9

    monkeypatch.setattr(meter, "_peaks", {})
    monkeypatch.setattr(meter, "measure_peak", measure)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: clock[0])
    with Meter("", 2, 0, flops_per_token=10, show=False) as one:
        for step in (1, 2):
            clock[0] += 1.0
            one.count(step, StepResult(1.0, 10, 1000, 1.0, False, False, None))
            assert one.row(step, StepResult(1.0, 10, 1000, 1.0, False, False, None))["tokens_per_second"] == 1000


def test_a_measured_peak_leaves_the_random_numbers_alone() -> None:
    states = [torch.get_rng_state, *([torch.cuda.get_rng_state] if torch.cuda.is_available() else [])]
    before = [state() for state in states]
    assert meter.measure_peak(torch.float32) > 0
    assert all(torch.equal(state(), was) for state, was in zip(states, before, strict=True))


def test_a_compiled_run_learns_the_same_and_is_saved_under_the_same_names(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: a compiled module's weights are saved under a wrapper's names, and nothing else can load them."""
    compiled: list[object] = []
    real = torch.compile

    def without_a_compiler(function: object) -> object:
        compiled.append(function)
        return real(function, backend="eager")  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    settings = PRETRAIN.model_copy(update={"dtype": "float32"})
    pretrain(settings, MODEL, tokens, 1, tmp_path / "plain")
    assert not compiled
    pretrain(settings.model_copy(update={"compile": True}), MODEL, tokens, 1, tmp_path / "compiled")
    assert len(compiled) == 1
    plain, other = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("plain", "compiled"))
    assert plain.keys() == other.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-4)
    (saved,) = checkpoints(tmp_path / "compiled" / "checkpoints")
    assert load_model(saved)[0].state_dict().keys() == plain.keys()


def test_held_out_text_is_read_in_parts_as_small_as_a_steps(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bugs: validation of whole batches, which takes more memory than all of training; rows lost between parts."""
    before, found, seen = torch.get_num_threads(), {}, []

    def counted(model: Transformer, batch: Batch, document_attention: bool) -> torch.Tensor:
        seen.append(len(batch.inputs_BT))
        return summed_loss(model, batch, document_attention)

    monkeypatch.setattr("talaria.train.session.summed_loss", counted)
    for threads, most in ((1, 1 << 40), (1, 1), (2, 1)):
        monkeypatch.setattr("talaria.train.cores.MAX_ACTIVATION_BYTES", most)
        torch.set_num_threads(threads)
        seen.clear()
        try:
            folder = tmp_path / f"{threads}-{most}"
            pretrain(PRETRAIN.model_copy(update={"optimizer": STILL}), MODEL, tokens, 1, folder)
        finally:
            torch.set_num_threads(before)
        found[threads, most] = read_metrics(folder / "metrics.jsonl")[-1]["validation_loss"]
        assert max(seen) == (4 if most > 1 else 1)
    whole = found[1, 1 << 40]
    assert found == {key: pytest.approx(whole, rel=1e-6) for key in found}


def test_without_held_out_text_training_ends_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bug: the validation of the last step fails, after all of the training, and again at each resume."""
    folder = write_tokens(tmp_path / "tokens", 0.0)
    pretrain(PRETRAIN, MODEL, folder, 1, tmp_path / "pretrain")
    assert (tmp_path / "pretrain" / "model" / "model.safetensors").exists()
    assert not any("validation_loss" in row for row in read_metrics(tmp_path / "pretrain" / "metrics.jsonl"))
    assert "no validation" in capsys.readouterr().err


def test_conversations_beyond_the_context_are_left_out_before_some_are_held_out(base: Path, tmp_path: Path) -> None:
    """The bug: held-out conversations all too long, so that there is nothing to validate on."""
    long = conversations(tmp_path / "long.jsonl", n=40, question=WORDS * 3)
    short = conversations(tmp_path / "short.jsonl", n=5)
    sft(SFT, base / "model", long + short, None, 1, tmp_path / "sft")
    record = training(tmp_path / "sft")
    assert (record["conversations"], record["conversations_held_out"]) == (4, 1)
    assert record["conversations_dropped"] == 40
    with pytest.raises(UserError, match=r"0 of 40 conversations .* context of 16 .*longer sft.context"):
        sft(SFT, base / "model", long, None, 1, tmp_path / "none")


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_replay_takes_at_least_one_row_and_leaves_one(
    share: float, expected: int, base: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bugs: a small share rounded to none without a word; a large one leaves no row to conversations."""
    rows: list[int] = []
    batches = __import__("talaria.train.sft", fromlist=["PackedBatches"]).PackedBatches
    monkeypatch.setattr(
        "talaria.train.sft.PackedBatches", lambda *arguments: rows.append(arguments[2]) or batches(*arguments)
    )
    settings = SFT.model_copy(update={"replay_share": share})
    sft(settings, base / "model", conversations(tmp_path / "c.jsonl"), tokens / "shards", 1, tmp_path / "sft")
    assert rows == [expected]


def test_replay_that_cannot_be_is_refused(base: Path, tokens: Path, tmp_path: Path) -> None:
    files = conversations(tmp_path / "c.jsonl")
    settings = SFT.model_copy(update={"replay_share": 0.2, "batch_tokens": 16})
    with pytest.raises(UserError, match=r"two rows a batch.*sft.batch_tokens to 32"):
        sft(settings, base / "model", files, tokens / "shards", 1, tmp_path / "sft")
    with pytest.raises(UserError, match="pretraining text of this run"):
        sft(settings, base / "model", files, None, 1, tmp_path / "sft")


def test_the_newest_checkpoint_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    """The bug: names sorted as text, by which step 1,000,000 comes before step 999,999."""
    for step in (999_999, 1_000_000, 5):
        (tmp_path / f"step-{step:06d}").mkdir()
    (tmp_path / ".step-000009.77.tmp").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000005", "step-999999", "step-1000000"]


def test_a_killed_saves_leftovers_go_with_the_next_save(tokens: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "pretrain" / "checkpoints" / ".step-000003.77.tmp"
    leftover.mkdir(parents=True)
    pretrain(PRETRAIN, MODEL, tokens, 1, tmp_path / "pretrain")
    assert not leftover.exists()


def test_a_file_that_cannot_be_written_is_an_error_of_the_system_that_names_it(tmp_path: Path) -> None:
    """The bug: safetensors' own error, which no caller knows, ends in a traceback instead of one line.

    A limit on a file's size stands for a full disk: the kernel refuses the write in the same way.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "model.safetensors"))) as caught:
            save_tensors({"weight": torch.zeros(10_000)}, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "text", "user", "assistant"),
    [
        ("bpe", "User: hello\nAssistant: hi\n", ["User:"], ["Assistant:"]),
        (
            "bpe",
            "User: hello\nAssistant: hi\n用户：你好\n助手：你也好\n",
            ["User:", "用户："],
            ["Assistant:", "助手："],
        ),
        ("character", "User: hello\n", ["User:"], []),
    ],
)
def test_fine_tuning_begins_with_control_tokens_told_apart(
    tied: bool, kind: Literal["bpe", "character"], text: str, user: list[str], assistant: list[str]
) -> None:
    """The bug: pretraining never shows them, so user, assistant and end of turn began as one and the same vector.
    Words that the text's vocabulary does not have are left out, and a token without any stays as it was."""
    tokenizer = Tokenizer.train([text] * 20, TokenizerSettings(kind=kind, vocab_size=400))
    settings = MODEL.model_copy(update={"tie_embeddings": tied})
    model = Transformer(resolve_shape(settings, tokenizer.vocab_size), torch.Generator().manual_seed(0))
    tables = [model.embed.weight, model.head_weight()]
    before = [table.detach().clone() for table in tables]
    name_control_tokens(model, tokenizer)
    ids = tokenizer.special_ids
    for table, old in zip(tables, before, strict=True):
        expected = old.clone()
        for token, words in (("<|user|>", user), ("<|assistant|>", assistant)):
            if words:
                expected[ids[token]] = old[[id for word in words for id in tokenizer.encode(word)]].mean(dim=0)
        expected[ids["<|end|>"]] = old[ids["<|endoftext|>"]]
        assert torch.equal(table, expected)


@pytest.mark.parametrize(("given", "named"), [(None, 1), ("elsewhere", 0)])
def test_only_a_model_of_this_run_has_its_control_tokens_named(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, named: int
) -> None:
    """A model tuned elsewhere knows its own control tokens."""
    calls: list[object] = []
    monkeypatch.setattr("talaria.train.sft.name_control_tokens", lambda *arguments: calls.append(arguments))
    settings = SFT.model_copy(update={"base": given})
    sft(settings, base / "model", conversations(tmp_path / "c.jsonl"), None, 1, tmp_path / "sft")
    assert len(calls) == named
