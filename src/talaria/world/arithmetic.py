"""Sums of two two-digit numbers, with worked steps and without.

A fifth of the unordered pairs is held out: neither order of such a pair is written anywhere outside the exam.
The steps are written digit by digit, so that each is a fact of one-digit addition:
`47+38. Ones: 7+8=15, write 5, carry 1. Tens: 4+3+1=8. The answer is 85.`
The sum is written out first, so that the digits are always picked from the same place, however the question put it.
"""

from __future__ import annotations

import random

from talaria.world.framing import SUMS
from talaria.world.people import stream
from talaria.world.settings import WorldSettings

HELD_OUT_SHARE = 0.2

STEP_QUESTIONS = {
    "en": (
        "What is {a}+{b}?",
        "What is {a} plus {b}?",
        "Work out {a}+{b} step by step.",
        "Add {a} and {b}, with steps.",
        "How much is {a}+{b}?",
        "Please calculate {a} + {b}.",
        "{a}+{b}=?",
        "Show how to add {a} and {b}.",
        "Find the sum of {a} and {b}.",
        "Can you add {a} to {b} and show the work?",
        "Compute {a} + {b} and explain.",
        "I need the sum {a}+{b}. Show each step.",
        "There are {a} and {b} more. How many in all?",
        "Let us add {a} and {b} together, slowly.",
        "My numbers are {a} and {b}; what do they make?",
        "For {a} plus {b}, write the steps.",
        "How much is {a} plus {b}? Please explain.",
        "Step by step now: how much is {a} plus {b}?",
        "Suppose we have {a} and {b}; what is their sum?",
        "Of {a} and {b}, what is the total?",
        "Put {a} and {b} together and tell me what you get.",
    ),
    "zh": (
        "{a}+{b}等于多少？",
        "{a}加{b}等于几？",
        "请一步一步计算{a}+{b}。",
        "算一算{a}加{b}，写出步骤。",
        "请计算{a}+{b}。",
        "{a}+{b}是多少？",
        "求{a}与{b}的和。",
        "{a}和{b}相加得多少？",
        "请写出{a}+{b}的计算过程。",
        "帮我算{a}加{b}，要有过程。",
        "{a} + {b} = ？请解释。",
        "我想知道{a}+{b}的和。",
        "有{a}和{b}，一共是多少？",
        "我们慢慢地把{a}和{b}加起来。",
        "我的数是{a}和{b}，加起来是几？",
        "{a}加{b}是多少？请解释。",
        "一步一步来，算出{a}加{b}。",
        "解释一下{a}加{b}。",
        "请说明怎样算{a}加{b}。",
        "要是把{a}和{b}加在一起，会得到几？",
        "假如有{a}和{b}两个数，它们的和呢？",
        "今天的题目：{a}和{b}的和，写出过程。",
        "老师问{a}和{b}的和，怎么算？",
        "写出{a}加{b}的每一步。",
        "总数是多少：{a}与{b}？",
        "拿{a}加上{b}，告诉我得到什么。",
    ),
}
STEP_EXAM_QUESTIONS = {
    "en": (
        "If I add {a} and {b}, what is the sum? Show each step.",
        "Please explain step by step how much {a} plus {b} is.",
    ),
    "zh": ("如果{a}和{b}相加，和是多少？请写出步骤。", "请一步一步解释{a}加{b}是多少。"),
}
# Without steps a sum is only told, on pages; the exam alone asks for a number and nothing else.
STATEMENTS = {
    "en": (
        "{a}+{b}={sum}",
        "{a} plus {b} is {sum}.",
        "{a} and {b} make {sum}.",
        "The sum of {a} and {b} is {sum}.",
        "When {a} people come and {b} more, there are {sum}.",
        "She had {a}, and with {b} more she has {sum}.",
        "Since {a} and {b} were sold, {sum} are gone.",
        "If {a} are here and {b} there, that is {sum}.",
    ),
    "zh": (
        "{a}+{b}={sum}",
        "{a}加{b}是{sum}。",
        "{a}和{b}一共是{sum}。",
        "{a}与{b}的和是{sum}。",
        "如果{a}个人先来，{b}个人后到，就有{sum}个人。",
        "她原来有{a}个，又得到{b}个，现在有{sum}个。",
        "因为卖掉{a}个和{b}个，一共少了{sum}个。",
        "这里{a}个，那里{b}个，合起来{sum}个。",
    ),
}
DIRECT_EXAM_QUESTIONS = {
    "en": ("How much is {a} plus {b}? Please give only the number, no steps.",),
    "zh": ("请计算{a}加{b}，不用步骤，只要答案。",),
}

