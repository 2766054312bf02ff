"""Character-level Shakespeare against nanoGPT, whole processes in turns: wall time and the same validation measure.

    python bench/shakespeare.py --text tinyshakespeare.txt --peer nanoGPT_checkout --pairs 5

Both train on the first 90 % of the characters. Measure: mean cross-entropy a character (nats) over the whole last 10 %,
in windows of 64, context at most 64. The peer is its documented CPU setting with 4 layers, 4 heads, width 128, context
64, batch 12, 2000 iterations, no dropout. Each pair uses a fresh seed; the first side alternates.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PEER = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]
# Scores the peer's checkpoint with the peer's own model code.
SCORE_PEER = """
import sys, torch, numpy as np
sys.path.insert(0, sys.argv[1])
from model import GPT, GPTConfig
saved = torch.load(sys.argv[2], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])); model.load_state_dict(saved["model"]); model.eval()
text = torch.from_numpy(np.fromfile(sys.argv[3], dtype=np.uint16).astype(np.int64))
total = count = 0
with torch.no_grad():
    for start in range(0, len(text) - 1, 64):
        stop = min(start + 64, len(text) - 1)
        logits, _ = model(text[None, start:stop], text[None, start + 1 : stop + 1])
        total += float(torch.nn.functional.cross_entropy(logits[0], text[start + 1 : stop + 1], reduction="sum"))
        count += stop - start
print(total / count)
"""


def run_ours(text: Path, seed: int, overrides: list[str]) -> tuple[float, float, int]:
    """Seconds, validation loss, parameters."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "talaria", "run", str(ROOT / "recipes" / "shakespeare.toml")]
        command += [f"corpus.paths=[{text}]", f"run.seed={seed}", f"run.folder={folder}", *overrides]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        stage = Path(folder) / "shakespeare" / "pretrain"
        rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        loss = [row["validation_loss"] for row in rows if "validation_loss" in row][-1]
        return seconds, loss, json.loads((stage / "training.json").read_text())["params"]


def run_peer(peer: Path, text: Path, seed: int) -> tuple[float, float]:
    """Seconds of its training process, validation loss of its best checkpoint."""
    data = peer / "data" / "shakespeare_char"
    shutil.copyfile(text, data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
    source = (peer / "train.py").read_text()
    seeded = peer / "train_seeded.py"
    seeded.write_text(source.replace("torch.manual_seed(1337 + seed_offset)", f"torch.manual_seed({seed})"))
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        command = [sys.executable, seeded.name, *PEER, f"--out_dir={out}"]
        subprocess.run(command, cwd=peer, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(peer)})
        seconds = time.perf_counter() - start
        score = [sys.executable, "-c", SCORE_PEER, str(peer), f"{out}/ckpt.pt", str(data / "val.bin")]
        return seconds, float(subprocess.run(score, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--peer", type=Path, help="a nanoGPT checkout; without it only ours is run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=100, help="first seed")
    parser.add_argument("overrides", nargs="*", help="recipe overrides, key=value")
    options = parser.parse_args()
    ours: list[tuple[float, float, int]] = []
    peers: list[tuple[float, float]] = []
    for pair in range(options.pairs):
        seed = options.seed + pair
        if options.peer and pair % 2:
            peers.append(run_peer(options.peer.resolve(), options.text.resolve(), seed))
        ours.append(run_ours(options.text.resolve(), seed, options.overrides))
        if options.peer and not pair % 2:
            peers.append(run_peer(options.peer.resolve(), options.text.resolve(), seed))
        line = f"seed {seed}  ours {ours[-1][0]:6.2f} s  loss {ours[-1][1]:.4f}"
        print(line + (f"  peer {peers[-1][0]:6.1f} s  loss {peers[-1][1]:.4f}" if peers else ""), flush=True)
    print(f"ours: {ours[0][2]:,} parameters, median {statistics.median(o[0] for o in ours):.2f} s, ", end="")
    losses = [o[1] for o in ours]
    print(f"loss median {statistics.median(losses):.4f} (worst {max(losses):.4f})")
    if peers:
        ratios = [o[0] / p[0] for o, p in zip(ours, peers, strict=True)]
        print(f"peer: median {statistics.median(p[0] for p in peers):.1f} s, ", end="")
        print(f"loss median {statistics.median(p[1] for p in peers):.4f}")
        print(f"wall time ours / peer: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
