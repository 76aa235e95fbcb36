"""The settings of a run: one schema that commands, overlays and ``python -m monai.bundle`` pass alike."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from pydoc import locate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from luna_monai.errors import LunaError
from luna_monai.literals import literal, text_of
from luna_monai.share import bundle_dir

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

# YAML 1.1 reads 1e-3 as text.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_UNKNOWN = object()
#: Limits of JSON schemas, in words.
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "below"}


@cache
def schema(kind: str) -> Mapping[str, Any]:
    """Read the schema of a configuration: ``train`` or ``inference``.

    ``format`` is ``path`` or ``text`` for values that are never expressions on a command line.
    """
    path = bundle_dir() / "configs" / f"{kind}.schema.json"
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def is_text(key: str) -> bool:
    """Tell whether a key holds a path or free text, which is literal on a command line."""
    return any("format" in schema(kind)["properties"].get(key, {}) for kind in ("train", "inference"))


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
        given: keys that were given on the command line, which must have an effect.

    Returns:
        The configuration without metadata, ready to be written as YAML and run again; paths are absolute.

    Raises:
        LunaError: for an unknown key or argument, a value of the wrong type or range, a section that is replaced by a
            part of it, a reference to nothing or in a circle, and a given key that has no effect.
    """
    config = {key: value for key, value in parser.get().items() if key != "_meta_"}
    _normalize(config, schema(kind)["properties"])
    for key, value in config.items():
        parser[key] = value
    references = {reference for key, value in config.items() for reference in _references(value, key)}
    _check_schema(config, kind, references)
    _check_components(config, parser)
    _check_references(parser, references)
    _check_effect(config, kind, references, given)
    if not _is_code(config["device"]):
        parser["device"] = f"$torch.device({config['device']!r})"
    paths = [key for key, value in schema(kind)["properties"].items() if value.get("format") == "path"]
    for key in paths:
        text = text_of(config.get(key))
        if isinstance(text, str) and not _is_code(config[key]):
            config[key] = literal(str(Path(text).resolve()))
    return MappingProxyType(_as_recorded(config))


def nearest(key: str, known: Iterable[str]) -> str:
    """Write the hint about a key that does not exist."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the keys are in {bundle_dir() / 'configs'}"


def keys_of(config: Any, prefix: str = "") -> Iterator[str]:
    """List all keys of a configuration, nested ones joined by ``#``."""
    entries: Any = config.items() if isinstance(config, Mapping) else enumerate(config)
    for key, value in entries:
        if key != "_meta_":
            yield f"{prefix}{key}"
            if isinstance(value, Mapping | list):
                yield from keys_of(value, f"{prefix}{key}#")


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("$", "@", "%")) and text_of(value) == value


def _as_recorded(value: Any) -> Any:
    """Copy a configuration with MONAI's own separator in it, which parsing puts there."""
    if isinstance(value, dict):
        return {key: _as_recorded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_recorded(item) for item in value]
    return value.replace("#", "::") if isinstance(value, str) else value


def _normalize(config: Any, properties: Mapping[Any, Any]) -> None:
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        types = properties.get(key, {}).get("type", ())
        if isinstance(value, dict | list):
            _normalize(value, properties.get(key, {}).get("properties", {}))
        elif value in ("null", "None") and "null" in types:
            config[key] = None
        elif isinstance(value, str) and _NUMBER.fullmatch(value) and "string" not in types:
            config[key] = float(value)


