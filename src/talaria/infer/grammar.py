"""What an answer may spell: a JSON schema or a regex in; out, before each token, the ids that keep to it.

    grammar = Grammars(tokenizer).begin(Sampling(json_schema={"type": "object"}))     # None where nothing is asked for
    allowed_V = grammar.allowed()          # before a token is chosen
    grammar.accept(token)                  # after

llguidance does the work, over the bytes of our tokens, so a character may span two of them. Control tokens are never
allowed; those that end an answer are, where what stands there is complete. JSON comes on one line, with at most one
space after a comma or a colon: white space without bound is where a small model would lose itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property, lru_cache
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talaria.errors import UserError
from talaria.infer.contract import Sampling
from talaria.tokens.tokenizer import Tokenizer

# What a request may cost: a second of building at worst and some ten megabytes. Data models take a hundredth of it.
LONGEST = 100_000
_FUEL = 100_000
_MOST_STATES = 10_000
# Divisibility is an automaton with as many states as the divisor, which llguidance builds without counting.
_LARGEST_MULTIPLE = 10_000
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?", "lenient": False}


class Grammar:
    """One answer's place in its grammar. Raises UserError where it cannot go on, and stays so."""

    def __init__(self, matcher: Any, name: str, barred: list[int], n_vocab: int, device: torch.device) -> None:
        self._matcher, self._name, self._barred = matcher, name, barred
        self._n_vocab, self._device = n_vocab, device

    def allowed(self) -> Tensor:
        """Bool (V,): the ids that may come next. Raises UserError where there is none, or where the grammar has grown
        beyond its limits."""
        bits = self._matcher.compute_bitmask()
        error = self._matcher.get_error()
        if error and not error.startswith("NoExtension"):
            raise UserError(f"{self._name}: {_told(error)}; simplify it")
        allowed_V = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: self._n_vocab].view(np.bool_)
        allowed_V[self._barred] = False
        if error or not allowed_V.any():
            raise UserError(f"{self._name}: no token of this model can go on here; change it, or logit_bias")
        return torch.from_numpy(allowed_V).to(self._device)

    def accept(self, token: int) -> None:
        """Move on by a token that was allowed."""
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing may follow."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())


class Grammars:
    """The grammars of one tokenizer; the latest are kept. For any thread, unlike the engine."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device | None = None) -> None:
        self._tokenizer, self._device = tokenizer, device or torch.device("cpu")
        self._matcher = lru_cache(maxsize=16)(self._build)

    def begin(self, sampling: Sampling) -> Grammar | None:
        """The grammar of a new answer; None where the sampling asks for none. Raises UserError for a schema or a regex
        that is wrong, not supported or too costly, and where llguidance is not installed."""
        if sampling.regex is not None:
            name, text = "regex", sampling.regex
        elif sampling.json_schema is not None:
            name, text = "json_schema", _schema_text(sampling.json_schema)
        else:
            return None
        if len(text) > LONGEST:
            raise UserError(f"{name}: is {len(text)} characters long; give at most {LONGEST}")
        barred = [token for token, bias in sampling.logit_bias.items() if bias == float("-inf")]
        matcher = self._matcher(name, text).deep_copy()
        return Grammar(matcher, name, barred, self._tokenizer.vocab_size, self._device)

    def _build(self, name: str, text: str) -> Any:
        llguidance = _llguidance()
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=_FUEL, step_lexer_fuel=_FUEL, max_lexer_states=_MOST_STATES, verbose_errors=False
        )
        try:
            if name == "regex":
                grammar = llguidance.LLMatcher.grammar_from_regex(text)
            else:
                grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_ONE_LINE)
        except ValueError as error:
            raise UserError(f"{name}: {_told(str(error))}; mend it") from None
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise UserError(f"{name}: {_told(matcher.get_error())}; mend it")
        # What is too large often shows only here, and a first mask is the same for every answer.
        Grammar(matcher, name, [], self._tokenizer.vocab_size, torch.device("cpu")).allowed()
        return matcher

    @cached_property
    def _vocabulary(self) -> Any:
        """llguidance's view of the tokenizer."""
        llguidance = _llguidance()
        wrapper = llguidance.TokenizerWrapper(_Spellings(self._tokenizer))
        return llguidance.LLTokenizer(wrapper, eos_token=_ends(self._tokenizer))


class _Spellings:
    """The tokenizer with the names that llguidance asks for; a token without text is special to it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        ends = _ends(tokenizer)
        n_tokens = max(tokenizer.vocab_size, 1 + max(ends))
        spelled = [
            b"" if id in ends or id >= tokenizer.vocab_size else tokenizer.token_bytes(id) for id in range(n_tokens)
        ]
        self.tokens = [data or b"<%d>" % id for id, data in enumerate(spelled)]
        self.special_token_ids = [id for id, data in enumerate(spelled) if not data]
        self.eos_token_id = ends[0]
        self.bos_token_id = None

    def __call__(self, text: str | bytes) -> list[int]:
        """How the tokenizer cuts a text that must come next."""
        data = text.encode() if isinstance(text, str) else text
        try:
            return self._tokenizer.encode(data.decode())
        except UserError:  # characters that a character tokenizer has not: no way to spell them
            return []


def _ends(tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer; where there is none, one that no logit has."""
    return sorted(tokenizer.stop_ids) or [tokenizer.vocab_size]


def _schema_text(schema: Mapping[str, Any]) -> str:
    """The schema as JSON. Raises UserError for what is no JSON and for divisors that would take too long."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"json_schema: is no JSON ({error}); give a schema as json.loads returns it") from None
    if '"multipleOf"' in text:
        multiple = lcm(*_multiples(schema))
        if multiple > _LARGEST_MULTIPLE:
            raise UserError(f"json_schema: multipleOf {multiple} takes too long; at most {_LARGEST_MULTIPLE} together")
    return text


def _multiples(schema: Any) -> list[int]:
    """Every multipleOf in a schema, as a whole number of its last decimal place."""
    if isinstance(schema, list | tuple):
        return [multiple for part in schema for multiple in _multiples(part)]
    if not isinstance(schema, Mapping):
        return []
    found = [multiple for part in schema.values() for multiple in _multiples(part)]
    divisor = schema.get("multipleOf")
    if isinstance(divisor, int | float) and divisor > 0:
        found.append(int("".join(map(str, Decimal(repr(divisor)).as_tuple().digits))) or 1)
    return found


def _told(error: str) -> str:
    """The one line of llguidance's message that says what is wrong."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    line = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "cannot be used")
    return line.removeprefix("error:").strip()[:300]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError("constrained answers need llguidance: pip install 'talaria-lm[serve]'") from None
    return llguidance
