"""From a typed function to the JSON Schema of its arguments, and to what OpenAI's strict mode takes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Annotated, Any, ClassVar, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from deltafan.errors import ConfigurationError

_DROPPED: Final = frozenset({"title", "default", "discriminator", "uniqueItems", "examples"})
"""What strict mode does not know, and a schema means the same to a model without."""
_FORMATS: Final = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_UNKNOWN: Final = ("allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties")
_SUBSCHEMAS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")


class Arguments(BaseModel):
    """What the arguments of a function must be. Each field has the parameter's name as its alias: a parameter may be
    called as a method of pydantic's is."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    null_is_default: ClassVar[frozenset[str]] = frozenset()
    """Parameters that have a default and do not take null: a model that gives null means that it gives nothing."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name not in cls.null_is_default}

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, as the function takes them.

        :raises pydantic.ValidationError: they are not what the parameters' types say.
        """
        model = cls.model_validate(given)
        return {field.alias or name: getattr(model, name) for name, field in cls.model_fields.items()}


def arguments_of(func: Callable[..., Any], name: str, descriptions: Mapping[str, str]) -> type[Arguments]:
    """The model of a function's arguments.

    :param descriptions: of parameters, by name; one that a `Field` gives goes first.
    :raises ConfigurationError: a parameter has no annotation or cannot be given by name.
    """
    fields: dict[str, Any] = {}
    try:
        signature = inspect.signature(func, eval_str=True)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigurationError(f"tool {name}: its parameters cannot be read: {error}") from None
    for place, parameter in enumerate(signature.parameters.values()):
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if parameter.annotation is parameter.empty or not by_name:
            raise ConfigurationError(
                f"tool {name}: parameter {parameter.name!r} needs a type annotation, and to be given by name"
            )
        if parameter.name.startswith("_"):
            raise ConfigurationError(f"tool {name}: parameter {parameter.name!r} must not begin with _")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"p{place}"] = (Annotated[parameter.annotation, Field(alias=parameter.name)], default)
    try:
        model = create_model(name, __base__=Arguments, **fields)
        properties = model.model_json_schema().get("properties", {})
    except Exception as error:  # pydantic raises several kinds for types it cannot describe
        first_line = str(error).partition("\n")[0]
        raise ConfigurationError(f"tool {name}: no schema for its parameters: {first_line}") from None
    for field in model.model_fields.values():
        field.description = field.description or descriptions.get(field.alias or "")
    model.null_is_default = frozenset(
        field.alias
        for field in model.model_fields.values()
        if field.alias and not field.is_required() and not _takes_null(properties[field.alias])
    )
    model.model_rebuild(force=True)
    return model


def schema_of(model: type[Arguments]) -> dict[str, Any]:
    """The JSON Schema of arguments, as pydantic has it, without the titles, which repeat the names."""
    schema = model.model_json_schema()
    _walk(schema, lambda node: node.pop("title", None) if isinstance(node.get("title"), str) else None)
    schema.pop("description", None)
    return schema


def strict_schema(schema: Mapping[str, Any], *, nullable: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The same arguments as OpenAI's strict mode takes them: every object closed, every property required.

    https://platform.openai.com/docs/guides/structured-outputs#supported-schemas

    :param nullable: properties of the root that may be left out; they become required, and null stands for that.
    :raises ValueError: it cannot be said in strict mode: an object of any keys, any value at all, a tuple.
    """
    made = deepcopy(dict(schema))
    for name, of in list(made.get("properties", {}).items()):
        if name in nullable:
            made["properties"][name] = _or_null(of)
    _walk(made, _close)
    return made


def _or_null(of: dict[str, Any]) -> dict[str, Any]:
    of = dict(of)
    default = of.pop("default", None)
    told = of.pop("description", "")
    if default is not None:
        told = f"{told} (null: {orjson.dumps(default).decode()})".strip()
    made: dict[str, Any] = {"anyOf": [*(of["anyOf"] if set(of) <= {"anyOf", "title"} else [of]), {"type": "null"}]}
    return made | ({"description": told} if told else {})


def _close(node: dict[str, Any]) -> None:
    for word in _UNKNOWN:
        if word in node:
            raise ValueError(f"strict mode has no {word}")
    if "prefixItems" in node:
        raise ValueError("strict mode has no tuples: use a list or a model")
    for word in _DROPPED & node.keys():
        del node[word]
    if node.get("format") not in (None, *_FORMATS):
        del node["format"]
    if "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")
    if "$ref" in node and len(node) > 1:  # nothing may stand beside a reference
        node["anyOf"] = [{"$ref": node.pop("$ref")}]
    if node.get("type") == "object":
        if "properties" not in node and node.get("additionalProperties") is not False:
            raise ValueError("strict mode has no objects of any keys: use a model")
        if node.get("additionalProperties", False) is not False:
            raise ValueError("strict mode has no additional properties")
        node.setdefault("properties", {})
        node["additionalProperties"] = False
        node["required"] = list(node["properties"])
    elif node.get("type") == "array" and not node.get("items"):
        raise ValueError("strict mode has no lists of anything: say of what")
    elif not {"type", "anyOf", "$ref", "enum", "const"} & node.keys():
        raise ValueError("strict mode has no values of any type")


def _walk(node: Any, visit: Callable[[dict[str, Any]], Any]) -> None:
    """Visit every schema within a schema, from the outside in. What are names of properties is not taken for words."""
    if not isinstance(node, dict):
        return
    visit(node)
    for word in ("properties", "$defs"):
        for child in (node.get(word) or {}).values():
            _walk(child, visit)
    for word in _SUBSCHEMAS:
        for child in node.get(word) or ():
            _walk(child, visit)
    for word in ("items", "additionalProperties"):
        _walk(node.get(word), visit)


def _takes_null(of: Mapping[str, Any]) -> bool:
    if not {"type", "anyOf", "oneOf", "$ref", "enum", "const", "allOf"} & of.keys():
        return True  # anything
    kinds = of.get("type")
    if kinds == "null" or (isinstance(kinds, list) and "null" in kinds):
        return True
    if "enum" in of and None in of["enum"]:
        return True
    return any(_takes_null(one) for word in ("anyOf", "oneOf") for one in of.get(word, ()))
