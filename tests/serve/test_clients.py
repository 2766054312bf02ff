"""Clients that leave, read slowly or come in crowds, and what that costs the others: nothing."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from serve.tiny_server import BODIES, CHAT, EMBED, Slow, drive
from talaria.errors import UserError
from talaria.infer.contract import Chunk, Sampling
from talaria.serve.worker import Overloaded, Stopped, Worker

LONG = json.dumps(BODIES[CHAT] | {"max_tokens": 40}).encode()
LONG_STREAM = json.dumps(BODIES[CHAT] | {"max_tokens": 40, "stream": True}).encode()


async def quietly(_message: dict[str, Any]) -> None:
    await asyncio.sleep(0)


async def until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("body", [LONG, LONG_STREAM], ids=["whole", "stream"])
def test_a_client_that_goes_away_ends_its_answer_and_frees_the_engine(served, engine, body):
    """The application is driven by hand: the client leaves after the first tokens, the engine must stop early."""
    slow = Slow(engine, 0.01)
    server = served({"tiny": slow}, running=1, waiting=0)
    full = len(engine.chat(BODIES[CHAT]["messages"], max_tokens=40, seed=3).token_ids)
    assert full > 10

    async def leave_then_ask_again() -> None:
        async def leave() -> dict[str, Any]:
            await until(lambda: slow.n_steps >= 2)
            return {"type": "http.disconnect"}

        await drive(server.app, body, server.key, leave, quietly)
        await asyncio.sleep(0.05)
        assert 2 <= slow.n_steps <= 5
        async with server.client() as client:
            assert (await client.post(CHAT, json=BODIES[CHAT])).status_code == 200, "its place is still taken"
        assert server.app.state.gate.active == 0

    server.run(leave_then_ask_again())


def test_a_client_that_leaves_while_it_waits_leaves_the_line(served, engine):
    slow = Slow(engine, 0.01)
    server = served({"tiny": slow}, running=1, waiting=1)

    async def crowd() -> None:
        async with server.client() as client:
            first = asyncio.create_task(client.post(CHAT, json=BODIES[CHAT] | {"max_tokens": 40}))
            await until(lambda: slow.n_steps > 0)

            async def leave() -> dict[str, Any]:
                await asyncio.sleep(0.03)
                return {"type": "http.disconnect"}

            await drive(server.app, LONG, server.key, leave, quietly)
            assert not first.done(), "the test needs the first to be under way"
            assert (await client.post(CHAT, json=BODIES[CHAT])).status_code == 200
            assert (await first).status_code == 200

    server.run(crowd())


async def stay() -> dict[str, Any]:
    """A client that stays on the line and says nothing more."""
    await asyncio.sleep(3600)
    raise AssertionError


class ReadsNothing:
    """A client whose connection takes the first piece of a stream and nothing more."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    async def __call__(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)


def test_a_client_that_reads_nothing_does_not_stall_another(served, engine):
    """There is one place, and the answer that nobody reads leaves it when it is made, not when it is read."""
    server = served(running=1, stalled_seconds=20)
    stuck = ReadsNothing()

    async def both() -> None:
        reader = asyncio.create_task(drive(server.app, LONG_STREAM, server.key, stay, stuck))
        await until(lambda: len(stuck.sent) == 2)
        async with server.client() as client:
            for _ in range(3):
                assert (await client.post(CHAT, json=BODIES[CHAT])).status_code == 200
        assert not reader.done(), "the others waited until the one that reads nothing was dropped"
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert server.app.state.gate.active == 0

    server.run(both())


def test_a_client_that_reads_nothing_is_dropped_and_its_answer_ends(served, engine):
    slow = Slow(engine, 0.05)
    server = served({"tiny": slow}, stalled_seconds=0.3)
    stuck = ReadsNothing()
    full = len(engine.chat(BODIES[CHAT]["messages"], max_tokens=40, seed=3).token_ids)

    async def wait() -> None:
        await drive(server.app, LONG_STREAM, server.key, stay, stuck)
        n_steps = slow.n_steps
        await asyncio.sleep(0.2)
        assert 1 <= slow.n_steps <= n_steps + 1 < full, "the answer went on for nobody"
        assert len(stuck.sent) == 2 and server.app.state.gate.active == 0

    server.run(wait())


def test_a_crowd_gets_its_own_answers_each(served, engine):
    server = served(running=4)
    questions = [[{"role": "user", "content": f"hello {i}"}] for i in range(24)]
    expected = [engine.chat(question, max_tokens=8, seed=i).text for i, question in enumerate(questions)]
    assert len(set(expected)) > 20

    async def crowd() -> list[str]:
        async with server.client() as client:
            asked = [
                client.post(CHAT, json=BODIES[CHAT] | {"messages": question, "max_tokens": 8, "seed": i})
                for i, question in enumerate(questions)
            ]
            responses = await asyncio.gather(*asked, client.post(EMBED, json=BODIES[EMBED]))
        return [response.json()["choices"][0]["message"]["content"] for response in responses[:-1]]

    assert server.run(crowd()) == expected


