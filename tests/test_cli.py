"""The command line as a user meets it: a mistake is one line with a next step, and an exit code; nothing is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import talaria

from talaria.errors import UsageError
from talaria.files import sha256
from talaria.preflight import check_texts
from talaria.recipe import read_recipe
from talaria.run import lock
from talaria.train.meter import Meter
from talaria.world import arithmetic

RECIPE = """
[world]
entities = 60

[corpus]

[tokenizer]
vocab_size = 600

[model]
depth = 1
d_model = 32
n_heads = 2
context = 256

[pretrain]
tokens = 2000
batch_tokens = 512

[sft]
limit = 40
epochs = 1
batch_tokens = 512
context = 128

[eval]
limit_per_task = 2
max_tokens = 8
likelihood_per_task = 1
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, raw pages to results."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(RECIPE)
    assert talaria("run", folder / "tiny.toml", f"run.folder={folder / 'runs'}") == 0
    return folder / "runs" / "tiny"


def assert_one_line(error: str, *parts: str) -> None:
    assert error.startswith("talaria: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error


# ------------------------------------------------------------------------------- without training


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["config", "tiny.toml"]], ids=["help", "run help", "config"]
)
def test_help_and_config_leave_torch_out(recipe: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from talaria.cli import app\n"
        f"try: app({arguments!r})\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_answers_at_once() -> None:
    """Processor time of the best of five, so that a loaded machine does not decide."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "talaria", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["run", "none.toml"], 2, ["none.toml", "talaria init"]),
        (["run", "tiny.toml", "pretrain.token=1"], 2, ["pretrain.token", "pretrain.tokens"]),
        (["run", "tiny.toml", "model.depth=two"], 2, ["model.depth", "'two'"]),
        (["corpus", "tiny.toml", "corpus.paths=[missing.txt]"], 1, ["missing.txt", "corpus.paths"]),
        (["chat", "nowhere"], 1, ["nowhere"]),
        (["verify", "nowhere"], 1, ["nowhere", "runs/laptop"]),
        (["compare", "nowhere", "nowhere"], 1, ["nowhere"]),
        (["import", "nowhere", "target"], 1, ["nowhere"]),
        (["init", "nowhere"], 2, ["nowhere", "folder"]),
        (["init", ".", "--minutes", "nan"], 2, ["--minutes nan", "above 0"]),
        (["init", ".", "--minutes", "0"], 2, ["--minutes 0", "above 0"]),
        (["run", "tiny.toml/x"], 2, ["tiny.toml/x", "recipe"]),
        (["run", "tiny.toml", "run.folder=tiny.toml"], 1, ["tiny.toml/tiny", "run.folder"]),
        (["run", "tiny.toml", "run.seed=-1"], 2, ["run.seed"]),
        (["run", "tiny.toml", "corpus.paths=[missing.txt]"], 1, ["missing.txt", "corpus.paths"]),
        (["run", "tiny.toml", "eval.tasks=[facts_en, nope]"], 2, ["'nope'", "facts_en", "two_hop_zh"]),
        (["run", "tiny.toml", "sft.base=missing"], 1, ["sft.base=missing", "no such model"]),
        (["run", "tiny.toml", "sft.base=."], 1, ["sft.base=.", "config.json"]),
        (["compare", ".", "."], 1, ["no finished stage", "runs/laptop"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_with_a_next_step(
    recipe: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, parts: list[str]
) -> None:
    assert talaria(*arguments) == code
    assert_one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], *parts)
    assert not Path("runs/tiny/world").exists() or arguments[0] == "corpus", "refused before any stage runs"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("deep.jsonl", b'{"text": "fine"}\n{"text": ' + b"[" * 100_000 + b"\n", ["deep.jsonl:2"]),
        ("page.parquet", b"", ["page.parquet", "damaged after row 0"]),
        ("latin.txt", "caf\xe9 au lait ".encode("latin-1") * 9, ["latin.txt", "byte 3", "invalid_utf8"]),
        ("cut.txt.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03K", ["cut.txt.gz", "truncated"]),
        ("rows.jsonl", b'{"text": "fine"}\n{"text": \n', ["rows.jsonl:2"]),
        ("empty.txt", b"", ["empty.txt"]),
    ],
)
def test_a_damaged_text_file_is_named_with_the_place(
    recipe: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, parts: list[str]
) -> None:
    Path(name).write_bytes(content or (damaged_parquet() if name.endswith("parquet") else b""))
    assert talaria("corpus", recipe, "world=none", "sft=none", "eval=none", f"corpus.paths=[{name}]") == 1
    assert_one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], *parts)


def damaged_parquet() -> bytes:
    """A table with a whole footer whose only page is damaged."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["fine " * 99]}), sink, compression="snappy", use_dictionary=False)
    whole = sink.getvalue()
    return whole[:4] + b"\xff" * 60 + whole[64:]


def test_a_file_name_that_is_not_utf8_is_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe.parent / "texts"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("fine")
    assert talaria("corpus", recipe, "corpus.paths=[texts]") == 1
    assert_one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], "caf\\xe9.txt", "rename")


