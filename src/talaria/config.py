"""Recipes: a TOML file and key=value overrides in, frozen typed settings out. No torch, no room."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from talaria.errors import UsageError


class Settings(BaseModel):
    """Typed settings: frozen, an unknown key is an error, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, table: Any) -> Any:
        """TOML has no null: the string "none" is None in a field that admits it."""
        if not isinstance(table, dict):
            return table
        return {key: None if value == NONE and _admits_none(cls, key) else value for key, value in table.items()}

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, table: Any) -> Any:
        """A table given in part, as `optimizer = { learning_rate = 1e-3 }`, keeps what its field's default says of the
        rest; without this it would fall back to the defaults of its type."""
        if not isinstance(table, dict):
            return table
        defaults = {key: field.default for key, field in cls.model_fields.items()}
        return {
            key: defaults[key].model_dump(exclude_unset=True) | value
            if isinstance(value, dict) and isinstance(defaults.get(key), Settings)
            else value
            for key, value in table.items()
        }


S = TypeVar("S", bound=Settings)
NONE = "none"


def load_table(path: Path) -> dict[str, Any]:
    """Read a recipe's TOML table."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe; `talaria init FOLDER` writes one") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder, not a recipe; `talaria init {path}` writes one for it") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a recipe, a TOML file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}; save the recipe as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def apply_overrides(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `table` with each `a.b=value` set; a value is read as TOML, else taken as a string."""
    result = _copy(table)
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UsageError(f"override {override!r}: write it as table.key=value, e.g. pretrain.tokens=1000000")
        node = result
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise UsageError(f"override {override!r}: {part!r} is a value, not a table")
            node = child
        node[parts[-1]] = _parse_value(text.strip())
    return result


def resolve(model: type[S], table: dict[str, Any], origin: str) -> S:
    """Validate `table` as `model`; an error names the key, the nearest known key and `origin` (a file name)."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{origin}: {_explain(model, first)}") from None


def to_toml(settings: Settings) -> str:
    """Write settings as TOML, so that reading it back gives the same settings: a key that is None is left out where
    that is its default, and is "none" elsewhere."""
    lines: list[str] = []
    _write_table(_table(settings), (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(settings: BaseModel) -> dict[str, Any]:
    table = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            table[name] = _table(value)
        elif value is None and field.get_default(call_default_factory=True) is None:
            del table[name]
        elif value is None:
            table[name] = NONE
    return table


def _admits_none(model: type[BaseModel], key: Any) -> bool:
    field = model.model_fields.get(key)
    return field is not None and type(None) in typing.get_args(field.annotation)


def _copy(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in table.items()}


def _parse_value(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return NONE
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        pass
    if text.startswith("[") and text.endswith("]"):
        # [a, b] without quotes, as a shell leaves it: corpus.paths=[my folder/a.txt]
        return [part.strip() for part in text[1:-1].split(",") if part.strip()]
    return text


def _explain(model: type[BaseModel], error: Any) -> str:
    location = [part for part in error["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in location)
        known = _keys_at(model, parents)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*parents, near[0]])!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if error["type"] == "missing":
        return f"key {key!r} is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"key {key!r}: {message} (got {error['input']!r})" if key else message


def _keys_at(model: type[BaseModel], parents: list[str]) -> list[str]:
    """Known keys of the table that `parents` lead to."""
    for parent in parents:
        field = model.model_fields.get(parent)
        nested = _settings_in(field.annotation) if field else None
        if nested is None:
            return []
        model = nested
    return sorted(model.model_fields)


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((found for arg in typing.get_args(annotation) if (found := _settings_in(arg))), None)
    return None


def _write_table(table: dict[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    scalars = {key: value for key, value in table.items() if not isinstance(value, dict)}
    if path and (scalars or not table):
        lines += ["", f"[{'.'.join(path)}]"]
    lines += [f"{key} = {_toml_value(value)}" for key, value in scalars.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(value, (*path, key), lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    import json

    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
