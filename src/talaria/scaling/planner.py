"""A budget in, the size and the length of one training run out: how many parameters, on how many tokens, to what loss.

    rule = CHINCHILLA                      # or KAPLAN, or read_rule(Path("fit.json")) of `talaria fit --output`
    allocation = allocate(rule, Budget(flops=5.76e23))

Training compute is C = 6 N D (Kaplan et al. 2020). A rule says N = n_0 C^a; where it has a law of the loss, text that
runs short and answers that are served move N from there.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from talaria.errors import UsageError, UserError
from talaria.scaling.laws import CHINCHILLA as CHINCHILLA_LAW
from talaria.scaling.laws import KAPLAN as KAPLAN_LAW
from talaria.scaling.laws import LAWS, REPEATED, Law, rising
from talaria.scaling.points import Array, Points

_REPETITION = (math.log(15.387756), math.log(5.309743))
"""R_D and R_N of Muennighoff et al. 2023, appendix A: how fast repeated tokens and excess parameters lose their
worth."""
_SMALLEST_PUBLISHED = 44e6
_LEVEL = 0.9
_DRAWS = 2000


@dataclass(frozen=True)
class Rule:
    """How compute is shared out, N = n_0 C^a, and the law of the loss where there is one.

    `theta` and `covariance` are in the law's own parameters, `noise` is the standard deviation of log-loss around it;
    without a covariance the loss has no interval.
    """

    name: str
    n_0: float
    a: float
    law: Law | None
    theta: Array | None
    covariance: Array | None
    noise: float
    note: str
    repetition: tuple[float, float] = _REPETITION
    """log R_D and log R_N, for a law of the loss with Chinchilla's terms."""

    @property
    def is_published(self) -> bool:
        """Not fitted to the user's own runs: its loss is of another text under another tokenizer."""
        return any(self is rule for rule in RULES.values())

    def best(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens for a compute."""
        params = self.n_0 * flops**self.a
        return params, flops / 6 / params

    def flops_of(self, params: float | None = None, tokens: float | None = None) -> float:
        """The compute at which so many parameters, or tokens, are best."""
        if params is not None:
            return float((params / self.n_0) ** (1 / self.a))
        assert tokens is not None
        return float((6 * self.n_0 * tokens) ** (1 / (1 - self.a)))

    def loss(self, params: float, tokens: float, unique: float | None = None) -> Loss | None:
        """Predicted loss with its 90 % interval; of repeated text where `unique` is below `tokens`. None without a
        law, or with one that does not know what repeated text is worth."""
        if self.law is None or self.theta is None:
            return None
        law, theta, covariance = self.law, self.theta, self.covariance
        if unique is not None and unique < tokens:
            if law.name != "chinchilla":
                return None
            law, theta = REPEATED, np.append(theta, self.repetition)
            covariance = None if covariance is None else np.pad(covariance, (0, 2))
        one = _run(params, tokens, unique)
        value = float(np.exp(law.predict(theta[None], one)[0][0, 0]))
        if covariance is None:
            return Loss(value, None, None)
        generator = np.random.default_rng(0)
        drawn = generator.multivariate_normal(theta, covariance, _DRAWS)
        log_loss = law.predict(drawn, one)[0][:, 0] + self.noise * generator.standard_normal(_DRAWS)
        low, high = np.nanquantile(np.exp(log_loss), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Loss(value, float(low), float(high))


@dataclass(frozen=True)
class Loss:
    """Nats a token, and the ends of its 90 % interval, None where the coefficients were published without one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Budget:
    """What is given; None where it is not. `tokens` is the text at hand, `served_tokens` what the model will read and
    write in its life."""

    flops: float | None = None
    tokens: float | None = None
    params: float | None = None
    served_tokens: float | None = None


@dataclass(frozen=True)
class Allocation:
    """One training run: `flops` = 6 x parameters x tokens; `epochs` over the text at hand, None where its size is
    open."""

    parameters: float
    tokens: float
    flops: float
    loss: Loss | None
    epochs: float | None
    notes: tuple[str, ...]


CHINCHILLA = Rule(
    name="chinchilla",
    n_0=1 / math.sqrt(6 * 20),
    a=0.5,
    law=CHINCHILLA_LAW,
    theta=np.array([6.16924669, 7.67015653, 0.59730683, 0.34731052, 0.36717242]),
    covariance=np.array(
        [
            [6.4079e-02, -2.2587e-02, 2.1208e-03, 3.8151e-03, -1.1401e-03],
            [-2.2587e-02, 1.2295e-01, 2.5160e-03, -1.4187e-03, 6.0527e-03],
            [2.1208e-03, 2.5160e-03, 1.6988e-04, 1.2493e-04, 1.2313e-04],
            [3.8151e-03, -1.4187e-03, 1.2493e-04, 2.2745e-04, -7.1605e-05],
            [-1.1401e-03, 6.0527e-03, 1.2313e-04, -7.1605e-05, 2.9815e-04],
        ]
    ),
    noise=0.00755,
    note="20 tokens a parameter (Hoffmann et al. 2022); the loss is of MassiveText under its own tokenizer",
)
"""The loss is the replication's (Besiroglu et al. 2024), refitted by `talaria fit` on its 240 points: theta, and the
covariance of its 1,000 draws with seed 0."""

_GPT_3 = (175e9, 300e9)
_KAPLAN_A = 0.74
KAPLAN = Rule(
    name="kaplan",
    n_0=_GPT_3[0] / (6 * _GPT_3[0] * _GPT_3[1]) ** _KAPLAN_A,
    a=_KAPLAN_A,
    law=KAPLAN_LAW,
    theta=np.array([math.log(6.4e13), math.log(1.8e13), 0.076, 0.103]),
    covariance=None,
    noise=0.0,
    note="10 times the compute is 5.5 times the parameters on 1.8 times the tokens, through GPT-3's 175B on 300B",
)
"""Hoffmann et al. 2022 (section 1) tell the allocation of Kaplan et al. 2020 as 5.5 and 1.8 times, which is C^0.74 and
C^0.26; Kaplan's own table 6 has 0.73 and 0.27. The loss is equation 1.5 with table 2's coefficients."""
RULES = {rule.name: rule for rule in (CHINCHILLA, KAPLAN)}


def read_rule(path: Path) -> Rule:
    """The rule of a fit that `talaria fit --output` wrote. UserError where the file is none, or its law shares
    nothing out."""
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name, found = str(told["law"]), {key: float(value) for key, value in told["coefficients"].items()}
        theta = None if told["theta"] is None else np.array(told["theta"], dtype=np.float64)
        covariance = None if told["theta_covariance"] is None else np.array(told["theta_covariance"], dtype=np.float64)
        noise = float(told["residuals"]["rms"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such fit; `talaria fit POINTS.csv --output {path}` writes one") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a fit ({error!r}); write it with `talaria fit POINTS.csv --output {path}`"
        ) from None
    if name not in (*LAWS, "isoflop", "envelope") or name == "broken":
        raise UserError(f"{path}: law {name} does not share compute out; fit chinchilla, kaplan, isoflop or envelope")
    if wrong := rising(found):
        raise UserError(
            f"{path}: {wrong[0]} is {found[wrong[0]]:.3g}, a loss that does not fall with scale; fit other "
            "runs, which carry a plan"
        )
    try:
        n_0, a = _shares(name, found)
        law, repetition = LAWS.get(name), _REPETITION
        if law is not None:
            if theta is None:
                raise ValueError("no theta")
            law.coefficients(theta[None])
            if covariance is not None and covariance.shape != (len(theta), len(theta)):
                raise ValueError(f"theta_covariance of {covariance.shape} for {len(theta)} coefficients")
    except (KeyError, ValueError, ArithmeticError, IndexError) as error:
        raise UserError(
            f"{path}: coefficients that are none of law {name} ({error!r}); write it with `talaria fit POINTS.csv "
            f"--output {path}`"
        ) from None
    if not (0 < a < 1 and n_0 > 0 and math.isfinite(n_0)):
        raise UserError(f"{path}: its exponents give no best size (parameters ~ C^{a:.3g}); its points carry no plan")
    if name == "repeated" and theta is not None:
        repetition = (float(theta[5]), float(theta[6]))
        law, theta = CHINCHILLA_LAW, theta[:5]
        covariance = None if covariance is None else covariance[:5, :5]
    return Rule(name, n_0, a, law, theta, covariance, noise, f"coefficients of {path}", repetition)


def _shares(name: str, found: dict[str, float]) -> tuple[float, float]:
    """n_0 and a of N = n_0 C^a by the coefficients of a law. KeyError where one is missing."""
    if name in ("isoflop", "envelope"):
        return found["N_0"], found["a"]
    if name == "kaplan":
        ratio = found["alpha_N"] / found["alpha_D"]
        a = 1 / (1 + ratio)
        return (ratio * found["N_c"] ** ratio / (6 * found["D_c"])) ** a, a
    alpha, beta = found["alpha"], found["beta"]
    a = beta / (alpha + beta)
    return (alpha * found["A"] / (beta * found["B"])) ** (1 / (alpha + beta)) / 6**a, a


def allocate(rule: Rule, budget: Budget) -> Allocation:
    """Parameters and tokens of one run within `budget`. UsageError where nothing is given that sets a size.

    Parameters and compute given: the tokens follow. Parameters alone: the tokens that are best for them. Text at hand
    alone: the size that is best for it, read once. With compute too, text that runs short is repeated, and worth less
    each time.
    """
    for name, value in vars(budget).items():
        if value is not None and not 0 < value < math.inf:
            raise UsageError(
                f"--{name.replace('params', 'parameters').replace('_', '-')} {value:g}: give a number above 0"
            )
    if budget.served_tokens is not None and budget.params is not None:
        raise UsageError("--served-tokens chooses another size, and --parameters gives it; leave one of the two out")
    notes: list[str] = []
    flops = budget.flops
    if budget.params is not None:
        params = budget.params
        tokens = flops / 6 / params if flops is not None else budget.tokens
        if tokens is None:
            tokens = rule.best(rule.flops_of(params=params))[1]
    elif flops is None:
        if budget.tokens is None:
            raise UsageError("nothing sets a size; give --flops, --hours, --money, --tokens or --parameters")
        flops = rule.flops_of(tokens=budget.tokens)
        params, tokens = rule.best(flops)
    else:
        params, tokens = rule.best(flops)
        if budget.tokens is not None and tokens > budget.tokens:
            params = _short_of_text(rule, flops, budget.tokens, params)
            tokens = flops / 6 / params
            notes.append(
                f"the text at hand is {rule.best(flops)[1] / budget.tokens:.1f} times too little for this compute"
            )
    if budget.served_tokens is not None:
        smaller = _served(rule, 6 * params * tokens, budget.served_tokens, budget.tokens)
        params, tokens = params * smaller, tokens / smaller
        notes.append(
            f"{smaller:.2f} times the parameters that training alone would choose, for the answers to be served"
        )
    epochs = None if budget.tokens is None else tokens / budget.tokens
    if epochs is not None and epochs > 4:
        notes.append(
            f"{epochs:.0f} epochs: beyond four, repeated text is worth much less than new (Muennighoff et al. 2023)"
        )
    loss = rule.loss(params, tokens, budget.tokens)
    if loss is None and rule.law is not None:
        notes.append(f"{rule.name}'s law does not tell what repeated text is worth, so no loss is predicted")
    if rule.is_published and params < _SMALLEST_PUBLISHED:
        notes.append("the published law stands on models of 44M parameters and more: far below, its loss means nothing")
    return Allocation(params, tokens, 6 * params * tokens, loss, epochs, tuple(notes))


def _short_of_text(rule: Rule, flops: float, unique: float, params: float) -> float:
    """The size of least loss for a compute when only `unique` different tokens are there (Muennighoff et al. 2023,
    section 5); with a law that knows nothing of repetition, the size that reads them four times."""
    if rule.law is None or rule.law.name != "chinchilla" or rule.theta is None:
        return max(params, flops / 6 / (4 * unique))
    sizes = np.geomspace(params / 30, max(params * 30, flops / 6 / unique), 4000)
    n = len(sizes)
    runs = Points(sizes, flops / 6 / sizes, np.full(n, flops), np.ones(n), np.arange(n), np.full(n, float(unique)))
    losses = REPEATED.predict(np.append(rule.theta, rule.repetition)[None], runs)[0][0]
    return float(sizes[int(np.argmin(losses))])


def _served(rule: Rule, flops: float, served: float, unique: float | None) -> float:
    """By how much smaller than without serving: of all models trained for `flops`, the one whose loss no other
    reaches with less compute for training and serving, 6 N D + 2 N S, together (Sardana and Frankle 2023, equation
    2).

    On a line of equal loss the cost is least where (6 D + 2 S) / (6 N) = (dL/dN) / (dL/dD), which with C = 6 N D
    given leaves one N. Where only `unique` different tokens are there, L is the law of repeated text.
    """
    if rule.law is None or rule.law.name != "chinchilla" or rule.theta is None:
        raise UsageError(
            "--served-tokens needs a law of the loss with a floor; plan with --law chinchilla or a fit of it"
        )
    law, theta = (rule.law, rule.theta) if unique is None else (REPEATED, np.append(rule.theta, rule.repetition))
    step = 1e-4 * np.array([[1, -1, 0, 0], [0, 0, 1, -1]])

    def root(tokens_served: float) -> float:
        def excess(log_n: float) -> float:
            log_d = math.log(flops / 6) - log_n
            params, tokens = np.exp(log_n + step[0]), np.exp(log_d + step[1])
            different = tokens if unique is None else np.full(4, unique)
            runs = Points(params, tokens, 6 * params * tokens, np.ones(4), np.arange(4), different)
            loss = law.predict(theta[None], runs)[0][0]
            by_params, by_tokens = (max(float(loss[i + 1] - loss[i]), 1e-300) for i in (0, 2))
            return math.log(by_params / by_tokens) - math.log1p(tokens_served / (3 * math.exp(log_d)))

        low, high = 0.0, math.log(flops / 6)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        return (low + high) / 2

    return math.exp(root(served) - root(0.0))


def _run(params: float, tokens: float, unique: float | None) -> Points:
    one = np.ones(1)
    unique = tokens if unique is None else min(unique, tokens)
    return Points(params * one, tokens * one, 6 * params * tokens * one, one, np.array([0]), unique * one)