@pytest.mark.parametrize("line", ['{"messages": 1}', "[" * 100_000], ids=["no list", "deep"])
def test_a_broken_file_of_conversations_is_told_before_anything_is_trained(
    recipe: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    Path("mine.jsonl").write_text(line + "\n")
    given = "sft.conversations=[mine.jsonl]"
    assert talaria("run", recipe, given) == 1
    assert_one_line(capsys.readouterr().err, "mine.jsonl:1")
    assert not Path("runs").exists()
    assert talaria("corpus", recipe, given) == 0, "a stage before it does not read them"


@pytest.mark.parametrize(
    ("overrides", "code", "parts"),
    [
        (["model.context=48"], 2, ["model.context is 48", "set model.context="]),
        (["tokenizer.kind=character", "sft=none"], 1, ["U+", "tokenizer.kind=bpe"]),
        (["tokenizer.kind=character", "eval=none"], 1, ["U+", "tokenizer.kind=bpe"]),
    ],
)
def test_an_exam_that_does_not_fit_is_told_before_training(
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    code: int,
    parts: list[str],
) -> None:
    # A character of the exam that stands nowhere in the text.
    monkeypatch.setitem(arithmetic.DIRECT_EXAM_QUESTIONS, "zh", ("\u9f98{a}加{b}，只要答案。",))
    assert talaria("run", recipe, *overrides) == code
    assert_one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], *parts)
    assert not list(Path("runs/tiny").glob("pretrain*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("A short note.", [], ["too few to make conversations", "add text"]),
        ("abc def ghi. " * 99, ["tokenizer.kind=character", "tokenizer.validation=tail"], ["U+", "tokenizer.kind=bpe"]),
    ],
    ids=["too little text", "characters that the text has not"],
)
def test_own_text_that_makes_no_conversations_is_told_before_training(
    recipe: Path, capsys: pytest.CaptureFixture[str], text: str, overrides: list[str], parts: list[str]
) -> None:
    Path("mine.txt").write_text(text)
    own = [
        "world=none",
        "eval=none",
        "corpus.paths=[mine.txt]",
        "corpus.quality=false",
        "conversations.continuations=9",
    ]
    assert talaria("run", recipe, *own, *overrides) == 1
    assert_one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], *parts)
    assert not list(Path("runs/tiny").glob("pretrain*/metrics.jsonl"))


def test_a_base_without_a_chat_format_is_told_before_any_stage(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "sft" / "model", "base")
    config = Path("base/tokenizer_config.json")
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    assert talaria("run", recipe, "sft.base=base", "pretrain=none") == 1
    assert_one_line(capsys.readouterr().err, "sft.base=base", "chat template")
    assert not Path("runs").exists()


