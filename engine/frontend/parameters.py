"""What request models are built of: which parameters are known, and which do nothing yet.

Every parameter is supported, or ignored (it asks for nothing that changes the answer), or not
supported yet. The last are taken at the values that mean the same as leaving them out, which
clients do send, and refused otherwise.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

IGNORED = "Accepted and ignored."
NOT_YET = "Not supported yet."
_MAX_QUOTED = 64
"""Characters of an unknown name that a message repeats."""
MAX_LOGIT_BIAS = 100
"""OpenAI's limit."""
MAX_LOGIT_BIASES = 300
"""OpenAI's limit."""
_TOKEN_ID = re.compile("0|[1-9][0-9]{0,8}")


class RequestModel(BaseModel):
    """A JSON object of known keys. Wrong types are refused, never converted."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    neutral_values: ClassVar[dict[str, list[Any]]] = {}
    """Values at which a parameter that is not supported yet is taken."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        cls.neutral_values = {
            name: extra["enum"]  # type: ignore[misc]
            for name, extra in extras.items()
            if isinstance(extra, dict) and "enum" in extra
        }

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name in sorted(data.keys() - cls.model_fields.keys()):
            raise _unknown(name, list(cls.model_fields))
        for name in sorted(data.keys() & cls.neutral_values.keys()):
            if not _is_one_of(data[name], cls.neutral_values[name]):
                raise fault("unsupported_parameter", f"'{name}' is not supported yet.", name)
        return data


def ignored() -> Any:
    return Field(default=None, description=IGNORED)


def not_yet(*neutral: Any) -> Any:
    """A field that is refused unless it is left out, null or one of the neutral values."""
    return Field(default=None, description=NOT_YET, json_schema_extra={"enum": [None, *neutral]})


def fault(code: str, message: str, param: str = "") -> PydanticCustomError:
    """What is wrong with a value.

    Args:
        param: The key at fault, of an object.
    """
    return PydanticCustomError(code, "{message}", {"message": message, "param": param})


def _check_unicode(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as problem:
            message = "The text holds half of a surrogate pair, which is no character."
            raise fault("invalid_unicode", message) from problem
    return text


Unicode = AfterValidator(_check_unicode)
"""Marks text that can be encoded: JSON lets halves of characters through."""
Text = Annotated[str, Unicode]


def _read_logit_bias(value: Any) -> Any:
    """From JSON, whose keys are strings. No message repeats what a client wrote as a key."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_LOGIT_BIASES:
        raise fault("invalid_value", f"'logit_bias' can name at most {MAX_LOGIT_BIASES} tokens.")
    if not all(_TOKEN_ID.fullmatch(key) for key in value):
        raise fault("invalid_value", "The keys of 'logit_bias' must be token ids, such as \"50\".")
    for bias in value.values():
        is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not is_number or not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
            raise fault(
                "invalid_value",
                f"The values of 'logit_bias' must be numbers, -{MAX_LOGIT_BIAS} to"
                f" {MAX_LOGIT_BIAS}.",
            )
    return {int(key): float(bias) for key, bias in value.items()}


LogitBias = Annotated[
    dict[int, Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]],
    BeforeValidator(_read_logit_bias),
]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _unknown(name: str, known: Sequence[str]) -> PydanticCustomError:
    name = name[:_MAX_QUOTED]
    closest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{closest[0]}'?" if closest else ""
    printable = ascii(name)
    return fault("unknown_parameter", f"Unknown parameter: {printable}.{hint}", printable[1:-1])


def _is_one_of(value: Any, neutral: Sequence[Any]) -> bool:
    # To Python 0 and False are equal, to JSON they are not.
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
    )
