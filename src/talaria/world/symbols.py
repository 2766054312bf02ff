"""A world of symbols small enough that a model of ten thousand parameters learns some of it in a minute.

Everything is an expression, `=` and its value, or `:` and its value after the steps that lead there:

    407=C          a fact: name 407 has state C
    ~C=K  ~K=C     an opposite
    Cabf=K         three operations on a state, each a fixed shuffling of the ten states
    Cabf:DEK       the same with worked steps
    ~407=K         the opposite of what 407 has; worked ~407:CK
    407a=D         an operation on what 407 has; worked 407a:CD
    [C;a;b;#E;f;#K]   a program; # prints where it has come to

So some expressions are made of others, and `PREREQUISITES` says which. A name's plain fact is told far more often than
its opposite: that is the distractor. Half of the names stand in no composed expression, and some chains of operations
nowhere; the items ask for these. Documents and items are drawn from the seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

SYMBOLS_VERSION = "1"
"""Raised by a change of an item or a document, so that arms of the study are made again."""
STATES = "ABCDEFGHIJ"
OPERATIONS = "abcdefghij"
SEPARATOR = "\n"
ALPHABET = SEPARATOR + STATES + OPERATIONS + "0123456789=:~[];#"
"""Of every document and item; a document opens with the separator."""
MOST_STEPS = 6
CORPORA = ("whole", "no-code", "no-steps")
"""Without code, its share of the text goes to all the rest; without steps, what was worked is asked directly."""
TASKS = ("fact", "opposite", *(f"{k}-step" for k in range(1, MOST_STEPS + 1)), "hop", "negated")
PREREQUISITES: dict[str, tuple[str, ...]] = {
    **{f"{k}-step": ("1-step",) * k for k in range(2, MOST_STEPS + 1)},
    "hop": ("fact", "1-step"),
    "negated": ("fact", "opposite"),
}
"""What a composed task is made of, each as often as it is used."""
COMPOSED = tuple(PREREQUISITES)
_CODE_SHARE = 0.2
_SHARES = {"fact": 0.34, "opposite": 0.02, "steps": 0.44, "hop": 0.1, "negated": 0.1}
"""Of the documents that are not code; of those that can be worked, half are."""
_HELD_OUT_CHAINS = 200
"""Of each length from two on; no document begins with one of them."""


@dataclass(frozen=True)
class Item:
    """A question: `prompt` ends with `=` or `:`, `answer` is what follows, `wrong` other answers of the same length.

    The wrong answers to `negated` are what the plain fact suggests."""

    task: str
    prompt: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class SymbolWorld:
    """The facts, opposites and operations of one seed, and what the items keep for themselves."""

    seed: int
    facts: dict[str, str]
    """State by name, the most frequent name first."""
    opposites: dict[str, str]
    operations: dict[str, dict[str, str]]
    held_out: frozenset[str]
    """Chains, as `Cabf`."""
    composed_names: tuple[str, ...] = field(repr=False)
    """Names that documents use in composed expressions; items ask for the others."""

    def chain(self, start: str, operations: Sequence[str]) -> str:
        """The states after each operation."""
        return "".join(accumulate(operations, lambda state, one: self.operations[one][state], initial=start))[1:]


def build_symbols(seed: int, names: int = 200) -> SymbolWorld:
    """The world of a seed with 10 to 1,000 names."""
    assert 10 <= names <= 1000
    rng = random.Random(f"symbols/{seed}")
    called = [f"{number:03}" for number in rng.sample(range(1000), names)]
    facts = {name: rng.choice(STATES) for name in called}
    turned = rng.sample(STATES, len(STATES))
    pairs = list(zip(turned[::2], turned[1::2], strict=True))
    opposites = dict(pairs) | {b: a for a, b in pairs}
    operations = {one: dict(zip(STATES, rng.sample(STATES, len(STATES)), strict=True)) for one in OPERATIONS}
    chains = {
        rng.choice(STATES) + "".join(rng.choices(OPERATIONS, k=k))
        for k in range(2, MOST_STEPS + 1)
        for _ in range(_HELD_OUT_CHAINS)
    }
    # Every other name, so that both halves are told equally often.
    return SymbolWorld(seed, facts, opposites, operations, frozenset(chains), tuple(called[::2]))


def documents(world: SymbolWorld, corpus: str, seed: int) -> Iterator[str]:
    """Endless documents of one of `CORPORA`, each behind a separator."""
    assert corpus in CORPORA
    rng = random.Random(f"documents/{world.seed}/{corpus}/{seed}")
    names = list(world.facts)
    # Zipf's law, flattened at the top.
    told = list(accumulate(1 / (rank + 10) for rank in range(len(names))))
    kinds, shares = list(_SHARES), list(accumulate(_SHARES.values()))
    while True:
        if corpus != "no-code" and rng.random() < _CODE_SHARE:
            yield SEPARATOR + _program(world, rng)
            continue
        kind = rng.choices(kinds, cum_weights=shares)[0]
        worked = rng.random() < 0.5 and corpus != "no-steps"
        if kind == "fact":
            name = rng.choices(names, cum_weights=told)[0]
            yield f"{SEPARATOR}{name}={world.facts[name]}"
        elif kind == "opposite":
            state = rng.choice(STATES)
            yield f"{SEPARATOR}~{state}={world.opposites[state]}"
        elif kind == "steps":
            yield SEPARATOR + _told(_unseen_chain(world, rng), world, worked)
        else:
            name = rng.choice(world.composed_names)
            yield SEPARATOR + _told(f"~{name}" if kind == "negated" else name + rng.choice(OPERATIONS), world, worked)


def items(world: SymbolWorld, task: str, worked: bool, n: int, seed: int = 0) -> list[Item]:
    """`n` items of a task, direct or with worked steps: the same questions either way."""
    rng = random.Random(f"items/{world.seed}/{task}/{seed}")
    others = [name for name in world.facts if name not in set(world.composed_names)]
    kept = sorted(chain for chain in world.held_out if f"{len(chain) - 1}-step" == task)
    made = []
    for _ in range(n):
        if task == "fact":
            expression = rng.choice(list(world.facts))
        elif task == "opposite":
            expression = "~" + rng.choice(STATES)
        elif task == "1-step":
            expression = rng.choice(STATES) + rng.choice(OPERATIONS)
        elif task == "hop":
            expression = rng.choice(others) + rng.choice(OPERATIONS)
        elif task == "negated":
            expression = "~" + rng.choice(others)
        else:
            expression = rng.choice(kept)
        chain = _value(expression, world)
        if task == "negated":
            fact = chain[0]
            wrong = [world.opposites[fact] + fact if worked else fact]
        else:
            wrong = [_strayed(expression, chain, world, rng) for _ in range(3)]
        answers = [one if worked else one[-1] for one in [chain, *wrong]]
        made.append(Item(task, expression + (":" if worked else "="), answers[0], tuple(answers[1:])))
    return made


def can_be_worked(task: str) -> bool:
    """Whether a task's answer has steps before it."""
    return task in COMPOSED


