"""An engine in, its rates on this machine out: tokens read (prefill) and written (decode) a second.

    rates = measure_rates(load("runs/laptop"))
    print(rates_table(rates))

Prompts are random tokens and answers are not ended by a stop token, so that every repeat does the same work; no prompt
comes twice, so that nothing is found already computed.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from rich.table import Table

from talaria.errors import UserError
from talaria.infer.engine import Engine
from talaria.model.compiled import CompiledTransformer
from talaria.model.quantized import step_bytes, weight_bytes

PREFILL_TOKENS = (128, 512)
BATCHES = (1, 16)
_PROMPT_TOKENS, _ANSWER_TOKENS = 16, 32
_READ_BYTES = 1 << 28  # larger than any processor's cache


@dataclass(frozen=True)
class Rate:
    """Tokens a second over all rows together: the median of the repeats and the quartiles around it.

    `read_share`: of a decode, the bytes of weights that each step must read, as a part of what memory gives in that
    time; above 1 the weights come from the processor's cache. None for a prefill, which is bound by arithmetic.
    """

    work: str
    batch: int
    tokens: int
    median: float
    quartiles: tuple[float, float]
    read_share: float | None


@dataclass(frozen=True)
class Rates:
    """`weight_bytes` of the whole model; `read_bytes_per_second` of memory, measured on a sum; `threads` of torch."""

    params: int
    weight_bytes: int
    read_bytes_per_second: float
    threads: int
    repeats: int
    rows: list[Rate]


def measure_rates(engine: Engine, repeats: int = 5) -> Rates:
    """Prefill of one prompt and decode of one stream and of a batch, as far as the context allows.

    A decode's time is that of a whole call less that of a call for one token, so that it holds no prefill. Raises
    UserError where the context has no room for it.
    """
    endless = copy.copy(engine.tokenizer)
    endless.stop_ids = frozenset()
    engine = Engine(engine.model, endless)
    n_answer = min(_ANSWER_TOKENS, engine.context - _PROMPT_TOKENS - 1)
    if n_answer < 1:
        raise UserError(f"a context of {engine.context} tokens is too short to measure; take a model with a longer one")
    generator = torch.Generator().manual_seed(0)

    def seconds(batch: int, n_prompt: int, max_tokens: int) -> float:
        given = torch.randint(engine.tokenizer.vocab_size, (batch, n_prompt), generator=generator).tolist()
        start = time.perf_counter()
        engine.generate(given, max_tokens=max_tokens, temperature=0)
        return time.perf_counter() - start

    seconds(1, _PROMPT_TOKENS, n_answer)  # libraries prepare themselves on their first call
    model = engine.model
    read_rate = memory_read_rate(model.device)
    if isinstance(model, CompiledTransformer):
        all_bytes, read_bytes = model.weight_bytes, model.step_bytes
    else:
        all_bytes, read_bytes = weight_bytes(model), step_bytes(model)
    rows = []
    for n in PREFILL_TOKENS:
        if n < engine.context:
            rows.append(_rate("prefill", 1, n, [n / seconds(1, n, 1) for _ in range(repeats)]))
    for batch in BATCHES:
        steps = []
        for _ in range(repeats):
            first = seconds(batch, _PROMPT_TOKENS, 1)
            steps.append(n_answer / max(seconds(batch, _PROMPT_TOKENS, 1 + n_answer) - first, 1e-9))
        share = statistics.median(steps) * read_bytes / read_rate
        rows.append(_rate("decode", batch, n_answer, [batch * step for step in steps], share))
    return Rates(model.shape.n_params(), all_bytes, read_rate, torch.get_num_threads(), repeats, rows)


def memory_read_rate(device: torch.device = torch.device("cpu")) -> float:  # noqa: B008 - never changed
    """Bytes a second that a device's memory gives, a CPU's to all threads together: the best of seven sums over
    256 MiB, on a GPU of 4 GiB or a quarter of what is free."""
    size = _READ_BYTES
    if device.type == "cuda":
        size = min(16 * _READ_BYTES, torch.cuda.mem_get_info(device)[0] // 4)
    data = torch.ones(size // 4, device=device)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        float(data.sum())
        times.append(time.perf_counter() - start)
    return size / min(times)


def rates_table(rates: Rates) -> Table:
    """The rates for a person to read."""
    table = Table(
        caption=f"{rates.params:,} parameters, {rates.weight_bytes / 1e6:,.1f} MB of weights; memory reads "
        f"{rates.read_bytes_per_second / 1e9:.1f} GB/s; {rates.threads} threads; medians of {rates.repeats}"
    )
    for heading in ("", "tokens", "streams", "tokens/s", "quartiles", "of the read rate"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for row in rates.rows:
        low, high = row.quartiles
        share = "" if row.read_share is None else f"{row.read_share:.0%}" + (" (cache)" if row.read_share > 1 else "")
        table.add_row(
            row.work, str(row.tokens), str(row.batch), f"{row.median:,.0f}", f"{low:,.0f} to {high:,.0f}", share
        )
    return table


def _rate(work: str, batch: int, tokens: int, values: list[float], read_share: float | None = None) -> Rate:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Rate(work, batch, tokens, statistics.median(values), (low, high), read_share)
