"""Put each known bug of alignment back, in a scratch copy of the package, and see that a test fails: `make mutations`.

python tests/mutations.py            # all; exit code 1 if a bug goes unnoticed
python tests/mutations.py padding    # those whose name has this word
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest
import sqlalchemy  # noqa: F401
import torch._dynamo  # noqa: F401

ROOT = Path(__file__).parent.parent
PPO, LOSSES = "tests/train/test_ppo.py", "tests/train/test_policy_losses.py"
ANSWERS, POLICY, ALGORITHM = "train/answers.py", "train/policy_losses.py", "train/ppo.py"
ROLLOUTS = "train/rollouts.py"
ROWS, BRANCHES = "train/branches.py", "tests/train/test_branches.py"

# name, file below src/talaria, what stands there, the bug, the test file that must fail
MUTATIONS: list[tuple[str, str, str, str, str]] = [
    (
        "pad equal to the end token",
        ANSWERS,
        "        mask[row, len(prompt) : end] = True\n",
        "        mask[row, len(prompt) : end] = tokens[row, len(prompt) : end] != 0\n",
        PPO,
    ),
    (
        "doubled beginning token",
        ANSWERS,
        "    return chat.ids[:n_prompt], chat.ids[n_prompt:end]",
        "    return [tokenizer.bos_id or 0, *chat.ids[:n_prompt]], chat.ids[n_prompt:end]",
        PPO,
    ),
    (
        "missing beginning token",
        ANSWERS,
        "    return chat.ids[:n_prompt], chat.ids[n_prompt:end]",
        "    return chat.ids[1:n_prompt], chat.ids[n_prompt:end]",
        PPO,
    ),
    (
        "boundary: the template's words after the end are scored",
        ANSWERS,
        "    return chat.ids[:n_prompt], chat.ids[n_prompt:end]",
        "    return chat.ids[:n_prompt], chat.ids[n_prompt:]",
        PPO,
    ),
    (
        "boundary: the prompt is encoded without the words that open an answer",
        ANSWERS,
        "messages, add_generation_prompt=True).ids)\n    end",
        "messages).ids)\n    end",
        PPO,
    ),
    (
        "sampler and trainer apart: the sampler keeps the weights it was made of",
        ROLLOUTS,
        "compile_transformer(policy, live=True)",
        "compile_transformer(policy)",
        PPO,
    ),
    (
        "padding inside log-probabilities and KL",
        ANSWERS,
        "    return _in_place(chosen_N, answers.mask_BT), _in_place(entropy_N, answers.mask_BT)",
        "    logits = torch.log_softmax(model.head(hidden_BTD), dim=-1)\n"
        "    return logits.gather(2, answers.targets_BT[..., None])[..., 0], _in_place(entropy_N, answers.mask_BT)",
        PPO,
    ),
    (
        "padding inside entropy",
        ANSWERS,
        "    return _in_place(chosen_N, answers.mask_BT), _in_place(entropy_N, answers.mask_BT)",
        "    whole = torch.log_softmax(model.head(hidden_BTD), dim=-1).detach()\n"
        "    return _in_place(chosen_N, answers.mask_BT), -(whole.exp() * whole).sum(-1)",
        PPO,
    ),
    ("padding inside whitening", POLICY, "    inside = x_BT[mask_BT]\n", "    inside = x_BT.flatten()\n", LOSSES),
    (
        "truncated answers rewarded as ended",
        ROLLOUTS,
        'enumerate(completions) if answer.finish_reason == "stop"]',
        "enumerate(completions)]",
        PPO,
    ),
    (
        "prompts of other splits train the policy",
        ROLLOUTS,
        "            if split not in splits:\n",
        "            if False:\n",
        PPO,
    ),
    (
        "sampler and trainer log-probabilities apart",
        "infer/sampling.py",
        "    return tokens_B, logits_BV.gather(-1, tokens_B[:, None])[:, 0] - log_total_B",
        "    log_total_B = choices_BV.div(0.9).logsumexp(-1)\n"
        "    return tokens_B, logits_BV.gather(-1, tokens_B[:, None])[:, 0] / 0.9 - log_total_B",
        PPO,
    ),
    (
        "KL not 0 at step 0: the reference is another model",
        ALGORITHM,
        "    reference = load_model(base)[0].to(default_device()).requires_grad_(False)",
        "    reference = load_scalar_model(reward)[0].trunk.requires_grad_(False)\n"
        "        torch.nn.init.zeros_(reference.blocks[0].attention.out.weight)",
        PPO,
    ),
    (
        "advantage off by one",
        POLICY,
        "        result_BT[:, t] = ahead_B\n",
        "        result_BT[:, max(t - 1, 0)] = ahead_B\n",
        LOSSES,
    ),
    (
        "value one place late",
        ALGORITHM,
        "value.trunk.hidden(rollouts.inputs_BT)",
        "value.trunk.hidden(rollouts.targets_BT)",
        PPO,
    ),
    (
        "value network that begins as the reward's head",
        ALGORITHM,
        "    if tuning.step == 0:\n",
        "    if tuning.step < 0:\n",
        PPO,
    ),
    (
        "likelihood so far that knows the token",
        ANSWERS,
        "    lowest_BT = F.pad(inside_BT.cummin(dim=1).values, (1, -1))\n",
        "    lowest_BT = inside_BT.cummin(dim=1).values\n",
        PPO,
    ),
    (
        "value of the terminal state",
        POLICY,
        "        next_value_B = torch.where(inside_B, values_BT[:, t], 0.0)",
        "        next_value_B = values_BT[:, t]",
        LOSSES,
    ),
    (
        "score one place early",
        ALGORITHM,
        "last_places(answers.mask_BT)] += scores_B",
        "last_places(answers.mask_BT) - 1] += scores_B",
        PPO,
    ),
    (
        "dropout left on",
        "model/transformer.py",
        "        y: Tensor = self.down(h)\n",
        "        y: Tensor = self.down(F.dropout(h, 0.1, self.training))\n",
        PPO,
    ),
    (
        "reference model updated",
        ALGORITHM,
        "    reference = load_model(base)[0].to(default_device()).requires_grad_(False)",
        "    reference = policy",
        PPO,
    ),
    (
        "ptx gradient scaled by answer tokens",
        ALGORITHM,
        "            n_text / settings.ptx_coefficient,",
        "            n_tokens / settings.ptx_coefficient,",
        PPO,
    ),
    (
        "price of KL with the wrong sign",
        ALGORITHM,
        "    rewards_BT = -kl_coefficient * log_ratio_BT",
        "    rewards_BT = kl_coefficient * log_ratio_BT",
        PPO,
    ),
    (
        "mean of means over micro-batches",
        ALGORITHM,
        "        return policy_loss + settings.value_coefficient * value_loss\n",
        "        share = n_tokens / rollouts.mask_BT.sum() * len(rollouts.mask_BT) / len(batch.mask_BT)\n"
        "        return share * (policy_loss + settings.value_coefficient * value_loss)\n",
        PPO,
    ),
    (
        "ranking loss divided by answers instead of pairs",
        POLICY,
        "    return F.binary_cross_entropy_with_logits(difference_P, preferred_P.to(difference_P))",
        "    loss = F.binary_cross_entropy_with_logits(difference_P, preferred_P.to(difference_P), reduction='sum')\n"
        "    return loss / len(scores_K)",
        LOSSES,
    ),
    (
        "a tie is a win of the first",
        POLICY,
        "    return F.binary_cross_entropy_with_logits(difference_P, preferred_P.to(difference_P))",
        "    return F.binary_cross_entropy_with_logits(difference_P, preferred_P.to(difference_P).ceil())",
        LOSSES,
    ),
    (
        "an answer reads its neighbour behind the same prompt",
        ROWS,
        "    own_BTT = branch_BT[:, :, None] == branch_BT[:, None, :]\n",
        "    own_BTT = branch_BT[:, :, None] >= branch_BT[:, None, :]\n",
        BRANCHES,
    ),
    (
        "positions run on from one answer to the next",
        ROWS,
        "torch.arange(len(prompt) - 1, len(prompt) - 1 + len(answer))",
        "torch.arange(at, end)",
        BRANCHES,
    ),
    (
        "a group's advantages one answer late",
        "train/grpo.py",
        "F.pad(advantages, (1, group - len(advantages)))",
        "F.pad(advantages, (2, group - len(advantages) - 1))",
        BRANCHES,
    ),
]


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    unnoticed = 0
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(ROOT / "src", Path(scratch) / "src")
        shutil.copytree(ROOT / "tests", Path(scratch) / "tests")
        shutil.copy(ROOT / "pyproject.toml", scratch)
        for name, file, right, wrong, test in MUTATIONS:
            if wanted not in name:
                continue
            path = Path(scratch) / "src" / "talaria" / file
            text = path.read_text(encoding="utf-8")
            assert text.count(right) == 1, f"{name}: the text to change stands {text.count(right)} times in {file}"
            path.write_text(text.replace(right, wrong), encoding="utf-8")
            failed = _failing(Path(scratch), test)
            path.write_text(text, encoding="utf-8")
            unnoticed += not failed
            print(f"{'caught ' if failed else 'MISSED '} {name}: {failed or 'no test failed'}", flush=True)
    return 1 if unnoticed else 0


def _failing(scratch: Path, test: str) -> str:
    """The first test that fails; "" if none does. It runs in a fork of this process, which has loaded what is slow."""
    report = scratch / "report.txt"
    process = multiprocessing.get_context("fork").Process(target=_run, args=(scratch, test, report))
    process.start()
    process.join()
    told = report.read_text(encoding="utf-8")
    assert process.exitcode in (0, 1), told
    failed = [line for line in told.splitlines() if line.startswith("FAILED")]
    assert len(failed) == process.exitcode, told
    return failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ""


def _run(scratch: Path, test: str, report: Path) -> None:
    assert "talaria" not in sys.modules
    os.chdir(scratch)
    sys.path[:0] = [str(scratch / "src"), str(scratch / "tests")]
    sys.dont_write_bytecode = True
    with report.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        code = pytest.main(["-x", "-q", "--no-header", "--color=no", "-p", "no:cacheprovider", test])
    sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
