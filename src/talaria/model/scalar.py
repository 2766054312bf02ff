"""A trunk with one number for each position: reward models and value networks.

    scorer = ScalarModel(trunk, torch.Generator().manual_seed(0))
    scores_BT = scorer(tokens_BT)

Shapes: B batch, T positions, D model width, F features of an answer's likelihood.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from talaria.errors import UserError
from talaria.model.checkpoint import load_model, save_model, save_tensors
from talaria.model.transformer import Transformer
from talaria.tokens.tokenizer import Tokenizer

_HEAD = "scalar_head.safetensors"
N_LIKELIHOOD = 5  # features of an answer's likelihood, `train/answers.py`


class ScalarModel(nn.Module):
    """`trunk` with a linear head of one output. Its weights are drawn with deviation 1/sqrt(D + 1) (Stiennon et al.
    2020, appendix B.1), the bias is 0.

    With `reads_likelihood` a whole answer's score has a second part, linear in how likely the trunk's own language
    model finds the answer (`train/answers.py`, `likelihood`), and both parts begin at 0, to be fitted. Without it the
    trunk's table of output tokens takes no part."""

    def __init__(
        self, trunk: Transformer, generator: torch.Generator | None = None, reads_likelihood: bool = False
    ) -> None:
        super().__init__()
        self.trunk = trunk
        width, like = trunk.shape.d_model, trunk.embed.weight
        drawn = torch.randn(width, generator=generator, dtype=torch.float32) / math.sqrt(width + 1)
        self.weight_D = nn.Parameter((drawn * (not reads_likelihood)).to(like))
        self.bias = nn.Parameter(like.new_zeros(()))
        self.likelihood_F = nn.Parameter(like.new_zeros(N_LIKELIHOOD)) if reads_likelihood else None
        if not trunk.shape.tie_embeddings and not reads_likelihood:
            trunk.head_weight().requires_grad_(False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Values (B, T) in fp32 (fp64 where the model is). Rows are padded on the right, which earlier positions do not
        see."""
        return self.read(self.trunk.hidden(tokens_BT))

    def read(self, hidden: Tensor) -> Tensor:
        """Values (...) of hidden states (..., D), in the head's dtype even where the trunk's products are bfloat16, in
        which scores of 3 would come in steps of 1/64."""
        with torch.autocast(hidden.device.type, enabled=False):
            values = hidden.to(self.weight_D) @ self.weight_D + self.bias
        return values if values.dtype == torch.float64 else values.float()


def head_apart(model: ScalarModel) -> ScalarModel:
    """A model of the same trunk, in one memory, with a copy of the head that stays as it is."""
    apart = ScalarModel(model.trunk, reads_likelihood=model.likelihood_F is not None)
    own = dict(model.named_parameters(recurse=False))
    with torch.no_grad():
        for name, parameter in apart.named_parameters(recurse=False):
            parameter.copy_(own[name])
            parameter.requires_grad_(False)
    return apart


def save_scalar_model(model: ScalarModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model folder with the head beside the trunk's weights."""
    head = {"weight": model.weight_D.detach().cpu().contiguous(), "bias": model.bias.detach().cpu().reshape(1)}
    if model.likelihood_F is not None:
        head["likelihood"] = model.likelihood_F.detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(head, folder / _HEAD)
    save_model(model.trunk, tokenizer, folder)


def load_scalar_model(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[ScalarModel, Tokenizer]:
    """Read what `save_scalar_model` wrote. Raises UserError where there is no head."""
    if not (folder / _HEAD).is_file():
        raise UserError(f"{folder}: no reward model here ({_HEAD} is missing); give the folder of one, or train it")
    trunk, tokenizer = load_model(folder, dtype)
    head = load_file(folder / _HEAD)
    model = ScalarModel(trunk, reads_likelihood="likelihood" in head)
    with torch.no_grad():
        if model.likelihood_F is not None:
            model.likelihood_F.copy_(head["likelihood"])
        model.weight_D.copy_(head["weight"])
        model.bias.copy_(head["bias"][0])
    return model, tokenizer
