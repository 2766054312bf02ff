"""Small Python programs and what they print. No program adds two two-digit numbers: those sums belong to the exam."""

from __future__ import annotations

import random

_WORDS = ("ab", "la", "go", "hi", "tic", "sun", "cat", "red")


def program(rng: random.Random) -> tuple[str, str]:
    """Return (source, output), each of a few lines."""
    word = rng.choice(_WORDS)
    n = rng.randint(2, 5)
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    big, bigger = rng.randint(1, 9) * 100, rng.randint(1, 9) * 100
    items = [rng.randint(1, 9) for _ in range(3)]
    makers = (
        lambda: (f"print({a} + {b})", str(a + b)),
        lambda: (f"print({big} + {bigger})", str(big + bigger)),
        lambda: (f"x = {a}\ny = {b}\nprint(x + y)", str(a + b)),
        lambda: (f'print("{word}" * {n})', word * n),
        lambda: (f"for i in range({n}):\n    print(i)", "\n".join(str(i) for i in range(n))),
        lambda: (f'for i in range({n}):\n    print("{word}")', "\n".join([word] * n)),
        lambda: (f"print(len({items}))", "3"),
        lambda: (f"print(max({items}))", str(max(items))),
        lambda: (f"print(sorted({items}))", str(sorted(items))),
        lambda: (f'print("{word}".upper())', word.upper()),
        lambda: (f"print({a} * {b})", str(a * b)),
        lambda: (f'name = "{word}"\nprint("hello " + name)', f"hello {word}"),
    )
    return rng.choice(makers)()
