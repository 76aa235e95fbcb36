"""The settings of a run: one schema for commands, overlays and ``python -m monai.bundle``."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from pydoc import locate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from luna_monai.errors import LunaError
from luna_monai.literals import leaves_and_sections, literal, text_of
from luna_monai.share import bundle_dir, schema

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

# YAML 1.1 reads 1e-3 as text.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def check_settings(kind: str) -> Mapping[str, Any]:
    """Check the configuration that is being resolved, for ``python -m monai.bundle run``.

    MONAI hands an expression only what is resolved already, and ``monai.bundle run`` keeps its parser to itself, so the
    parser is taken from the caller. Commands of this package replace this call by what :func:`checked` returns.

    Args:
        kind: ``train`` or ``inference``.

    Returns:
        The configuration, see :func:`checked`.

    Raises:
        LunaError: for a setting that is wrong.
    """
    from monai.bundle import ConfigParser

    callers = (frame.frame.f_locals.get("self") for frame in inspect.stack(context=0))
    parser = next(caller for caller in callers if isinstance(caller, ConfigParser))
    configuration = checked(parser, kind)
    parser.parse(reset=True)
    return configuration


def checked(parser: ConfigParser, kind: str, given: Iterable[str] | None = None) -> Mapping[str, Any]:
    """Check a configuration before anything of it is made, and turn text into numbers, devices and nothing.

    Args:
        parser: holds the configuration, which is changed in place.
        kind: ``train`` or ``inference``.
        given: keys that were given on the command line, which must have an effect; all changed keys must when None.

    Returns:
        The configuration without metadata, ready to be written as YAML and run again; paths are absolute.

    Raises:
        LunaError: for an unknown key or argument, a value of the wrong type or range, a section that is replaced by a
            part of it, a reference to nothing or in a circle, and a given key that has no effect.
    """
    config = {key: value for key, value in parser.get().items() if key != "_meta_"}
    rules = schema(kind)["properties"]
    _normalize(config, rules)
    for key, value in config.items():
        parser[key] = value
    references = {reference for key, value in config.items() for reference in _references(value, key)}
    _check_schema(config, kind, references)
    _check_components(config, parser)
    _check_references(parser, references)
    _check_effect(config, kind, references, given)
    if not is_code(config["device"]):
        parser["device"] = f"$torch.device({config['device']!r})"
    for key in rules:
        text = text_of(config.get(key))
        if rules[key].get("format") == "path" and isinstance(text, str) and not is_code(config[key]):
            text = text.replace("::", "#") if given is None else text  # MONAI has replaced it in what it has read
            parser[key] = literal(text)
            config[key] = literal(str(Path(text).resolve()))
    return MappingProxyType(_as_recorded(config))


def nearest(key: str, known: Iterable[str]) -> str:
    """Write the hint about a key that does not exist."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the keys are in {bundle_dir() / 'configs'}"


def is_code(value: Any) -> bool:
    """Tell whether MONAI would evaluate, replace or look up a value."""
    return isinstance(value, str) and value.startswith(("$", "@", "%")) and text_of(value) == value


def _as_recorded(value: Any) -> Any:
    """Copy a configuration with MONAI's own separator in it, which parsing puts there."""
    if isinstance(value, dict):
        return {key: _as_recorded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_recorded(item) for item in value]
    return value.replace("#", "::") if isinstance(value, str) else value


def _normalize(config: Any, rules: Mapping[Any, Any]) -> None:
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        types = rules.get(key, {}).get("type", ())
        if isinstance(value, dict | list):
            _normalize(value, rules.get(key, {}).get("properties", {}))
        elif value in ("null", "None") and "null" in types:
            config[key] = None
        elif isinstance(value, str) and _NUMBER.fullmatch(value) and "string" not in types:
            config[key] = value = float(value)
        if isinstance(value, float) and value.is_integer() and "integer" in types:
            config[key] = int(value)