def _told(expression: str, world: SymbolWorld, worked: bool) -> str:
    chain = _value(expression, world)
    return f"{expression}:{chain}" if worked and len(chain) > 1 else f"{expression}={chain[-1]}"


def _value(expression: str, world: SymbolWorld) -> str:
    """The states that lead to an expression's value, which is the last."""
    if expression[0] == "~":
        rest = expression[1:]
        before = "" if rest in STATES else world.facts[rest]
        return before + world.opposites[before or rest]
    if expression[0] in STATES:
        return world.chain(expression[0], expression[1:])
    start = world.facts[expression[:3]]
    return start + world.chain(start, expression[3:])


def _strayed(expression: str, chain: str, world: SymbolWorld, rng: random.Random) -> str:
    """The chain with one state mistaken, and the operations after it done rightly on that."""
    at = rng.randrange(len(chain))
    mistaken = rng.choice([state for state in STATES if state != chain[at]])
    after = expression[len(expression) - (len(chain) - 1 - at) :] if at < len(chain) - 1 else ""
    return chain[:at] + mistaken + world.chain(mistaken, after)


def _unseen_chain(world: SymbolWorld, rng: random.Random) -> str:
    """A chain that does not begin with a held-out one, whose steps would else be told on the way."""
    while True:
        chain = rng.choice(STATES) + "".join(rng.choices(OPERATIONS, k=rng.randint(1, MOST_STEPS)))
        if not any(chain[:length] in world.held_out for length in range(3, len(chain) + 1)):
            return chain


def _program(world: SymbolWorld, rng: random.Random) -> str:
    chain = _unseen_chain(world, rng)
    states, lines = world.chain(chain[0], chain[1:]), [chain[0]]
    for place, operation in enumerate(chain[1:]):
        lines.append(operation)
        if place == len(states) - 1 or rng.random() < 0.4:
            lines.append(f"#{states[place]}")
    return f"[{';'.join(lines)}]"