def test_an_engine_that_fails_ends_what_it_ran_and_not_the_server(served, engine, caplog):
    class Broken(Slow):
        def step(self) -> list[tuple[int, Chunk]]:
            chunks = super().step()
            if any(request.max_tokens == 13 and request.n_generated > 1 for request in engine._requests.values()):
                raise RuntimeError("kernel panic")
            return chunks

    server = served({"tiny": Broken(engine, 0)})
    response = server.post(CHAT, max_tokens=13)
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    assert "kernel panic" not in response.text and "kernel panic" in caplog.text
    last = server.post(CHAT, max_tokens=13, stream=True).text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert server.post(CHAT).status_code == 200


# -------------------------------------------------------------------------------------- the worker


def test_a_short_answer_does_not_wait_for_a_long_one(engine):
    worker = Worker(engine, max_running=2)  # type: ignore[arg-type]
    prompt = engine.chat_prompt(BODIES[CHAT]["messages"])
    order: list[str] = []

    async def read(name: str, n_tokens: int) -> list[Chunk]:
        chunks = [chunk async for chunk in worker.submit(prompt, Sampling(max_tokens=n_tokens), 3)]
        order.append(name)
        return chunks

    async def both() -> None:
        long, short = await asyncio.gather(read("long", 40), read("short", 3))
        assert len(long) > 10 and "".join(c.text for c in long).startswith("".join(c.text for c in short)[:1])

    asyncio.run(both())
    worker.stop()
    assert order == ["short", "long"]


def test_answers_share_the_steps_of_the_engine_and_join_in_the_middle(engine):
    questions = [engine.chat_prompt([{"role": "user", "content": f"hello {i}"}]) for i in range(8)]
    expected = engine.generate(questions, max_tokens=20, seed=list(range(8)))
    slow = Slow(engine, 0.01)
    worker = Worker(slow, max_running=8)  # type: ignore[arg-type]

    async def read(i: int, texts: dict[int, str]) -> None:
        if i >= 4:
            await until(lambda: slow.n_steps >= 5)
        async for chunk in worker.submit(questions[i], Sampling(max_tokens=20), i):
            texts[i] = texts.get(i, "") + chunk.text

    async def all_of_them() -> dict[int, str]:
        texts: dict[int, str] = {}
        await asyncio.gather(*(read(i, texts) for i in range(8)))
        return texts

    texts = asyncio.run(all_of_them())
    worker.stop()
    assert [texts[i] for i in range(8)] == [completion.text for completion in expected]
    longest = max(len(completion.token_ids) for completion in expected)
    assert slow.n_steps <= 5 + 3 + longest < sum(len(completion.token_ids) for completion in expected) / 2


def test_a_prompt_that_the_engine_refuses_ends_alone_and_a_closed_answer_frees_its_blocks(engine):
    worker = Worker(Slow(engine, 0.01))  # type: ignore[arg-type]
    prompt = engine.chat_prompt(BODIES[CHAT]["messages"])
    scheduler = engine._scheduler

    async def ask() -> list[Chunk]:
        good = worker.submit(prompt, Sampling(max_tokens=40), 3)
        closed = worker.submit(prompt, Sampling(max_tokens=40), 4)
        bad = worker.submit([10**9], Sampling(max_tokens=40), 3)
        with pytest.raises(UserError, match="token ids must lie"):
            await anext(bad)
        chunks = [await anext(good)]
        await anext(closed)
        await closed.aclose()
        await until(lambda: len(scheduler.rows) == 1, 1)
        chunks += [chunk async for chunk in good]
        return chunks

    assert (
        "".join(chunk.text for chunk in asyncio.run(ask())) == engine.generate([prompt], max_tokens=40, seed=3)[0].text
    )
    worker.stop()
    assert not engine.busy and scheduler.n_free_blocks == scheduler.memory.n_blocks


def test_stopping_finishes_what_streams_within_its_time_and_ends_the_rest(engine):
    prompt = engine.chat_prompt(BODIES[CHAT]["messages"])

    async def stop_midway(seconds: float) -> tuple[list[Chunk], Exception | None]:
        worker = Worker(Slow(engine, 0.01), max_running=1, max_waiting=0)  # type: ignore[arg-type]
        answer, chunks = worker.submit(prompt, Sampling(max_tokens=30), 3), []
        with pytest.raises(Overloaded):
            worker.submit(prompt, Sampling(), None)
        stopping = asyncio.create_task(asyncio.to_thread(worker.stop, seconds))
        await asyncio.sleep(0.03)
        with pytest.raises(Stopped):
            worker.submit(prompt, Sampling(), None)
        try:
            async for chunk in answer:
                chunks.append(chunk)
        except Stopped as error:
            return chunks, error
        finally:
            await stopping
        return chunks, None

    chunks, error = asyncio.run(stop_midway(10))
    assert error is None and chunks[-1].finish_reason is not None
    cut, error = asyncio.run(stop_midway(0.06))
    assert error is not None and 0 < len(cut) < len(chunks)


def test_closing_an_answer_that_was_never_read_frees_its_place(engine):
    worker = Worker(Slow(engine, 0.01), max_running=1, max_waiting=0)  # type: ignore[arg-type]
    prompt = engine.chat_prompt(BODIES[CHAT]["messages"])

    async def close_and_ask() -> None:
        for _ in range(3):
            await worker.submit(prompt, Sampling(max_tokens=40), 3).aclose()
            await until(lambda: worker.n_running + worker.n_waiting == 0, 1)

    asyncio.run(close_and_ask())
    worker.stop()
