"""JSON values as frozen dataclasses, with every type checked.

Owns: the mapping (objects as dataclasses or dictionaries, lists as tuples) and its messages. Must not know what the
dataclasses mean.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from qwen3moe_plugins.errors import InputError, name_list


def from_json(hint: Any, value: Any, file: str, remedy: str, path: str = "") -> Any:
    """The JSON `value` as the type `hint`; `path` names it within `file`, and `remedy` ends the message of InputError.

    An object must have exactly the fields of its dataclass; those with a default may be absent.
    """
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(value, dict):
        return _dataclass(hint, value, file, remedy, path)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(args[0], item, file, remedy, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: from_json(args[1], item, file, remedy, f"{path}.{name}") for name, item in value.items()}
    allowed = {int, float} if hint is float else set(args) if origin is UnionType else {hint}
    if type(value) not in allowed:
        got, expected = type(value).__name__, getattr(hint, "__name__", str(hint))
        raise InputError(f"{file}: {path}" if path else file, got=got, expected=expected, remedy=remedy)
    return value


def _dataclass(cls: Any, values: dict[str, Any], file: str, remedy: str, path: str) -> Any:
    hints, defaults = get_type_hints(cls), {field.name for field in fields(cls) if field.default is not MISSING}
    unknown, missing = set(values) - set(hints), set(hints) - defaults - set(values)
    if unknown or missing:
        got = f"unknown {name_list(unknown)}" if unknown else f"no {name_list(missing)}"
        expected = f"the fields {', '.join(hints)}"
        raise InputError(f"{file}: {path}" if path else file, got=got, expected=expected, remedy=remedy)
    prefix = f"{path}." if path else ""
    return cls(**{name: from_json(hints[name], value, file, remedy, prefix + name) for name, value in values.items()})