def _references(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """List the references in a value: ``(key, id)``."""
    from monai.bundle import ReferenceResolver

    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _references(item, f"{key}#{name}")
    elif isinstance(value, str):
        for name in ReferenceResolver.match_refs_pattern(value):
            yield key, name.replace("::", "#")


def _without_code(value: Any) -> Any:
    """Leave out what is known only when it is resolved."""
    if isinstance(value, dict):
        plain = {key: item if key == "_target_" else _without_code(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item is not _UNKNOWN}
    if isinstance(value, list):
        items = [_without_code(item) for item in value]
        known = [item for item in items if item is not _UNKNOWN]
        return known if len(known) == len(items) or any(isinstance(item, dict) for item in items) else _UNKNOWN
    return _UNKNOWN if _is_code(value) else text_of(value)


def _check_schema(config: Mapping[str, Any], kind: str, references: set[tuple[str, str]]) -> None:
    from jsonschema import Draft202012Validator

    steps = {key for key, value in config.items() if isinstance(value, list) and value and all(map(_is_code, value))}
    _check_keys(config, schema(kind), {name for _, name in references} | steps)
    for error in Draft202012Validator(schema(kind)).iter_errors(_without_code(dict(config))):
        if error.validator != "additionalProperties":
            raise LunaError(f"{'#'.join(map(str, error.absolute_path))}: {_fault(error)}")


def _check_keys(config: Mapping[str, Any], rules: Mapping[str, Any], used: set[str], prefix: str = "") -> None:
    """Refuse keys that are neither in the schema nor referred to; components are checked by their signatures."""
    known, is_open = rules.get("properties", {}), rules.get("additionalProperties", True)
    for key, value in config.items():
        full = f"{prefix}{key}"
        if key not in known and not is_open and not any(f"{name}#".startswith(f"{full}#") for name in used):
            hint = nearest(full, [prefix + name for name in known])
            raise LunaError(f"{full!r} is not a key of the configuration; {hint}")
        if isinstance(value, Mapping) and not is_open:
            _check_keys(value, known.get(key, {}), used, f"{full}#")


def _fault(error: Any) -> str:
    """Say what is wrong with a value, and what is expected."""
    found = json.dumps(error.instance, default=str)
    found = found if len(found) < 80 else f"{found[:77]}..."
    if error.validator == "required":
        key, part = "#".join(map(str, error.absolute_path)), next(iter(error.instance), "KEY")
        return (
            f"{found} replaces the whole section and has no _target_; to change one value, write "
            f"'{key}#{part}: …' in a file or {key}#{part}=… on the command line"
        )
    limits = error.schema
    if error.validator == "pattern":
        return f"must be {limits['description']}, found {found}"
    if "enum" in limits:
        return f"must be one of {', '.join(map(str, limits['enum']))}, found {found}"
    types = limits.get("type", "value")
    wanted = " or ".join([types] if isinstance(types, str) else types).replace("object", "section with _target_")
    for name, words in _LIMITS.items():
        wanted += f", {words} {limits[name]}" if name in limits else ""
    return f"must be {wanted}, found {found}{' items' if error.validator in ('minItems', 'maxItems') else ''}"


def _components(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _components(item, f"{key}#{name}" if key else str(name))
    if isinstance(value, dict) and isinstance(value.get("_target_"), str) and not _is_code(value["_target_"]):
        yield key, value


def _check_components(config: Mapping[str, Any], parser: ConfigParser) -> None:
    from monai.bundle.config_item import ConfigComponent

    for key, section in _components(dict(config), ""):
        target = section["_target_"]
        try:
            component = locate(ConfigComponent(section, locator=parser.locator).resolve_module_name())
        except Exception as error:  # whatever the import of a foreign module raises
            raise LunaError(f"{key}#_target_: {target!r} cannot be imported ({error})") from error
        if component is None:
            raise LunaError(f"{key}#_target_: there is no class or function {target!r}")
        try:
            parameters = inspect.signature(component).parameters.values()  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        names = [parameter.name for parameter in parameters]
        if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            continue
        for name in section.keys() - ConfigComponent.non_arg_keys - set(names):
            raise LunaError(
                f"'{key}#{name}' is not a key of the configuration: {target} has no such argument; "
                f"{nearest(name, names)}"
            )


def _check_references(parser: ConfigParser, references: set[tuple[str, str]]) -> None:
    for key, name in sorted(references):
        if name not in parser:
            raise LunaError(f"{key}: there is no key {name!r} to refer to; {nearest(name, keys_of(parser.get()))}")
    edges: dict[str, set[str]] = {}
    for key, name in references:
        edges.setdefault(key, set()).add(name)

    def visit(key: str, path: Sequence[str]) -> None:
        if key in path:
            raise LunaError(f"{key}: refers to itself, by @{' @'.join([*path[path.index(key) + 1 :], key])}")
        if key not in done:
            for inner, names in edges.items():
                if f"{inner}#".startswith(f"{key}#"):
                    for name in sorted(names):
                        visit(name, [*path, key])
            done.add(key)

    done: set[str] = set()
    for key in list(edges):
        visit(key, [])


def _check_effect(
    config: Mapping[str, Any], kind: str, references: set[tuple[str, str]], given: Iterable[str] | None
) -> None:
    from monai.bundle import ConfigParser

    base = _as_recorded(ConfigParser.load_config_file(bundle_dir() / "configs" / f"{kind}.yaml"))
    used_before = {name.split("#")[0] for key, value in base.items() for _, name in _references(value, key)}
    used = {name.split("#")[0] for _, name in references}
    config = _as_recorded(dict(config))
    changed = [key for key in config if config[key] != base.get(key, config[key])] if given is None else given
    for key in changed:
        is_new = given is not None and "#" not in key and key not in base and key not in used
        if key in used_before - used or is_new:
            raise LunaError(
                f"{key}: has no effect here, because nothing in this configuration refers to it; leave it out"
            )
