"""What a value of a configuration may be: the types in the signatures, with their ranges, and what is said of a value
that is none.

A signature says it all (`lr: Positive`, `pool: Literal["mean", "last"]`), pydantic checks it, strictly: no "3" and no
true for a number, null where the annotation has None. A list is fine for any sequence and a whole number for any
number. Values are checked, never changed.
"""

from __future__ import annotations

import difflib
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf

# Upper limits stand where more could only be a slip, and would take hours or all the memory before it showed.
Count = Annotated[int, Ge(1), Le(10**9)]
Natural = Annotated[int, Ge(0), Le(10**9)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Width = Annotated[int, Ge(1), Le(2**17)]  # of a layer, or tokens side by side
Even = Annotated[int, Ge(4), Le(2**17), MultipleOf(2)]
Channels = Annotated[int, Ge(8), Le(2**14), MultipleOf(8)]  # GroupNorm's groups are eight
Depth = Annotated[int, Ge(1), Le(1000)]  # layers, steps of a window, or processes
Steps = Annotated[int, Ge(1), Le(10**5)]  # of a sampler
Edge = Annotated[int, Ge(8), Le(2**13)]  # of an image, in pixels
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]
Inside = Annotated[float, Gt(0), Lt(1)]
Name = Annotated[str, MinLen(1)]
Names = Annotated[Sequence[Name], MinLen(1)]
Extent = tuple[Edge, Edge]  # height and width
Extents = Extent | Mapping[Name, Extent]  # of all cameras, or camera → its own

WORDS = {int: "whole number", float: "number", str: "text", Any: "value"}


def check_values(target: Any, given: Mapping[str, Any], where: str) -> None:
    """`ValueError` for the first value in `given` that the signature of `target` (a class or function) does not take.

    where: the key of the node, for messages; "" for the root. What has no annotation, or one that no configuration can
    hold, is not looked at.
    """
    kinds = _kinds(target)
    for name, value in given.items():
        if name in kinds:
            check(kinds[name], value, f"{where}.{name}" if where else name)


def check(kind: Any, value: Any, key: str) -> None:
    """`ValueError` that names the key, what was found and what is expected, where `value` is not of the type `kind`."""
    nodes = [one for one in (kind, *get_args(kind)) if is_typeddict(one)]  # or null
    if len(nodes) == 1 and isinstance(value, Mapping):
        _check_members(nodes[0], value, key)
    elif _adapter(kind)(value):
        raise ValueError(f"{key}={shown(value)}: expected {expected(kind)}{_near(kind, value)}")


def _check_members(kind: Any, node: Mapping[str, Any], key: str) -> None:
    members = get_type_hints(kind, include_extras=True)
    for name in node:
        if name not in members:
            raise ValueError(
                f"nothing reads {key}.{name}={shown(node[name])}{did_you_mean(name, list(members))}; valid: "
                f"{', '.join(members)}"
            )
    for name, member in members.items():
        if name in node:
            check(member, node[name], f"{key}.{name}")
        elif name in kind.__required_keys__:
            raise ValueError(f"{key}.{name} is missing")


def value_in(node: Any, key: str) -> Any:
    """What stands under a key of a node that nobody has checked yet; None where there is none."""
    return node.get(key) if isinstance(node, Mapping) else None


def shown(value: Any) -> str:
    """A value as an error shows it: as in YAML, and not longer than a line."""
    text = (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else repr(value)
    )
    return text if len(text) <= 80 else f"{text[:77]}..."


@cache
def _kinds(target: Any) -> dict[str, Any]:
    """Parameter → its type."""
    try:
        return get_type_hints(
            inspect.getattr_static(target, "__init__") if isinstance(target, type) else target, include_extras=True
        )
    except (NameError, TypeError, AttributeError):  # somebody's class with names that do not exist at run time
        return {}


def _adapter(kind: Any) -> Callable[[Any], bool]:
    try:
        return _cached(kind)
    except TypeError:  # not hashable
        return _cached.__wrapped__(kind)


