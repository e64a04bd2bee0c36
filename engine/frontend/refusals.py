"""What pydantic finds wrong with a body, in OpenAI's words."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.frontend.errors import InvalidRequest, UnsupportedContentType

_MAX_QUOTED = 64
"""Characters of a client's own value that a message repeats."""
_EXPECTED = {
    "bool_type": "a boolean",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "an array",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_type": "a string",
}
_LIMITS = {
    "greater_than_equal": ("ge", ">=", "below_min_value", "below minimum value"),
    "greater_than": ("gt", ">", "below_min_value", "below minimum value"),
    "less_than_equal": ("le", "<=", "above_max_value", "above maximum value"),
    "less_than": ("lt", "<", "above_max_value", "above maximum value"),
}
_LENGTHS = {
    "too_short": ("array_below_min_length", "array too short", "min_length"),
    "too_long": ("array_above_max_length", "array too long", "max_length"),
    "string_too_long": ("string_above_max_length", "string too long", "max_length"),
    "string_too_short": ("string_below_min_length", "string too short", "min_length"),
}


def explain(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The first of pydantic's errors as one that clients of OpenAI know."""
    error = errors[0]
    kind, context = error["type"], error.get("ctx", {})
    param = _param_of(error["loc"], context.get("param", ""))
    if kind == "json_invalid":
        message = f"The body is not valid JSON: {context['error']} at position {error['loc'][-1]}."
        return InvalidRequest(message, code="invalid_json")
    if not param and error["input"] and isinstance(error["input"], bytes):
        return UnsupportedContentType()  # FastAPI saw no reason to parse it
    if not param:
        return InvalidRequest(
            "The body must be a JSON object, sent with 'Content-Type: application/json'.",
            code="invalid_body",
        )
    code, message = _describe(kind, param, error, context)
    return InvalidRequest(message, param=param, code=code)


def _describe(
    kind: str, param: str, error: Mapping[str, Any], context: Mapping[str, Any]
) -> tuple[str, str]:
    """OpenAI's code and message."""
    value = error["input"]
    if kind in ("missing", "missing_required_parameter"):
        return "missing_required_parameter", f"Missing required parameter: '{param}'."
    if kind in _EXPECTED:
        expected = f"expected {_EXPECTED[kind]}, but got {_name_of(value)} instead"
        return "invalid_type", f"Invalid type for '{param}': {expected}."
    if kind in _LIMITS:
        key, sign, suffix, what = _LIMITS[kind]
        noun = "integer" if isinstance(value, int) else "decimal"
        limit = context[key] if context[key] % 1 else int(context[key])
        expected = f"Expected a value {sign} {limit}, but got {_quote(value)} instead"
        return f"{noun}_{suffix}", f"Invalid '{param}': {noun} {what}. {expected}."
    if kind in _LENGTHS:
        code, what, key = _LENGTHS[kind]
        bound = "at least" if key == "min_length" else "at most"
        return code, f"Invalid '{param}': {what}. Expected a length of {bound} {context[key]}."
    if kind == "literal_error":
        expected = f"Supported values are: {context['expected']}"
        return "invalid_value", f"Invalid value for '{param}': {_quote(value)}. {expected}."
    if "message" in context:  # one of our own
        return kind, context["message"]
    return "invalid_value", f"Invalid value for '{param}': {error['msg']}."


def _param_of(location: Sequence[str | int], key: str) -> str:
    """`messages[0].content`: what pydantic calls ("body", "messages", 0, "content", "(text)")."""
    param = ""
    for step in [*location[1:], key]:
        if isinstance(step, int):
            param += f"[{step}]"
        elif step and not step.startswith("("):
            param += f".{step}"
    return param.removeprefix(".")


def _name_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _quote(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."
