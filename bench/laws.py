"""Planted laws: how often the interval of a fitted coefficient holds the true one; and how long a large fit takes.

    python bench/laws.py --simulations 200             # coverage of 80 % intervals, law by law
    python bench/laws.py --envelopes                   # the envelope's exponent where other laws are the truth
    python bench/laws.py --speed                       # 1,000 points, 1,000 bootstrap draws
    python bench/laws.py --open-lm DATA/scaling/mlfoundations_scaling/runs_tidy.csv    # large runs from small ones

Runs are drawn as a careful person would place them: sizes over three decades, tokens over three, loss with log-normal
noise. The binomial error beside a coverage is two standard errors at 80 %.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np

from talaria.errors import UserError
from talaria.scaling.envelope import fit_envelope
from talaria.scaling.fit import fit_law
from talaria.scaling.isoflop import fit_isoflop
from talaria.scaling.laws import LAWS
from talaria.scaling.least_squares import minimise_from_grid
from talaria.scaling.points import Array, Points, read_points

TRUE = {
    "chinchilla": [math.log(482.01), math.log(2085.43), math.log(1.8172), 0.3478, 0.3658],
    "kaplan": [math.log(6.4e13), math.log(1.8e13), 0.076, 0.103],
    "repeated": [math.log(521), math.log(1488), math.log(1.87), 0.353, 0.353, math.log(15.39), math.log(5.31)],
    "broken": [math.log(1.7), math.log(80.0), 0.08, 0.15, math.log(3e19), math.log(0.5)],
}
"""Besiroglu et al. 2024; Kaplan et al. 2020, table 2; Muennighoff et al. 2023, appendix A; the last is invented."""


def planted(law: str, n: int, noise: float, seed: int) -> Points:
    """`n` runs of a law with its true coefficients, the noise being the standard deviation of the log-loss."""
    generator = np.random.default_rng(seed)
    params = np.exp(generator.uniform(math.log(2e7), math.log(2e10), n))
    tokens = np.exp(generator.uniform(math.log(4e8), math.log(4e11), n))
    unique = tokens / np.exp(generator.choice([0.0, 1.0], n) * generator.uniform(0, math.log(60), n))
    points = Points(params, tokens, 6 * params * tokens, np.ones(n), np.arange(2, n + 2), unique)
    log_loss = LAWS[law].predict(np.array([TRUE[law]]), points)[0][0]
    return Points(**(vars(points) | {"loss": np.exp(log_loss + noise * generator.standard_normal(n))}))


def planted_isoflop(noise: float, seed: int) -> Points:
    """Nine budgets of nine sizes around the best; a parabola in log N, so that N = 0.09 C^0.5 is exact."""
    generator = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(6e18, 3e21, 9), 9)
    log_n = np.log(0.09 * np.sqrt(flops)) + np.tile(np.linspace(-1.5, 1.5, 9), 9) + 0.1 * np.sin(np.log(flops))
    best = np.log(0.09 * np.sqrt(flops))
    loss = (1.8 + 0.05 * (log_n - best) ** 2) * np.exp(noise * generator.standard_normal(len(flops)))
    return _points(np.exp(log_n), flops, loss)


def loss_of(truth: str, params: Array, flops: Array) -> Array:
    """By the law of `chinchilla` with alpha = beta, whose best size goes as C^0.5; or with others, by Kaplan's, or with
    a third more loss while few tokens have been read."""
    tokens = flops / 6 / params
    if truth == "kaplan":
        loss: Array = ((6.4e13 / params) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103
        return loss
    if truth == "unequal":
        return 1.8 + 480 / params**0.30 + 950 / tokens**0.38
    even = 1.8 + 480 / params**0.35 + 950 / tokens**0.35
    return even * (1 + 0.3 * np.exp(-tokens / 3e9)) if truth == "late" else even


def planted_envelope(
    noise: float, seed: int, truth: str = "even", n_sizes: int = 14, n_budgets: int = 40, correlation: float = 0.0
) -> Points:
    """Curves of sizes over the same budgets; errors along a curve may correlate from row to row."""
    generator = np.random.default_rng(seed)
    sizes, budgets = np.geomspace(3e7, 3e9, n_sizes), np.geomspace(1e18, 1e21, n_budgets)
    params, flops = (grid.ravel() for grid in np.meshgrid(sizes, budgets, indexing="ij"))
    errors = generator.standard_normal((n_sizes, n_budgets))
    for row in range(1, n_budgets):
        errors[:, row] = correlation * errors[:, row - 1] + math.sqrt(1 - correlation**2) * errors[:, row]
    return _points(params, flops, loss_of(truth, params, flops) * np.exp(noise * errors.ravel()))


ENVELOPES = [  # truth, noise, sizes, budgets, correlation
    ("even", 0.01, 14, 40, 0.0),
    ("even", 0.01, 14, 40, 0.8),
    ("even", 0.003, 14, 40, 0.0),
    ("unequal", 0.01, 14, 40, 0.0),
    ("kaplan", 0.01, 14, 40, 0.0),
    ("kaplan", 1e-6, 14, 40, 0.0),
    ("late", 0.01, 14, 40, 0.0),
    ("late", 1e-6, 14, 40, 0.0),
    ("even", 0.003, 7, 12, 0.0),
    ("even", 0.003, 5, 6, 0.0),
]


def tell_envelopes(seeds: range, draws: int) -> None:
    """Markdown, a row of each of `ENVELOPES` as it is done. The truth is the line through the law's own best
    sizes at the budgets that the envelope has."""
    print("| curves | truth | lowest as they are: mean, rms | told: mean, rms | its 80 % hold | width |")
    print("|---|---|---|---|---|---|")
    between = np.geomspace(3e6, 3e10, 4000)
    for truth, noise, n_sizes, n_budgets, correlation in ENVELOPES:
        rows = []
        for seed in seeds:
            points = planted_envelope(noise, seed, truth, n_sizes, n_budgets, correlation)
            try:
                fit, found = fit_envelope(points, draws, seed)
            except UserError:
                continue
            budgets = np.exp(found[:, 0])
            best = between[np.argmin(loss_of(truth, between[:, None], budgets[None]), axis=0)]
            exact, plain = (np.polyfit(found[:, 0], size, 1)[0] for size in (np.log(best), found[:, 1]))
            rows.append((exact, plain, fit.coefficients["a"], *fit.interval("a", 0.8)))
        exact, plain, told, low, high = np.array(rows).T
        off = [math.sqrt(float(np.mean((values - exact) ** 2))) for values in (plain, told)]
        print(
            f"| {truth}, {n_sizes} x {n_budgets}, noise {100 * noise:g} %, correlation {correlation:g}, {len(rows)} "
            f"seeds | {exact.mean():.3f} | {plain.mean():.3f}, {off[0]:.3f} | {told.mean():.3f}, {off[1]:.3f} | "
            f"{100 * np.mean((low <= exact) & (exact <= high)):.0f} % | {np.mean(high - low):.3f} |",
            flush=True,
        )


def _points(params: Array, flops: Array, loss: Array) -> Points:
    return Points(params, flops / 6 / params, flops, loss, np.arange(2, len(loss) + 2))


def coverage(law: str, n: int, noise: float, seeds: range, draws: int) -> dict[str, int]:
    """How many simulations have each coefficient inside its 80 % interval."""
    inside: dict[str, int] = {}
    for seed in seeds:
        if law == "isoflop":
            fit, truth = fit_isoflop(planted_isoflop(noise, seed), draws, seed)[0], {"a": 0.5}
        elif law == "envelope":
            fit, truth = fit_envelope(planted_envelope(noise, seed), draws, seed)[0], {"a": 0.5}
        else:
            fit = fit_law(law, planted(law, n, noise, seed), draws, seed)
            truth = {name: float(v[0]) for name, v in LAWS[law].coefficients(np.array([TRUE[law]])).items()}
        for name, true in truth.items():
            low, high = fit.interval(name, 0.8)
            inside[name] = inside.get(name, 0) + (low <= true <= high)
    return inside


LOSS = "loss|eval_data/c4_val/shard-{0000000..0000010}.tar"


def open_lm(path: Path, draws: int) -> None:
    """For each data set, fit the runs of at most 1/30 of the largest run's compute, and predict the larger ones;
    beside it the authors' law (Gadre et al. 2024, equation 4: Chinchilla's with alpha = beta) fitted to the same
    runs."""
    names = {"loss": LOSS, "params_non_embedding": "params_no_embed"}
    points = read_points(path, ("params", "tokens", "loss"), names)
    sets = np.array([line.split(",")[1] for line in path.read_text().splitlines()[1:]])
    for name in dict.fromkeys(sets.tolist()):
        ours = points.take(sets == name)
        limit = ours.flops.max() / 30
        small, large = ours.take(ours.flops <= limit), ours.take(ours.flops > limit)
        fit = fit_law("chinchilla", small, draws)
        theta = tied(small)
        print(f"{name}: {len(small)} runs up to {small.flops.max():.2g} FLOPs")
        for n, d, flops, loss in zip(large.params, large.tokens, large.flops, large.loss, strict=True):
            value, low, high = fit.predict_loss(n, d, 0.8)
            authors = float(np.exp(LAWS["chinchilla"].predict(theta[None], one(n, d))[0][0, 0]))
            print(
                f"  {n / 1e9:.2f}B on {d / 1e9:.0f}B tokens ({flops / small.flops.max():.0f}x): loss {loss:.3f}, "
                f"predicted {value:.3f} "
                f"({low:.3f} to {high:.3f}), {100 * (value / loss - 1):+.1f} %; alpha = beta "
                f"{100 * (authors / loss - 1):+.1f} %"
            )


def tied(points: Points) -> Array:
    """Chinchilla's law with alpha = beta: theta of five numbers."""

    def model(theta: Array) -> tuple[Array, Array]:
        value, slopes = LAWS["chinchilla"].predict(np.concatenate([theta, theta[:, 3:]], axis=1), points)
        return value, np.concatenate([slopes[:, :3], slopes[:, 3:4] + slopes[:, 4:5]], axis=1)

    starts = np.unique(LAWS["chinchilla"].starts(points)[:, :4], axis=0)
    theta, _ = minimise_from_grid(model, starts, np.log(points.loss))
    return np.append(theta, theta[3])


