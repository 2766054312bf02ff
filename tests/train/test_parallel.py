"""Two ranks and one run folder: rank 0 holds it and leads, the other joins in what trains; the weights are the same."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp
from forked import forked
from safetensors.torch import load_file

from talaria.corpus.document import Document
from talaria.model.settings import ModelSettings
from talaria.run import Stage, lock, run_stage
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import write_shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train import parallel
from talaria.train.pretrain import pretrain
from talaria.train.settings import PretrainSettings
from talaria.verify import verify

MODEL = ModelSettings(depth=1, d_model=16, n_heads=2, context=16)
SETTINGS = PretrainSettings(
    tokens=6 * 64, batch_tokens=64, noise_scale_every_steps=None, checkpoint_every_seconds=1e-9, dtype="float32"
)


def run(at: Path, tokens: Path) -> None:
    """What the command line does: rank 0 runs the stages under the lock, the others follow."""
    torch.set_num_threads(1)
    parallel.start()

    def work(folder: Path) -> None:
        pretrain(SETTINGS, MODEL, tokens, 3, folder)

    if parallel.rank():
        parallel.follow({"pretrain": work}.__getitem__)
        return
    with lock(at):
        assert run_stage(at, Stage("pretrain", SETTINGS, {}, (), parallel.led("pretrain", work)))
        assert not run_stage(at, Stage("pretrain", SETTINGS, {}, (), parallel.led("pretrain", work))), "is current"
    parallel.finish()


def one_rank(rank: int, port: int, at: str, tokens: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    run(Path(at), Path(tokens))


def test_two_ranks_make_the_stage_that_one_makes(tmp_path: Path) -> None:
    """The bugs: the second rank refused by the first one's lock; both rename the stage; one waits for ever."""
    settings, tokens = TokenizerSettings(vocab_size=300, validation_fraction=0.2), tmp_path / "tokens"
    text = "the wing of a sandal carries one word over sea and land to gods "
    tokenizer = Tokenizer.train([text] * 5, settings)
    tokenizer.save(tokens / "tokenizer")
    write_shards([Document(str(i), f"{i} {text}", "made") for i in range(40)], tokenizer, tokens / "shards", settings)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forked()
    mp.start_processes(one_rank, args=(port, str(tmp_path / "two"), str(tokens)), nprocs=2, start_method="forkserver")
    run(tmp_path / "one", tokens)
    assert verify(tmp_path / "two") == []
    one, two = (load_file(tmp_path / name / "pretrain" / "model" / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)
    costs = [json.loads((tmp_path / name / "pretrain" / "training.json").read_text()) for name in ("one", "two")]
    assert costs[0] == costs[1]