def _references(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """List the references in a value: ``(key, id)``."""
    from monai.bundle import ReferenceResolver

    for inner, item in [(key, value), *leaves_and_sections(value, key)]:
        if isinstance(item, str):
            for name in ReferenceResolver.match_refs_pattern(item):
                yield inner, name.replace("::", "#")


def _check_schema(config: Mapping[str, Any], kind: str, references: set[tuple[str, str]]) -> None:
    from jsonschema import Draft202012Validator

    for key, value in leaves_and_sections(dict(config)):
        if isinstance(value, float) and not math.isfinite(value):
            raise LunaError(f"{key}: {value} is not a finite number")

    # A key that is not in the schema is one of the user's own, which something refers to, or a list of steps to run.
    steps = {key for key, value in config.items() if isinstance(value, list) and value and all(map(is_code, value))}
    used = {f"{name}#" for name in {name for _, name in references} | steps}
    for error in Draft202012Validator(schema(kind)).iter_errors(dict(config)):
        key, found = "#".join(map(str, error.absolute_path)), error.instance
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            for full in (f"{key}#{name}".strip("#") for name in found if name not in known):
                if not any(name.startswith(f"{full}#") for name in used):
                    hint = nearest(full, [f"{key}#{name}".strip("#") for name in known])
                    raise LunaError(f"{full!r} is not a key of the configuration; {hint}")
        elif error.validator == "required":
            part = next(iter(found), "KEY")
            advice = f"'{key}#{part}: …' in a file or {key}#{part}=… on the command line"
            raise LunaError(f"{key}: {found!s:.80} replaces the whole section; to change one value, write {advice}")
        elif not is_code(found):  # which is known only when it is resolved
            reason = (
                f"expected {error.schema['description']}, found {found!r}"
                if error.validator == "pattern"
                else error.message
            )
            raise LunaError(f"{key}: {reason:.200}")


def _check_components(config: Mapping[str, Any], parser: ConfigParser) -> None:
    """Refuse classes that do not exist, and arguments that they do not have."""
    from monai.bundle.config_item import ConfigComponent

    for key, section in leaves_and_sections(dict(config)):
        target = section.get("_target_") if isinstance(section, dict) else None
        if not isinstance(target, str) or is_code(target):
            continue
        try:
            component: Any = locate(ConfigComponent(section, locator=parser.locator).resolve_module_name())
        except Exception as error:  # whatever the import of a foreign module raises
            raise LunaError(f"{key}#_target_: {target!r} cannot be imported ({error})") from error
        if not callable(component):
            raise LunaError(f"{key}#_target_: there is no class or function {target!r}")
        try:
            parameters = inspect.signature(component).parameters
        except (TypeError, ValueError):
            continue
        unknown = section.keys() - ConfigComponent.non_arg_keys - parameters.keys()
        if unknown and all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values()):
            name = min(unknown)
            hint = nearest(name, parameters)
            raise LunaError(f"'{key}#{name}' is not a key of the configuration: {target} has no such argument; {hint}")


def _check_references(parser: ConfigParser, references: set[tuple[str, str]]) -> None:
    graph: dict[str, set[str]] = {}
    for key, name in sorted(references):
        if name not in parser:
            known = dict(leaves_and_sections(parser.get()))
            raise LunaError(f"{key}: there is no key {name!r} to refer to; {nearest(name, known)}")
        parts = key.split("#")
        for above, below in pairwise([*("#".join(parts[: end + 1]) for end in range(len(parts))), name]):
            graph.setdefault(above, set()).add(below)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        first, *others = reversed(error.args[1])
        raise LunaError(f"{first}: refers to itself, by @{' @'.join(others)}") from None


def _check_effect(
    config: Mapping[str, Any], kind: str, references: set[tuple[str, str]], given: Iterable[str] | None
) -> None:
    """Refuse changes of keys that train.yaml refers to, and this configuration does not."""
    from monai.bundle import ConfigParser

    base = _as_recorded(ConfigParser.load_config_file(bundle_dir() / "configs" / f"{kind}.yaml"))
    used_before = {name.split("#")[0] for key, value in base.items() for _, name in _references(value, key)}
    used = {name.split("#")[0] for _, name in references}
    recorded = _as_recorded(dict(config))
    changed = [key for key in recorded if recorded[key] != base.get(key, recorded[key])] if given is None else given
    for key in changed:
        is_new = given is not None and "#" not in key and key not in base and key not in used
        if key in used_before - used or is_new:
            raise LunaError(f"{key}: has no effect, because nothing in this configuration refers to it; leave it out")
