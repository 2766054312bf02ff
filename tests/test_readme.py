"""The documentation is tested: its commands run, its names exist, both languages say the same, its output is real."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import typer.main
from command_line import talaria

from talaria.cli import app
from talaria.tokens.tokenizer import CHAT_TEMPLATE
from talaria.tokens.vocabulary import BYTE_TO_CHARACTER, SPECIAL_TOKENS

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh.md")

# What a command gets beside what the README says, so that it takes seconds: by how its line begins.
TINY_MODEL = ["model.depth=1", "model.d_model=32", "model.n_heads=2"]
TINY_TRAINING = ["pretrain.tokens=2000", "pretrain.batch_tokens=512", "sft.batch_tokens=512"]
SHRINK = {
    "talaria init": ["--minutes", "0.8"],
    "talaria run texts.toml": [*TINY_MODEL, *TINY_TRAINING, "conversations.continuations=40"],
    "talaria chat": ["--max-tokens", "4", "--seed", "1"],
}
TINY_LAPTOP = [
    *TINY_MODEL,
    *TINY_TRAINING,
    "world.entities=60",
    "tokenizer.vocab_size=600",
    "sft.limit=40",
    "sft.epochs=1",
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> list[str]:
    """Commands of the ```sh blocks, comments left out."""
    lines = (line.partition("#")[0].strip() for block in blocks(text, "sh") for line in block.splitlines())
    return [line for line in lines if line]


def indented_lines(text: str) -> list[str]:
    """Commands of the indented blocks, comments left out."""
    without_fences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line.partition("#")[0].strip() for line in without_fences.splitlines() if line.startswith("    ")]


def code(text: str) -> list[str]:
    """Everything that a reader could type: lines of blocks, and `spans` in a sentence."""
    return [*shell_lines(text), *indented_lines(text), *re.findall(r"`([^`\n]+)`", text)]


# ------------------------------------------------------------------------------------- names exist


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md"])
def test_every_make_target_exists(name: str) -> None:
    makefile = read("Makefile")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    named = [line.split()[1:] for line in code(read(name)) if re.match(r"make [a-z]", line)]
    assert named, "no make command found: the test reads nothing"
    for target, *variables in named:
        assert target in targets
        for variable in variables:
            assert re.search(rf"^{variable.partition('=')[0]} \?=", makefile, flags=re.MULTILINE), variable


@pytest.mark.parametrize("name", READMES)
def test_the_table_of_commands_is_the_command_line(name: str) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named: set[str] = set()
    for first_cell in re.findall(r"^\| (`talaria [^|]*) \|", read(name), flags=re.MULTILINE):
        named |= {span.removeprefix("talaria ").split()[0] for span in re.findall(r"`([^`]+)`", first_cell)}
    assert named == known


@pytest.mark.parametrize(
    "name", [*READMES, "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_to_files(name: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(name))
    missing = [link for link in links if "://" not in link and not ((ROOT / name).parent / link).exists()]
    assert not missing


def test_footguns_name_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read("docs/footguns.md"))
    assert len(named) > 20
    absent = [f"{file}::{test}" for file, test in named if f"def {test}(" not in read(file)]
    assert not absent


def test_architecture_and_journey_name_files_that_exist() -> None:
    source = ROOT / "src" / "talaria"
    for page in ("docs/architecture.md", "docs/token-journey.md"):
        named = set(re.findall(r"`((?:[a-z_]+/)?[a-z_]+\.py)", read(page)))
        assert len(named) > 15
        absent = {name for name in named if not (source / name).exists() and not (ROOT / name).exists()}
        assert not absent, page


def test_both_languages_give_the_same_commands() -> None:
    english, chinese = read(READMES[0]), read(READMES[1])
    assert shell_lines(english) == shell_lines(chinese)
    assert indented_lines(english) == indented_lines(chinese)
    assert blocks(english, "python") == blocks(chinese, "python") != []


# ----------------------------------------------------------------------------------- commands run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the README takes for granted: recipes, somebody's texts, a model file, records; the working folder."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    texts = folder / "texts"
    texts.mkdir()
    story = "On day {0} the ferry brought {1} crates of oranges to the harbour, and the clerk wrote it down.\n\n"
    (texts / "log.txt").write_text("".join(story.format(i, i * 7 % 50) for i in range(200)))
    (texts / "notes.md").write_text("".join(f"# 第{i}天\n\n渡船运来了{i * 7 % 50}箱橙子。\n\n" for i in range(100)))
    rows = (
        {"text": f"The lamp of house {i} was lit at {i % 12} o'clock by Mrs. {'ABCDEFG'[i % 7]}."} for i in range(99)
    )
    (texts / "lamps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = (
        {"instruction": "Double the number.", "input": str(i), "output": f"Twice {i} is {2 * i}."} for i in range(40)
    )
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_gguf(folder / "model.gguf")
    with contextlib.chdir(folder):
        yield folder


def write_gguf(path: Path, d: int = 16, d_ff: int = 32, heads: int = 2, layers: int = 1) -> None:
    """A LLaMA of random weights with a byte vocabulary and our chat format."""
    tokens = [*SPECIAL_TOKENS, *BYTE_TO_CHARACTER.values(), "th"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(d_ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL_TOKENS) + [1] * (len(tokens) - len(SPECIAL_TOKENS)))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(len(SPECIAL_TOKENS) - 1)
    writer.add_chat_template(CHAT_TEMPLATE)
    shapes = {"token_embd": (len(tokens), d), "output_norm": (d,)}
    for layer in range(layers):
        of_layer = {
            "attn_norm": (d,),
            "ffn_norm": (d,),
            "ffn_gate": (d_ff, d),
            "ffn_up": (d_ff, d),
            "ffn_down": (d, d_ff),
        }
        of_layer |= {f"attn_{name}": (d, d) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_every_shell_line_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in shell_lines(read("README.md")) if line.startswith("talaria ")]
    assert lines
    for line in lines:
        more = next((added for start, added in SHRINK.items() if line.startswith(start)), [])
        monkeypatch.setattr(sys, "stdin", io.StringIO("Double 3.\n"))
        assert talaria(*shlex.split(line)[1:], *more) == 0, f"{line}: {capsys.readouterr().err}"
        told = capsys.readouterr()
        if line.startswith("talaria chat"):
            assert told.out.endswith("\n"), "an answer, if an empty one, ends its line"
    for output in (
        "texts.toml",
        "runs/texts/eval/results.csv",
        "models/mine/config.json",
        "runs/smollm2/sft/done.json",
    ):
        assert (folder / output).exists()


def test_the_python_block_runs_on_the_demo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's own recipe, made tiny, then the block as it stands."""
    readme = read("README.md")
    assert talaria("sft", "recipes/laptop.toml", *TINY_LAPTOP) == 0, capsys.readouterr().err
    for path in re.findall(r"`(runs/laptop/[^`]+)`", readme):
        assert (folder / path).exists(), path
    capsys.readouterr()
    [block] = blocks(readme, "python")
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("\n") >= 2, "the block prints a chat answer and a completion"


def test_the_journey_is_what_its_script_prints(tmp_path: Path) -> None:
    page = read("docs/token-journey.md")
    [script] = blocks(page, "python")
    [printed] = blocks(page, "text")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
