"""Many clients stream from a real server, some vanish: is every answer its own and whole, and does memory stay?

    python bench/load.py runs/laptop [--minutes 10] [--streams 64] [--vanish 0.2] [--json load.json]

Without a run a tiny model of random weights is made. Every prompt's greedy answer is computed before, alone and in this
process; then the streams ask the server, prompt after prompt, each in an order of its own. A finished answer must be
that text. In fp32 it may part from it where the two best logits are closer than 1e-4; such places are listed. A share
of the requests closes the socket in the middle of its stream. Memory is the server's resident set, sampled each second;
a line is fitted behind the warm-up, the first quarter. Times are the client's, which shares the server's machine.

Prints a table, writes JSON, and ends with status 1 where an answer is wrong, lost or mixed up, where the queue or the
cache's blocks are not back to 0, or where memory grows: by more than 2 % of itself over the fitted time, with a slope
whose 95 % interval lies above 0. A fit over less than half a minute judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import talaria
from talaria.infer.engine import Engine
from talaria.model.checkpoint import save_model
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.serve.keys import make_key
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
NEAR_TIE = 1e-4  # natural log: the difference of two log-probabilities is that of the logits
LONGEST_ANSWER = 96
PATIENCE_SECONDS = 120
SYSTEM = "You answer briefly and say so when you do not know. 请简短回答。"
OPENINGS = ["Tell me about", "Where is", "What do you know of", "Count up to", "你知道", "请说说"]
THINGS = ["the harbour", "old bridges", "a lamp", "seven ferries", "rain in March", "苹果", "一座桥", "the clerk"]


@dataclass(frozen=True)
class Expected:
    """A prompt's greedy answer: its text, where in it each token's part ends, each token's lead on the next best."""

    messages: list[dict[str, str]]
    max_tokens: int
    text: str
    ends: list[int]
    leads: list[float]

    def parts_at_a_near_tie(self, text: str) -> int | None:
        """The token at which `text` may have parted from the answer, or None: it parts where no other was near.

        A character that several tokens make shows only with the last of them, so up to three tokens before count too.
        """
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, self.text, strict=False)))
        token = next((i for i, end in enumerate(self.ends) if end > same), len(self.ends) - 1)
        return next((i for i in range(max(0, token - 3), token + 1) if self.leads[i] < NEAR_TIE), None)


@dataclass
class Tally:
    """What the clients saw."""

    finished: int = 0
    vanished: int = 0
    wrong: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    near_ties: dict[str, int] = field(default_factory=dict)
    first_token_seconds: list[float] = field(default_factory=list)
    between_seconds: list[float] = field(default_factory=list)

    def judge(self, text: str, prompt: int, expected: list[Expected]) -> None:
        """Count an answer that ended well."""
        self.finished += 1
        own = expected[prompt]
        if text == own.text:
            return
        if (token := own.parts_at_a_near_tie(text)) is not None:
            place = f"prompt {prompt}, token {token}, lead {own.leads[token]:.1e}"
            self.near_ties[place] = self.near_ties.get(place, 0) + 1
            return
        strange = [piece for start in range(len(text) - 7) if (piece := text[start : start + 8]) not in own.text]
        foreign = any(piece in other.text for piece in strange for other in expected)
        told = f"prompt {prompt}: {text[:60]!r} in place of {own.text[:60]!r}"
        (self.mixed if foreign else self.wrong).append(told)