@cache
def _cached(kind: Any) -> Callable[[Any], bool]:
    """Whether a value is wrong for a type. As JSON, because strict there means what it should: lists are fine for
    tuples, true is no 1.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))
    except PydanticUserError:
        return lambda value: False

    def wrong(value: Any) -> bool:
        try:
            adapter.validate_json(json.dumps(value, default=str))
        except ValidationError as error:
            return not any(found["type"] == "needs_python_object" for found in error.errors())
        return False

    return wrong


def expected(kind: Any, many: bool = False) -> str:
    """A type in words. many: in the plural."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _ranged(inside[0], inside[1:], many)
    if origin is Literal:
        names = ", ".join(shown(choice) if not isinstance(choice, str) else choice for choice in inside)
        return f"one of: {names}" if len(inside) > 1 else names
    if origin in (Union, types.UnionType):
        return _either(inside, many)
    if kind is type(None) or kind is None:
        return "null"
    if kind is bool:
        return "true or false"
    if is_typeddict(kind):
        return f"a node with {' and '.join(get_type_hints(kind))}"
    if kind in WORDS:
        return f"{WORDS[kind]}s" if many else f"a {WORDS[kind]}"
    if origin is tuple and Ellipsis not in inside:
        return f"{'lists' if many else 'a list'} of {len(inside)} {expected(inside[0], True)}"
    if origin in (list, tuple, Sequence) or kind in (list, tuple, Sequence):
        return f"{'lists' if many else 'a list'}" + (f" of {expected(inside[0], True)}" if inside else "")
    if origin in (dict, Mapping) or kind in (dict, Mapping):
        return f"{'nodes' if many else 'a node'}" + (
            f" of {expected(inside[1], True)}" if inside and inside[1] is not Any else ""
        )
    return str(getattr(kind, "__name__", kind))


def _ranged(kind: Any, marks: Sequence[Any], many: bool) -> str:
    found = {type(mark): mark for mark in marks}
    bounds = [f"of at least {found[Ge].ge:g}"] if Ge in found else []
    bounds += [f"above {found[Gt].gt:g}"] if Gt in found else []
    bounds += [f"below {found[Lt].lt:g}"] if Lt in found else []
    if Ge in found and Le in found:
        bounds = [f"from {found[Ge].ge:,} to {found[Le].le:,}"]
    elif Le in found:
        bounds += [f"of at most {found[Le].le:g}"]
    if MultipleOf in found:
        bounds += [f"divisible by {found[MultipleOf].multiple_of}"]
    if MinLen in found and kind is str:
        return "names" if many else "a name"
    noun = expected(kind, many)
    if MinLen in found:
        return f"{noun} (at least one)"
    return " ".join([noun, " and ".join(bounds)]) if bounds else noun


def _either(kinds: Sequence[Any], many: bool) -> str:
    choices: list[Any] = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    others = [kind for kind in kinds if get_origin(kind) is not Literal]
    if choices and others == [type(None)]:
        return expected(Literal[(*choices, None)])
    parts = ([expected(Literal[tuple(choices)])] if choices else []) + [expected(kind, many) for kind in others]
    return ", or ".join(parts)


def choices(kind: Any) -> list[str]:
    """The names that a type consists of; empty where it is of another sort."""
    if get_origin(kind) is Literal:
        return [choice for choice in get_args(kind) if isinstance(choice, str)]
    return (
        [name for part in get_args(kind) for name in choices(part)]
        if get_origin(kind) in (Union, types.UnionType)
        else []
    )


def _near(kind: Any, value: Any) -> str:
    return did_you_mean(value, choices(kind)) if isinstance(value, str) else ""


def did_you_mean(found: Any, valid: Sequence[str]) -> str:
    """`; did you mean …?` where one of the valid names is near."""
    close = difflib.get_close_matches(str(found), valid, 1)
    return f"; did you mean {close[0]}?" if close else ""
