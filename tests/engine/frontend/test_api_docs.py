"""The tables of docs/api.md are what the request models say: names, ranges, what is taken."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.frontend.messages import ChatMessage, TextPart
from engine.frontend.parameters import IGNORED, NOT_YET, RequestModel
from engine.frontend.requests import ChatCompletionRequest, CompletionRequest, StreamOptions
from engine.frontend.tokenization import DetokenizeRequest, TokenizeRequest

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
NAME = re.compile("`([a-z_]+)`")
NUMBER = "-?[0-9.]+"


def section(heading: str) -> str:
    begin = PAGE.index(f"\n{heading}\n") + len(heading) + 2
    return re.split("\n###? ", PAGE[begin:])[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a section's first table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def names(text: str) -> set[str]:
    return {name for row in rows(text) for name in NAME.findall(row[0])}


def fields_of(model: type[RequestModel], kind: str) -> set[str]:
    """Names of the fields that are used, ignored, or not supported yet."""
    kinds = {
        name: field.description if field.description in (IGNORED, NOT_YET) else "used"
        for name, field in model.model_fields.items()
    }
    return {name for name, each in kinds.items() if each == kind}


BOTH, CHAT, TEXT = section("### Both"), section("### Chat only"), section("### Completions only")
MESSAGES = CHAT[CHAT.index("\nA message:") :]
CHAT = CHAT.removesuffix(MESSAGES)
STREAM = BOTH[BOTH.index("\n`stream_options`:") :]
BOTH = BOTH.removesuffix(STREAM)
TOKENIZE = section("### `/tokenize` and `/detokenize`")


@pytest.mark.parametrize(
    ("model", "tables"),
    [(ChatCompletionRequest, [BOTH, CHAT]), (CompletionRequest, [BOTH, TEXT])],
)
def test_every_parameter_that_is_used_has_its_row_and_no_other(model, tables: list[str]):
    told = [name for table in tables for name in names(table)]
    assert sorted(told) == sorted(fields_of(model, "used"))


def test_the_objects_in_parameters_and_the_other_paths_are_told_too():
    assert names(STREAM) == set(StreamOptions.model_fields)
    assert names(MESSAGES) == set(ChatMessage.model_fields)
    parts = next(row for row in rows(MESSAGES) if row[0] == "`content`")
    assert fields_of(TextPart, NOT_YET) <= set(NAME.findall(parts[3]))
    used = fields_of(TokenizeRequest, "used") | fields_of(DetokenizeRequest, "used")
    assert names(TOKENIZE) - {"detokenize"} == used


def test_what_is_ignored_is_told():
    both, chat = section("### Ignored").split("chat:")
    common = set(NAME.findall(both))
    assert common == fields_of(CompletionRequest, IGNORED)
    assert common | set(NAME.findall(chat)) == fields_of(ChatCompletionRequest, IGNORED)


def not_yet(who: str) -> dict[str, list[Any]]:
    """What is taken of the parameters that one kind of request does not support yet."""
    taken = {}
    for whom, accepted in rows(section("### Not supported yet")):
        for part in whom.split(";"):
            owner, _, listed = part.rpartition(": ")
            if not owner.strip() or owner.strip().strip("`") == who:
                values = re.findall("`([^`]*)`", accepted)
                for name in NAME.findall(listed):
                    taken[name] = [None, *map(value_of, values)]
    return taken


def value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize(
    ("model", "who"), [(ChatCompletionRequest, "chat"), (CompletionRequest, "completions")]
)
def test_what_is_not_supported_yet_is_told_with_what_is_taken(model, who: str):
    assert not_yet(who) == model.neutral_values


def test_the_ranges_are_those_of_the_models():
    checked = 0
    tables: list[tuple[type[RequestModel], str]] = [
        (ChatCompletionRequest, BOTH),
        (ChatCompletionRequest, CHAT),
        (CompletionRequest, TEXT),
    ]
    for model, table in tables:
        properties = model.model_json_schema()["properties"]
        for name, told, *_ in rows(table):
            range_ = re.match(rf"({NUMBER}) \.\. ({NUMBER})?", told)
            if range_ is None:
                continue
            kinds = properties[name.strip("`")]["anyOf"]
            limits = next(kind for kind in kinds if "minimum" in kind)
            assert limits["minimum"] == float(range_[1]), name
            if range_[2] is not None:
                assert limits["maximum"] == float(range_[2]), name
            checked += 1
    assert checked >= 9
