"""YAML documents with a schema: read strictly, checked by pydantic, every problem told with its place.

Owns the reading of space files, recipes and run files; knows nothing of what is in them. Duplicate keys, unknown keys and
wrong types are errors of the form `FILE: FIELD.PATH: VALUE problem; allowed: ...`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from explorer.errors import UserError

#: YAML documents of this tool are a few hundred lines; more is some other file.
MAX_DOCUMENT_BYTES = 1 << 20


class Document(BaseModel):
    """Base of all schemas: frozen, unknown keys refused, no silent conversion (`"3"` is no number)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _whole_number(value: object) -> object:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a whole number; allowed: 1")
    return value


#: The `version` of a document: 1, and neither `true` nor `1.0`, which Python takes for the same.
Version = Annotated[Literal[1], BeforeValidator(_whole_number)]

SchemaT = TypeVar("SchemaT", bound=Document)


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML itself would silently let win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise yaml.constructor.ConstructorError(
                        problem=f"line {line}: {key!r} is given twice; give it once"
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3 for a string, for the want of a point.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read(path: Path, schema: type[SchemaT], error: type[UserError]) -> SchemaT:
    """Reads and checks the document at `path`. Raises `error` with file, field path, value and what is allowed."""
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise error(f"{path}: larger than {MAX_DOCUMENT_BYTES >> 20} MiB; is this the right file?")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # derives from SafeLoader
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not a text file in UTF-8") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise error(f"{path}: not a valid YAML document: {_one_line(problem)}") from None
    return check(content, schema, error, str(path))


def check(content: object, schema: type[SchemaT], error: type[UserError], source: str) -> SchemaT:
    """Checks parsed `content`; `source` opens every message. Raises `error` as `read` does."""
    if not isinstance(content, dict):
        keys = ", ".join(schema.model_fields)
        raise error(f"{source}: the document holds {_shown(content)}, not a mapping; its keys are: {keys}")
    try:
        return schema.model_validate(content)
    except ValidationError as problem:
        lines = [_describe(detail, schema) for detail in problem.errors(include_url=False)]
        raise error("\n".join(f"{source}: {line}" for line in lines)) from None


def _describe(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    location, value = detail["loc"], _shown(detail.get("input"))
    place = _field_path(location)
    match detail["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key; allowed: {', '.join(_keys_at(schema, location[:-1]))}"
        case "missing":
            return f"{place}: is missing; it is required"
        case "value_error" if not location:
            return str(detail["msg"]).removeprefix("Value error, ")
        case "value_error":
            return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
        case "model_type" | "model_attributes_type":
            return f"{place}: {value} is not a mapping; its keys are: {', '.join(_keys_at(schema, location))}"
        case "literal_error":
            return f"{place}: {value} is not allowed; allowed: {detail['ctx']['expected']}"
        case "too_short":
            return f"{place}: {value} is too short; give at least {detail['ctx']['min_length']} value(s)"
        case _:
            return f"{place}: {value}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _field_path(location: tuple[int | str, ...]) -> str:
    """`("search", "depth3", 1)` -> `search.depth3[1]`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _keys_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the mapping at `location` knows."""
    model: type[BaseModel] = schema
    for part in location:
        field = model.model_fields.get(str(part))
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _shown(value: object) -> str:
    # Aliases make a few hundred bytes of YAML stand for billions of elements: never take the repr of a whole value.
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxstring, shortener.maxother = 3, 80, 80
    return shortener.repr(value)


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__