def random_run(folder: Path) -> Path:
    """A model whose every parameter is random, so that every prompt has an answer of its own."""
    tokenizer = Tokenizer.train(
        [f"{SYSTEM} {' '.join(OPENINGS + THINGS)} 0123456789 " * 20], TokenizerSettings(vocab_size=512)
    )
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=2, d_model=64, n_heads=4, context=512)
    generator = torch.Generator().manual_seed(0)
    model = Transformer(shape, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    save_model(model, tokenizer, folder)
    return folder


def expected_answers(engine: Engine, n: int) -> list[Expected]:
    """Greedy answers of n prompts, each computed alone and nothing kept from the one before; all of them differ."""
    found: dict[str, Expected] = {}
    draw = random.Random(0)
    for number in range(20 * n):
        question = f"{draw.choice(OPENINGS)} {draw.choice(THINGS)} {number}?"
        messages = [{"role": "user", "content": question}]
        if draw.random() < 0.5:
            messages.insert(0, {"role": "system", "content": SYSTEM})
        max_tokens = draw.randrange(LONGEST_ANSWER // 3, LONGEST_ANSWER)
        chunks = list(engine.stream_chat(messages, max_tokens=max_tokens, temperature=0, top_logprobs=2))
        text = "".join(chunk.text for chunk in chunks)
        leads = [best[1] - next_best[1] for chunk in chunks for best, next_best in chunk.top_log_probs]
        ends = list(itertools.accumulate(len(chunk.text) for chunk in chunks))
        if len(text) >= 8:
            found.setdefault(text, Expected(messages, max_tokens, text, ends, leads))
        if len(found) == n:
            return list(found.values())
    raise SystemExit(f"only {len(found)} of {n} prompts have answers of their own; give another model")


class Server:
    """`talaria serve` in a process of its own, with a key."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.key = make_key(folder / "keys.json", "load")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        limits = ["requests_per_minute=100000000", "feedback=none", "waiting=1024"]
        self.log = open(folder / "server.log", "w")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "talaria", "serve", f"load={run}", "--port", str(self.port)),
                *("--keys", str(folder / "keys.json")),
                *(part for limit in limits for part in ("--set", limit)),
            ],
            stdout=self.log,
            stderr=self.log,
        )
        deadline = time.monotonic() + 300
        while "talaria" not in self.get("/metrics"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not start:\n{(folder / 'server.log').read_text()}")
            time.sleep(0.1)

    def get(self, path: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    def gauges(self) -> dict[str, int]:
        """Answers running and waiting, and blocks that they hold."""
        rows = (row.split() for row in self.get("/metrics").splitlines() if 'model="load"' in row)
        wanted = ("talaria_answers_running", "talaria_answers_waiting", "talaria_cache_blocks")
        return {name.partition("{")[0]: int(value) for name, value in rows if name.startswith(wanted)}

    def memory_mib(self) -> float:
        rows = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(row.split()[1] for row in rows if row.startswith("VmRSS"))) / 1024


@contextmanager
def serving(run: Path, folder: Path) -> Iterator[Server]:
    server = Server(run, folder)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)
        server.log.close()


async def events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any] | None]:
    """The events of a chunked response, None for the last; ends early where the connection does."""
    kept = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        kept += (await reader.readexactly(size + 2))[:-2]
        *whole, kept = kept.split(b"\n\n")
        for event in whole:
            data = event.removeprefix(b"data: ")
            yield None if data == b"[DONE]" else json.loads(data)


async def one_stream(
    server: Server, expected: list[Expected], draw: random.Random, vanish: float, tally: Tally
) -> None:
    """Ask one prompt; read to the end, or close the socket after a few pieces."""
    prompt = draw.randrange(len(expected))
    asked = expected[prompt]
    # In the middle: each piece holds a token or more, so the answer has not ended.
    leave_after = draw.randrange(1, max(2, len(asked.ends) // 2)) if draw.random() < vanish else None
    body = json.dumps(
        {"model": "load", "messages": asked.messages, "max_tokens": asked.max_tokens, "temperature": 0, "stream": True}
    ).encode()
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        status = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        if status != b"200":
            tally.lost.append(f"prompt {prompt}: status {status.decode()}")
            return
        text, newest, n_pieces = "", begun, 0
        async for event in events(reader):
            if event is None:
                tally.judge(text, prompt, expected)
                return
            if "error" in event:
                tally.lost.append(f"prompt {prompt}: {event['error']['message']}")
                return
            if piece := event["choices"][0]["delta"].get("content"):
                now = time.monotonic()
                (tally.between_seconds if n_pieces else tally.first_token_seconds).append(now - newest)
                text, newest, n_pieces = text + piece, now, n_pieces + 1
            if n_pieces == leave_after:
                writer.transport.abort()
                tally.vanished += 1
                return
        tally.lost.append(f"prompt {prompt}: the stream ended before the answer did")
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        tally.lost.append(f"prompt {prompt}: {error}")
    finally:
        writer.close()


async def load(
    server: Server, expected: list[Expected], streams: int, seconds: float, vanish: float
) -> tuple[Tally, Any]:
    """Keep `streams` streams going for `seconds`; returns what they saw, and (seconds, MiB) samples of memory."""
    tally, begun = Tally(), time.monotonic()
    memory: list[tuple[float, float]] = []

    async def client(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() - begun < seconds:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await one_stream(server, expected, draw, vanish, tally)
            except TimeoutError:
                tally.lost.append(f"no end after {PATIENCE_SECONDS} s")
            except ConnectionError as error:
                tally.lost.append(f"no connection: {error}")
                await asyncio.sleep(0.1)

    async def sample() -> None:
        while True:
            memory.append((time.monotonic() - begun, server.memory_mib()))
            await asyncio.sleep(min(1.0, seconds / 60))

    sampling = asyncio.create_task(sample())
    await asyncio.gather(*(client(seed) for seed in range(streams)))
    sampling.cancel()
    return tally, memory


def growth(memory: list[tuple[float, float]], warm_up: float) -> dict[str, Any]:
    """A least-squares line through memory behind the warm-up. Its interval takes samples as independent, which makes it
    narrow; so growth is told only where it is also more than 2 %."""
    times, mib = np.array([sample for sample in memory if sample[0] >= warm_up]).T
    slope, start = np.polyfit(times, mib, 1)
    spread = float(np.sqrt(((mib - start - slope * times) ** 2).sum() / max(1, len(mib) - 2)))
    error = 1.96 * spread / float(np.sqrt(((times - times.mean()) ** 2).sum()))
    grown = float(slope * (times[-1] - times[0]))
    return {
        "warm_up_seconds": warm_up,
        "after_warm_up_mib": float(mib[0]),
        "end_mib": float(mib[-1]),
        "slope_mib_per_minute": 60 * float(slope),
        "slope_95_percent": 60 * error,
        "grown_mib": grown,
        "grows": bool(times[-1] - times[0] >= 30 and slope > error and grown > 0.02 * mib[0]),
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    if not seconds:
        return {"p50_ms": float("nan"), "p99_ms": float("nan")}
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50_ms": 1000 * float(p50), "p99_ms": 1000 * float(p99)}


def settled(server: Server, seconds: float = 30) -> dict[str, int]:
    """The gauges once they are 0, or as they are after a while."""
    deadline = time.monotonic() + seconds
    while any((gauges := server.gauges()).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return gauges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run or a model folder; else a random model is made")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--vanish", type=float, default=0.2, help="share of the requests that leave midway")
    parser.add_argument("--json", type=Path, default=Path("load.json"))
    given = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = given.run or random_run(folder / "model")
        expected = expected_answers(talaria.load(run), given.prompts)
        with serving(run, folder) as server:
            seconds = 60 * given.minutes
            tally, memory = asyncio.run(load(server, expected, given.streams, seconds, given.vanish))
            gauges = settled(server)
            grown = growth(memory, warm_up=seconds / 4)
    bad = {name: len(getattr(tally, name)) for name in ("wrong", "mixed", "lost")}
    result = {
        "run": str(given.run or "random weights"),
        "minutes": given.minutes,
        "streams": given.streams,
        "cores": os.cpu_count(),
        "finished": tally.finished,
        "vanished": tally.vanished,
        **bad,
        "near_ties": tally.near_ties,
        "examples": [*tally.wrong[:5], *tally.mixed[:5], *tally.lost[:5]],
        "first_token": quantiles(tally.first_token_seconds),
        "between_tokens": quantiles(tally.between_seconds),
        "memory": grown,
        "at_the_end": gauges,
    }
    given.json.write_text(json.dumps(result | {"memory_samples": memory}, indent=1) + "\n")
    table = Table(show_header=False)
    for label, value in rows(result):
        table.add_row(label, Text(value))  # a model's words are no markup
    console.print(table)
    sys.exit(any(bad.values()) or any(gauges.values()) or not gauges or not tally.finished or grown["grows"])


def rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "streams, minutes", f"{result['streams']}, {result['minutes']:g}"
    yield "answers finished, clients vanished", f"{result['finished']:,}, {result['vanished']:,}"
    yield "wrong, mixed up, lost", f"{result['wrong']}, {result['mixed']}, {result['lost']}"
    for example in result["examples"]:
        yield "", example
    yield "parted at a near tie", str(sum(result["near_ties"].values()))
    for place, count in result["near_ties"].items():
        yield "", f"{place}: {count}"
    for name in ("first_token", "between_tokens"):
        times = result[name]
        yield name.replace("_", " ") + ", p50 and p99", f"{times['p50_ms']:.1f} ms, {times['p99_ms']:.1f} ms"
    memory = result["memory"]
    yield (
        f"memory after {memory['warm_up_seconds']:.0f} s, at the end",
        f"{memory['after_warm_up_mib']:.1f} MiB, {memory['end_mib']:.1f} MiB",
    )
    slope, error = memory["slope_mib_per_minute"], memory["slope_95_percent"]
    yield "slope of memory", f"{slope:+.3f} ± {error:.3f} MiB a minute{' GROWS' if memory['grows'] else ''}"
    gauges = result["at_the_end"]
    yield "running, waiting, blocks at the end", ", ".join(map(str, gauges.values())) or "the server does not answer"


if __name__ == "__main__":
    main()
