"""Are a model's weights on a grid of 4 bits already? Then rounding them to 4 bits measures nothing.

    python bench/off_grid.py MODEL ...

MODEL is what `talaria.load` takes. Printed is the share of groups of 32 columns, over the matrices of all blocks, whose
weights take more than the 16 values that a grid of 4 bits has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from talaria.infer.load import find_model
from talaria.model.checkpoint import load_model
from talaria.model.linear import Linear

GROUP, LEVELS = 32, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    for path in parser.parse_args().models:
        model, _ = load_model(find_model(path))
        off = groups = 0
        for matrix in model.blocks.modules():
            if isinstance(matrix, Linear):
                sorted_Gg = matrix.weight.detach().reshape(-1, GROUP).sort(dim=1).values
                n_values_G = 1 + (sorted_Gg.diff(dim=1) != 0).sum(dim=1)
                off += int(torch.count_nonzero(n_values_G > LEVELS))
                groups += len(n_values_G)
        print(f"{path}: {off / groups:.4%} of {groups:,} groups take more than {LEVELS} values")


if __name__ == "__main__":
    main()