def test_a_stop_by_the_user_names_the_way_on(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("talaria.world.build.write_world", stop)
        for command in ("run", "corpus"):
            assert talaria(command, recipe) == 130
            assert_one_line(capsys.readouterr().err, "interrupted", "the same command goes on")


def test_a_data_set_of_the_hub_is_in_the_chain_and_named_as_not_checked(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[object] = []

    def load(place: str, *, revision: str | None, **_: object) -> list[dict[str, str]]:
        asked.append((place, revision))
        return [{"text": "The messenger crossed the river at dawn and carried a letter to the town."}]

    commit = {"owner/name": "c0ffee"}
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda _, name: SimpleNamespace(sha=commit[name]))
    only = ["corpus", recipe, "world=none", "sft=none", "eval=none", "corpus.paths=[hf:owner/name]"]
    assert talaria(*only) == 0
    assert set(asked) == {("owner/name", "c0ffee")}, "every pass reads the same commit"
    inputs = json.loads(Path("runs/tiny/corpus/manifest.json").read_text())["inputs"]
    assert inputs == {"hf:owner/name": "revision c0ffee"}
    commit.clear()
    asked.clear()
    assert talaria(*only) == 0 and not asked, "what is done stays at its commit and asks the hub no more"
    assert talaria(*only, "--force") == 0
    assert set(asked) == {("owner/name", "c0ffee")}
    capsys.readouterr()
    assert talaria("verify", "runs/tiny") == 0
    assert "not checked, since it is not on this machine: hf:owner/name at revision c0ffee" in capsys.readouterr().out


def test_a_data_set_in_a_folder_is_hashed(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    rows = Path("mine/train.jsonl")
    rows.parent.mkdir()
    rows.write_text('{"text": "The messenger crossed the river at dawn and carried a letter to the town."}\n')
    assert talaria("corpus", recipe, "world=none", "sft=none", "eval=none", "corpus.paths=[hf:mine]") == 0
    assert talaria("verify", "runs/tiny") == 0
    assert "not checked" not in capsys.readouterr().out
    rows.write_text(rows.read_text() * 2)
    assert talaria("verify", "runs/tiny") == 1
    assert "changed since stage corpus read it" in capsys.readouterr().out


def test_the_world_and_the_users_own_files_are_both_in_the_corpus(recipe: Path) -> None:
    Path("mine.txt").write_text("The messenger crossed the river at dawn and carried a letter to the town.\n")
    assert talaria("corpus", recipe, "corpus.paths=[mine.txt]") == 0
    sources = json.loads(Path("runs/tiny/corpus/corpus.json").read_text())["sources"]
    assert [Path(name).name for name in sources] == ["mine.txt", "pages.jsonl"]
    inputs = json.loads(Path("runs/tiny/corpus/manifest.json").read_text())["inputs"]
    assert {Path(name).name for name in inputs} == {"mine.txt", "pages.jsonl", "exam.jsonl"}


def test_a_forced_stage_leaves_a_run_that_verifies(recipe: Path) -> None:
    assert talaria("tokenizer", recipe) == 0
    assert talaria("corpus", recipe, "--force") == 0
    assert talaria("verify", "runs/tiny") == 0


def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert talaria("corpus", recipe) == 0
    before = (recipe.parent / "runs" / "tiny" / "corpus" / "done.json").read_bytes()
    real = os.fsync

    for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):

        def no_space(descriptor: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", no_space)
        assert talaria("tokenizer", recipe) == 1
        error = capsys.readouterr().err
        assert_one_line(error.splitlines(keepends=True)[-1], "no space left on disk", os.strerror(code))
    monkeypatch.setattr(os, "fsync", real)
    assert (recipe.parent / "runs" / "tiny" / "corpus" / "done.json").read_bytes() == before
    assert talaria("tokenizer", recipe) == 0
    assert talaria("verify", recipe.parent / "runs" / "tiny") == 0


def test_a_full_gpu_is_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutOfMemoryError(RuntimeError):
        """torch's, by its name."""

    def full(*_: object, **__: object) -> None:
        raise OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr("talaria.pipeline.run_recipe", full)
    assert talaria("corpus", recipe) == 1
    error = capsys.readouterr().err
    assert_one_line(error.splitlines(keepends=True)[-1], "the GPU's memory is full", "2 GiB", "micro_batch_tokens")


def test_a_disk_that_fills_up_while_weights_are_saved_is_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses the write in the same way."""
    assert talaria("tokenizer", recipe) == 0
    capsys.readouterr()
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    code += "import sys; from talaria.cli import main; sys.argv = ['talaria', 'pretrain', 'tiny.toml']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert_one_line(done.stderr.splitlines(keepends=True)[-1], "no space left on disk", "run the same command again")
    assert "Traceback" not in done.stderr
    assert talaria("pretrain", recipe) == 0
    assert talaria("verify", "runs/tiny") == 0


# ----------------------------------------------------------------------------------- a whole run


@pytest.fixture
def copied(finished: Path, recipe: Path) -> Path:
    """The whole run once more, where `recipe` has its own: a test may damage it."""
    return Path(shutil.copytree(finished, recipe.parent / "runs" / "tiny")).relative_to(recipe.parent)


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def hashes(run: Path, *left_out: Path) -> dict[Path, str]:
    files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: sha256(path) for path in files if not any(path.is_relative_to(place) for place in left_out)}


def test_a_corrupt_shard_is_one_line_and_the_run_goes_on_once_it_is_gone(
    copied: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = copied / "tokenizer" / "shards" / "train-00000.bin"
    flip(shard)
    before = hashes(copied)
    assert talaria("run", recipe) == 1
    told = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert_one_line(told, str(shard), "hash mismatch", f"delete {copied / 'tokenizer'} and run again")
    assert hashes(copied) == before
    shutil.rmtree(copied / "tokenizer")
    assert talaria("run", recipe) == 0
    assert capsys.readouterr().err.count("is current") == 5, "the tokenizer alone is made again, and is the same"
    assert talaria("verify", copied) == 0


def test_a_corrupt_checkpoint_is_one_line_and_the_earlier_model_stays(
    copied: Path, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = copied / "pretrain.partial"
    before = hashes(copied)

    def stop(meter: Meter, step: int, result: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    changed = ["pretrain", recipe, "pretrain.checkpoint_every_seconds=1e-9"]
    with monkeypatch.context() as patch:
        patch.setattr(Meter, "count", stop)
        patch.setattr(Meter, "row", lambda *_: {})
        assert talaria(*changed) == 130
    saved = partial / "checkpoints" / "step-000002"
    flip(saved / "optimizer.safetensors")
    capsys.readouterr()
    assert talaria(*changed) == 1
    told = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert_one_line(told, str(saved / "optimizer.safetensors"), "hash mismatch", f"delete {saved}")
    assert hashes(copied, partial) == before
    assert talaria("verify", copied) == 0
    shutil.rmtree(saved)
    assert talaria(*changed) == 0
    assert not partial.exists()


def test_a_second_run_in_one_folder_is_one_line_and_touches_nothing(
    copied: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(copied)
    with lock(copied):
        for command in ("run", "corpus"):
            assert talaria(command, recipe, "world.seed=1") == 1
            assert_one_line(capsys.readouterr().err, str(copied), f"process {os.getpid()}", "run.name=NAME")
    assert hashes(copied) == before
    assert talaria("verify", copied) == 0


def test_verify_fails_on_one_changed_byte_of_any_file_of_a_whole_run(copied: Path) -> None:
    files = hashes(copied, copied / "report")  # the report tells the run and is no part of its chain
    assert len(files) > 40
    for path in files:
        original = path.read_bytes()
        if not original:
            continue
        flip(path, len(original) // 2)
        assert talaria("verify", copied) == 1, path
        path.write_bytes(original)
    assert talaria("verify", copied) == 0


def test_choices_that_no_model_scores_need_no_room_in_the_context(copied: Path, recipe: Path) -> None:
    """The bug: a context that holds every question with its answer is refused for a longer choice beside it."""
    exam = copied / "world" / "exam.jsonl"
    item = json.loads(exam.read_text().splitlines()[0])
    longer = item | {"id": "longer", "choices": [item["answer"], "a much longer answer " * 20]}
    exam.write_text(exam.read_text() + json.dumps(longer) + "\n")
    needed = {}
    for scored in (0, 1):
        given = [f"eval.likelihood_per_task={scored}", "eval.limit_per_task=none"]
        with pytest.raises(UsageError) as refused:
            check_texts(read_recipe(recipe, [*given, "model.context=8"]))
        [needed[scored]] = map(int, re.findall(r"model\.context=(\d+)", str(refused.value)))
        check_texts(read_recipe(recipe, [*given, f"model.context={needed[scored]}"]))
    assert needed[0] < needed[1]


def test_raw_text_to_a_verified_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert talaria("verify", finished) == 0
    stages = ("world", "corpus", "tokenizer", "pretrain", "sft", "eval")
    told = capsys.readouterr().out
    for stage in stages:
        assert (finished / stage / "done.json").exists() and stage in told
    page = (finished / "report" / "report.html").read_text()
    assert "http" not in page.split("<body", 1)[0].replace("http-equiv", ""), "the report loads nothing from outside"
    models = {line.split(",")[0] for line in (finished / "eval" / "results.csv").read_text().splitlines()[1:]}
    assert {"chance", "majority", "untrained", "pretrain", "sft"} == models


def test_running_again_does_nothing_and_a_changed_setting_reruns_only_what_it_touches(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = finished.parent.parent / "tiny.toml", f"run.folder={finished.parent}"
    assert talaria("run", recipe, folder) == 0
    assert capsys.readouterr().err.count("is current") == 6
    assert talaria("eval", recipe, folder, "eval.max_tokens=9") == 0
    assert capsys.readouterr().err.count("is current") == 5
    assert talaria("sft", recipe, folder, "--force") == 0
    assert "sft done" in " ".join(capsys.readouterr().err.split())


def test_verify_names_a_changed_weight(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished / "sft" / "model" / "model.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        assert talaria("verify", finished) == 1
        assert "sft/model/model.safetensors: content changed" in capsys.readouterr().out
    finally:
        path.write_bytes(original)
    assert talaria("verify", finished) == 0


def test_the_python_face(finished: Path) -> None:
    import talaria as package

    engine = package.load(finished, device="cpu")
    (first, second) = engine.generate(
        ["Q: Hello\nA:", "问"], max_tokens=5, temperature=0.8, top_p=0.9, stop=["\n"], seed=1
    )
    assert first.finish_reason in ("stop", "length") and len(first.token_ids) == len(first.log_probs)
    (again,) = engine.generate(["Q: Hello\nA:"], max_tokens=5, temperature=0.8, top_p=0.9, stop=["\n"], seed=1)
    assert (again.text, again.token_ids) == (first.text, first.token_ids)
    assert second.prompt_tokens > 0
    assert engine.tokenizer.decode(engine.tokenizer.encode("Ünïcode 中文")) == "Ünïcode 中文"
    assert engine.chat([{"role": "user", "content": "Hi"}], max_tokens=3).text is not None
    (score,) = engine.loglikelihood([("a", " b")])
    assert score.log_prob < 0
    for part in ("sft", "sft/model", "pretrain"):
        assert package.load(finished / part).tokenizer.vocab_size == engine.tokenizer.vocab_size


def test_chat_answers_on_a_pipe(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "talaria", "chat", str(finished), "--max-tokens", "4", "--seed", "1"],
        input="Hello\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_import_and_compare(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert talaria("import", finished / "sft" / "model", tmp_path / "model") == 0
    import talaria as package

    ours, imported = package.load(finished), package.load(tmp_path / "model")
    assert (
        ours.generate(["x"], max_tokens=4, temperature=0)[0] == imported.generate(["x"], max_tokens=4, temperature=0)[0]
    )
    assert talaria("import", finished / "sft" / "model", tmp_path / "model") == 1
    capsys.readouterr()
    assert talaria("import", finished / "sft" / "model", tmp_path / "model" / "config.json" / "x") == 1
    assert_one_line(capsys.readouterr().err, "config.json", "choose another path")
    assert talaria("compare", finished, finished) == 0
    assert "sft" in capsys.readouterr().out


def test_init_makes_a_recipe_that_runs_without_editing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "texts"
    texts.mkdir()
    story = "The messenger crossed the river at dawn and carried {} letters to the town of {}. Nobody asked why.\n\n"
    (texts / "a.txt").write_text("".join(story.format(i, f"Place{i}") for i in range(400)))
    (texts / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"第{i}天，信使把信送到了城里。"}) + "\n" for i in range(300))
    )
    assert talaria("init", texts, "--minutes", "0.8") == 0
    assert talaria("run", "texts.toml", "pretrain.tokens=3000", "conversations.continuations=50") == 0
    run = tmp_path / "runs" / "texts"
    assert (run / "eval" / "results.csv").exists()
    assert "what each model writes there" in (run / "report" / "report.html").read_text()
    assert talaria("init", texts) == 1, "an existing recipe is not overwritten"
