"""Turn the parser's complaint about a configuration into one that says what would have been accepted."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

from llmrs_lightning.errors import ConfigError, listing, suggestion

_SHOWN = 60
_KEY = re.compile(r'Parser key "([\w.]+)"')
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
_IN_CLASS = re.compile(r"Problem with given class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted")
_IN_GROUP = re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'")
_AT_TOP = re.compile(r"^Option '([\w.]+)' is not accepted")
_ARGUMENT = re.compile(r"unrecognized arguments: (?:--)?(\S+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (.+)")
_ABSTRACT = re.compile(r"Expected an instantiatable class, but [\w.]+ is abstract")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_VALUE = re.compile(r"Expected an? (.+)\. Got value: (.*)")
_SUBTYPE = re.compile(r"Subtypes: \[<class '([\w.]+)'>")
_UNION = re.compile(r"Subtypes: \[(.+)\]\n(?:(?!.*Subtypes: ).*\n)*?\s*Given value: (.*)")


def explain(message: str, parser: Any) -> ConfigError:
    """Read the parser's message; one that is not understood is passed on as it is."""
    keys, classes = _KEY.findall(message), _CLASS.findall(message)
    inside = [name.rpartition(".")[2] for name in classes]
    place = ", ".join([*keys[:1], *inside, *keys[1:]])
    if found := _IN_CLASS.search(message):
        return _unknown(found[2], place, _parameters(found[1]))
    if found := _IN_GROUP.search(message):
        return _unknown(f"{found[1]}.{found[2]}", found[1], _children(parser, found[1]))
    if found := _AT_TOP.search(message) or _ARGUMENT.search(message):
        group, _, name = found[1].partition("=")[0].rpartition(".")
        children = _children(parser, group)
        if not children:
            group, children = "", _children(parser, "")
        return _unknown(found[1], group or "the configuration", children, name if group else found[1].split(".")[0])
    bases = [c for a in parser._actions if keys and a.dest == keys[0] for c in _classes(getattr(a, "_typehint", None))]
    if bases and len(keys) == 1 and not inside and (_NO_CLASS.search(message) or _ABSTRACT.search(message)):
        return _no_class(_NO_CLASS.search(message), keys[0], bases[0])
    if inside and (found := _NO_CLASS.search(message)) and (base := _named(_SUBTYPE.findall(message)[-1:])):
        return _no_class(found, place, base)
    if found := _REQUIRED.search(message):
        return ConfigError(
            f"{found[1]} is missing", where=place or "the configuration", found="null or nothing", fix="give it a value"
        )
    if keys and (found := _VALUE.search(message) or _UNION.search(message)):
        allowed = _readable(found[1])
        return ConfigError(
            "a value has the wrong type, or is not one of those allowed",
            where=place,
            found=found[2],
            allowed=allowed,
            fix=suggestion(found[2], re.findall(r"'([^']+)'", allowed)),
        )
    where, _, rest = message.partition(": ")
    files = {'Parser key "config"': "--config", "Problems parsing config": "--config", "Unexpected config": "--config"}
    if where in files:
        return ConfigError(
            "the configuration file cannot be read",
            where=files[where],
            found=" ".join(rest.split())[:300],
            allowed="a YAML file of options, such as those in experiments/",
        )
    return ConfigError(
        "the configuration cannot be used",
        where=place or "the options",
        found=message[:1500],
        fix="llmrs fit --help lists all options",
    )


def _unknown(option: str, where: str, names: list[str], near: str = "") -> ConfigError:
    return ConfigError(
        f"there is no option {option!r}",
        where=where,
        found=option,
        allowed=listing(names, _SHOWN),
        fix=suggestion(near or option.rpartition(".")[2], names) or "leave it out",
    )


def _no_class(match: re.Match[str] | None, where: str, base: type) -> ConfigError:
    found = match[1].strip() if match else "no class_path"
    if dataclasses.is_dataclass(base):
        options = [field.name for field in dataclasses.fields(base)]
        return ConfigError("options are expected, not one value", where=where, found=found, allowed=listing(options))
    names = sorted({c.__name__ for c in _subclasses(base) if not inspect.isabstract(c) and c.__name__[0] != "_"})
    return ConfigError(
        f"there is no class {found!r} here" if match else "the class is not named",
        where=where,
        found=found,
        allowed=f"class_path: one of {listing(names, _SHOWN)}",
        fix=suggestion(found.rpartition(".")[2], names) if match else "add class_path, and put options under init_args",
    )


def _children(parser: Any, group: str) -> list[str]:
    """List the options one level below `group`; an empty one stands for the top."""
    prefix = f"{group}." if group else ""
    names = (a.dest.removeprefix(prefix).split(".")[0] for a in parser._actions if a.dest.startswith(prefix))
    return [name for name in dict.fromkeys(names) if name not in ("help", "print_config", "print_shtab", "")]


def _parameters(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
        return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    except (ImportError, AttributeError, ValueError):
        return []


def _named(paths: list[str]) -> type | None:
    """Import the class that the first path names."""
    if not paths:
        return None
    module, _, name = paths[0].rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    return found if inspect.isclass(found) else None


def _classes(hint: Any) -> Iterator[type]:
    """Yield the classes in a type hint that options can name, such as Loss in `Loss | None`."""
    if inspect.isclass(hint) and not get_args(hint) and hint.__module__ != "builtins":
        yield hint
    for part in get_args(hint):
        yield from _classes(part)


def _subclasses(base: type) -> Iterator[type]:
    yield base
    for child in base.__subclasses__():
        yield from _subclasses(child)


def _readable(hint: str) -> str:
    """Spell a type as a reader of YAML would."""
    hint = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", hint).replace("NoneType", "null")
    return re.sub(r"typing\.Literal\[([^\]]*)\]", r"\1", hint)
