"""What the reward model and the policy trained on it are worth, by the judge who never errs: the evaluation of
`eval/preferences.py` on as many questions as wanted, for a run that is finished.

    python bench/alignment.py runs/aligned --items 600 --n 16 --policy ppo --seed 1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from talaria.eval.preferences import Preferences, draw_items
from talaria.eval.settings import EvalSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--policy", default="ppo", help="stage whose model is compared with sft's")
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--n", type=int, default=16, help="answers of best-of-n; 0 leaves it out")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    settings = EvalSettings(preference_items=arguments.items, best_of=arguments.n, max_tokens=arguments.max_tokens)
    items = draw_items(arguments.run / "world" / "exam.jsonl", arguments.items, arguments.seed)
    told = Preferences(settings, items, arguments.run / "reward" / "reward_model", arguments.seed)
    told.answer("sft", arguments.run / "sft" / "model")
    told.answer(arguments.policy, arguments.run / arguments.policy / "model")
    told.compare(arguments.policy, "sft")
    if arguments.n:
        told.compare(told.answer_best_of(), "sft")
    print(json.dumps(told.to_json(), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