def one(params: float, tokens: float) -> Points:
    n, d = np.array([params]), np.array([tokens])
    return Points(n, d, 6 * n * d, np.ones(1), np.array([2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first simulation")
    parser.add_argument("--laws", nargs="+", default=["chinchilla", "kaplan", "isoflop", "envelope"])
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--envelopes", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--open-lm", type=Path)
    options = parser.parse_args()
    if options.open_lm:
        open_lm(options.open_lm, options.draws)
        return
    if options.envelopes:
        tell_envelopes(range(options.first, options.first + options.simulations), options.draws)
        return
    if options.speed:
        for law in options.laws:
            if law in TRUE:
                points = planted(law, 1000, options.noise, 0)
                start = time.perf_counter()
                fit_law(law, points, draws=1000)
                print(f"{law}: 1,000 points, 1,000 draws: {time.perf_counter() - start:.1f} s")
        return
    error = 2 * math.sqrt(0.8 * 0.2 / options.simulations)
    print(
        f"{options.simulations} simulations, {options.points} points, noise {options.noise}, seeds {options.first} to "
        f"{options.first + options.simulations - 1}"
    )
    print(f"expected 80 % +- {100 * error:.1f}")
    for law in options.laws:
        start = time.perf_counter()
        seeds = range(options.first, options.first + options.simulations)
        inside = coverage(law, options.points, options.noise, seeds, options.draws)
        told = ", ".join(f"{name} {100 * count / options.simulations:.1f}" for name, count in inside.items())
        print(f"{law}: {told}  ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
