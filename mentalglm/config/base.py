"""Reading a job's YAML into its pydantic model, with errors a user can act on."""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mentalglm.errors import ConfigError


class ConfigModel(BaseModel):
    """Base of every config: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


ModelT = TypeVar("ModelT", bound=BaseModel)


def load_yaml(path: str | Path) -> Any:
    """The plain data of a YAML file. Tags that build Python objects are refused, as are duplicate keys.

    Raises: ConfigError, naming the file and the line.
    """
    path = Path(path)
    try:
        source = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    return parse_yaml(source, str(path))


def parse_yaml(source: str, name: str) -> Any:
    """Like `load_yaml`, for text that is already read; `name` stands in the error message."""
    try:
        return yaml.load(source, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader with unique keys
    except (ValueError, RecursionError) as error:  # PyYAML lets them through: 2001-99-99, [[[[...
        raise ConfigError(f"{name}: not a config ({type(error).__name__}); write plain keys and values") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{where}: {problem}; write plain YAML without Python tags") from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which plain YAML silently resolves to the last."""


def _unique_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    keys: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.MarkedYAMLError(problem="a key is not plain text", problem_mark=key_node.start_mark)
        if key in keys:
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def load_config(model: type[ModelT], path: str | Path, overrides: list[str] | None = None) -> ModelT:
    """The validated config in `path`, with `a.b=value` overrides (values are YAML) applied first.

    Raises: ConfigError, one line that names the key, the value and what is allowed.
    """
    return validate(model, read_config(path, overrides), str(path))


def is_config_path(path: str) -> bool:
    """Whether it is the name of a YAML file, or of a variant in one."""
    return path.endswith((".yaml", ".yml")) or _VARIANT.search(path) is not None


def read_config(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The plain data of a config. `file.yaml#a/b` is that file with its variants a and b: what `variants.a`, then
    `variants.b`, say is put into the rest, section by section, then what `overrides` say, and `{variant}` in any text
    becomes `a/b`.

    Raises: ConfigError; also where two of the variants set the same key, as two that exclude each other do.
    """
    is_variant = _VARIANT.search(str(path)) and not Path(path).is_file()
    file, _, names = str(path).rpartition(_VARIANT_MARK) if is_variant else (str(path), "", "")
    data = load_yaml(file)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys, this is {type(data).__name__}")
    variants = data.pop("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(each, dict) for each in variants.values()):
        raise ConfigError(f"{file}: variants: write `name: {{key: value}}` for each")
    set_by: dict[str, str] = {}
    for name in names.split("/") if names else []:
        if name not in variants:
            raise ConfigError(
                f"{path}: has no variant {name!r}; use {', '.join(map(str, variants)) or 'the file alone'}"
            )
        for key in _leaves(variants[name]):
            for other, by in set_by.items():
                if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                    raise ConfigError(f"{path}: the variants {by!r} and {name!r} both set {key}; name one of them")
        set_by |= dict.fromkeys(_leaves(variants[name]), name)
        data = _merged(data, variants[name])
    for override in overrides or []:
        apply_override(data, override)
    return {key: _with_name(value, names, file) for key, value in data.items()}


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of a file that holds such a config, for editors. With `variants`, these may give what is required."""
    found = model.model_json_schema()
    found["properties"]["variants"] = {
        "description": "Name -> what this variant says otherwise, section by section; used as `file.yaml#name`.",
        "type": "object",
        "additionalProperties": {"type": "object", "propertyNames": {"enum": sorted(model.model_fields)}},
    }
    if required := found.pop("required", None):
        found |= {"if": {"required": ["variants"]}, "else": {"required": required}}
    return found


_VARIANT_MARK = "#"
_VARIANT = re.compile(r"\.ya?ml#[^#]*$")
_NAME = "{variant}"


def _leaves(changes: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of the values that are no sections."""
    found = []
    for key, value in changes.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return found


def _merged(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A section into a section; anything else takes the place of what is there."""
    found = dict(data)
    for key, value in changes.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


def _with_name(value: Any, names: str, file: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_name(each, names, file) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_name(each, names, file) for each in value]
    if not isinstance(value, str) or _NAME not in value:
        return value
    if not names:
        raise ConfigError(f"{file}: is several configs in one; name one of its `variants`, as in {file}#name")
    return value.replace(_NAME, names)


def validate(model: type[ModelT], data: Any, name: str) -> ModelT:
    """`data` as `model`. Raises: ConfigError with the first problem and the number of others."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        first = problems[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key; `mentalglm schema` lists the keys there are"
            shown = ""
        elif first["type"] == "missing":
            shown = ""
        else:
            # An address may hold a key, in its query or before its host.
            secret = first["loc"][-1:] == ("base_url",) or "@" in str(first["input"])
            shown = "" if secret else f" = {_shorten(first['input'])}"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(f"{name}: {key}{shown}: {message}{more}") from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Puts `a.b=value` (the value is YAML) into `data`. Raises: ConfigError where it is not written like that."""
    key, separator, value = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override}: write --set key=value, nested keys as a.b=value")
    node = data
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {part} is not a section of the config")
        node = child
    node[parts[-1]] = parse_yaml(value, f"--set {key}")


def _shorten(value: Any, limit: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