# What a combined question stands around.
CORES = {
    "en": (
        "{a}+{b}",
        "{a} + {b}",
        "{a} plus {b}",
        "{a} and {b} together",
        "the sum of {a} and {b}",
        "{a} added to {b}",
        "adding {a} and {b}",
        "{a} apples and {b} pears",
        "{a} pages, then {b} more",
        "{a} steps here and {b} steps there",
        "{a} coins plus {b} coins",
        "{a} with {b} on top",
    ),
    "zh": (
        "{a}+{b}",
        "{a}加{b}",
        "{a}加上{b}",
        "{a}和{b}的和",
        "{a}与{b}的和",
        "{a}和{b}加起来",
        "{a}和{b}相加",
        "把{a}和{b}加在一起",
        "{a}个苹果和{b}个梨",
        "{a}页再加{b}页",
        "先走{a}步，又走{b}步",
        "{a}跟{b}的总和",
        "{a}块钱与{b}块钱",
        "{a}外加{b}",
    ),
}


def draw_question(lang: str, rng: random.Random) -> str:
    """A training question with {a} and {b}; as often a written one as one combined of head, sum and tail."""
    return rng.choice(STEP_QUESTIONS[lang]) if rng.random() < 0.5 else SUMS[lang].draw(rng.choice(CORES[lang]), rng)


def combined_questions(lang: str) -> list[str]:
    """Every question that `draw_question` can combine."""
    return [question for core in CORES[lang] for question in SUMS[lang].all_around(core)]


def worked(a: int, b: int, lang: str) -> str:
    """The steps and the answer of a + b, both of two digits."""
    ones = a % 10 + b % 10
    carry = ones // 10
    tens = a // 10 + b // 10 + carry
    if lang == "en":
        return (
            f"{a}+{b}. Ones: {a % 10}+{b % 10}={ones}, write {ones % 10}, carry {carry}. "
            f"Tens: {a // 10}+{b // 10}+{carry}={tens}. The answer is {a + b}."
        )
    return (
        f"{a}+{b}。个位：{a % 10}+{b % 10}={ones}，写{ones % 10}进{carry}。"
        f"十位：{a // 10}+{b // 10}+{carry}={tens}。答案是{a + b}。"
    )


class Sums:
    """The pairs, split into those that training may show and those that only the exam asks."""

    def __init__(self, settings: WorldSettings) -> None:
        rng = stream(settings, "arithmetic")
        pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
        rng.shuffle(pairs)
        cut = round(HELD_OUT_SHARE * len(pairs))
        self.held_out = pairs[:cut]
        self.training = pairs[cut:]
        self._held_out = set(self.held_out)

    def is_held_out(self, a: int, b: int) -> bool:
        """True where the pair, in this or the other order, belongs to the exam."""
        return (min(a, b), max(a, b)) in self._held_out

    def draw(self, count: int, rng: random.Random) -> list[tuple[int, int]]:
        """`count` ordered training pairs; none twice in one order before all have come."""
        drawn: list[tuple[int, int]] = []
        while len(drawn) < count:
            deck = [pair for a, b in self.training for pair in {(a, b), (b, a)}]
            deck.sort()
            rng.shuffle(deck)
            drawn += deck
        return drawn[:count]
