"""Runs one verb: options from its function's parameters and its config's fields, result to stdout, errors in one line.

Which verbs there are is left to `pyramid.verbs`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jsonargparse

from pyramid.config import dump_yaml, explain, resolve, to_dict
from pyramid.errors import ConfigError, ExitCode, PyramidError, nearest
from pyramid.progress import say
from pyramid.verbs import Verb

MOST_ITEMS_SHOWN = 20
_COMMON = ("config", "json", "debug", "print_config")


def run_verb(verb: Verb, argv: Sequence[str]) -> int:
    """Runs a verb with its arguments; returns the exit code. Messages for a person are one line, never a traceback."""
    debug = "--debug" in argv
    try:
        return int(_run(verb, argv))
    except PyramidError as error:
        _show_trace(debug)
        say(f"pyramid {verb.name}: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        say(f"pyramid {verb.name}: interrupted; run the same command again to go on")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except Exception as error:
        _show_trace(debug)
        text = " ".join(str(error).split()) or "no message"
        say(f"pyramid {verb.name}: unexpected {type(error).__name__}: {text} (--debug shows where)")
        return int(ExitCode.FAILED)


def _show_trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _run(verb: Verb, argv: Sequence[str]) -> int:
    function = _load(verb.function)
    config_class = _load(verb.config) if verb.config else None
    parser = build_parser(verb, function, config_class)
    given = _parse(parser, argv)
    parameters = {name: given.pop(name) for name in _parameters(function) if name in given}
    as_json, _, show = (given.pop(name, False) for name in ("json", "debug", "print_config"))
    chosen = given.pop("config", None)
    if show:
        return _print_config(function, config_class, chosen, given)
    missing = [
        n for n, p in _parameters(function).items() if p.default is inspect.Parameter.empty and n not in parameters
    ]
    if missing:
        raise ConfigError(
            f"{' and '.join(_spelled(function, name) for name in missing)} is missing; see pyramid {verb.name} --help"
        )
    if chosen is not None:
        parameters["config"] = chosen
    result = function(**parameters, **given)
    return _report(result, as_json=as_json)


def _spelled(function: Callable[..., Any], name: str) -> str:
    keyword = _parameters(function)[name].kind is inspect.Parameter.KEYWORD_ONLY
    return f"--{name.replace('_', '-')}" if keyword else name.upper()


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns what a verb's function takes, without its config and the options that go into it."""
    found = inspect.signature(function).parameters
    return {n: p for n, p in found.items() if n != "config" and p.kind is not inspect.Parameter.VAR_KEYWORD}


def build_parser(verb: Verb, function: Callable[..., Any], config_class: type | None) -> jsonargparse.ArgumentParser:
    """Builds the parser of a verb."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    summary = (inspect.getdoc(function) or verb.help).split("\n\n")[0]
    parser = jsonargparse.ArgumentParser(prog=f"pyramid {verb.name}", description=summary, exit_on_error=False)
    hints, helps = typing.get_type_hints(function), argument_help(function)
    for name, parameter in _parameters(function).items():
        _add_parameter(parser, name, parameter, hints[name], helps.get(name, ""))
    if config_class is not None:
        parser.add_argument("--config", metavar="FILE", help="a preset such as lam/tiny, or a YAML file")
        parser.add_argument("--print-config", action="store_true", help="print the whole config and stop")
        parser.add_class_arguments(config_class, as_group=True)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _add_parameter(
    parser: jsonargparse.ArgumentParser, name: str, parameter: inspect.Parameter, hint: Any, text: str
) -> None:
    inner = [a for a in typing.get_args(hint) if a is not types.NoneType] if _is_union(hint) else [hint]
    kind = inner[0] if len(inner) == 1 else str
    plural = any(_is_sequence(option) for option in inner)
    kind = str if plural or kind not in (int, float, bool) else kind
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        nargs = "*" if plural else "?"
        parser.add_argument(name, nargs=nargs, type=kind, metavar=name.upper(), help=text)
        return
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        action: Any = argparse.BooleanOptionalAction if parameter.default is True else "store_true"
        parser.add_argument(flag, action=action, default=parameter.default, help=text)
        return
    # A list may be given at once or one by one.
    many: dict[str, Any] = {"nargs": "+", "action": "extend"} if plural else {}
    parser.add_argument(flag, type=kind, metavar=name.upper(), help=text, **many)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_sequence(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def argument_help(function: Callable[..., Any]) -> dict[str, str]:
    """Reads the Args section of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?:\n\S|\Z)", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE)
    if not section:
        return {}
    pairs = re.findall(r"^ {4}\**(\w+): (.*?)(?=^ {4}\S|\Z)", section[1] + "\n", re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in pairs}


def _parse(parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """Parses arguments; returns what was given and nothing else."""
    known = {option for action in parser._actions for option in action.option_strings}
    argv = [_normalise(token, known) for token in argv]
    try:
        found = jsonargparse.namespace_to_dict(parser.parse_args(argv, defaults=False))
    except jsonargparse.ArgumentError as error:
        raise ConfigError(_with_nearest(explain(error), known)) from error
    return {name: value for name, value in found.items() if value is not None and value != []}


def _normalise(token: str, known: set[str]) -> str:
    """Lets ``--max-steps`` and ``--max_steps`` be the same option."""
    name, mark, value = token.partition("=")
    if not name.startswith("--") or name in known:
        return token
    for other in (name[2:].replace("-", "_"), name[2:].replace("_", "-")):
        if f"--{other}" in known:
            return f"--{other}{mark}{value}"
    return token


def _with_nearest(text: str, known: set[str]) -> str:
    match = re.search(r"[Uu]nrecognized arguments: (\S+)", text)
    if not match:
        return text
    name = match[1].partition("=")[0]
    return f"unknown option '{name}'{nearest(name, known)}"


def _print_config(
    function: Callable[..., Any], config_class: type | None, chosen: Any, given: dict[str, Any]
) -> ExitCode:
    if config_class is None:
        raise ConfigError("this verb has no config")
    default = inspect.signature(function).parameters["config"].default
    print(dump_yaml(to_dict(resolve(config_class, chosen if chosen is not None else default, **given))), end="")
    return ExitCode.DONE


def _report(result: Any, *, as_json: bool) -> ExitCode:
    """Prints a result, lists what was set aside, and says how the command ends."""
    print(json.dumps(to_json(result), ensure_ascii=False) if as_json else repr(result))
    items = getattr(result, "items", [])
    for item in items[:MOST_ITEMS_SHOWN]:
        say(f"  set aside ({item.reason}): {item.detail}")
    if len(items) > MOST_ITEMS_SHOWN:
        say(f"  ... and {len(items) - MOST_ITEMS_SHOWN} more; --json lists all")
    code = getattr(result, "exit_code", ExitCode.QUARANTINED if items else ExitCode.DONE)
    return ExitCode(code)


def to_json(result: Any) -> dict[str, Any]:
    """Returns a result as plain data: its own ``to_dict`` if it has one, else its fields."""
    if hasattr(result, "to_dict"):
        return dict(result.to_dict())
    return dataclasses.asdict(result)
