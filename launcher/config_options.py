"""What can be written on the command line: options with types and defaults, groups with choices."""

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config import GROUP_SCHEMAS, LaunchConfig


@dataclass(frozen=True, slots=True)
class Option:
    """One key that takes a value."""

    key: str
    """With dots: `profile.max_num_seqs`."""
    section: type
    """The dataclass that owns it."""
    type: Any
    default: Any

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def choices(self) -> tuple[str, ...]:
        """What an enumeration can be; empty for other types."""
        return tuple(self.type.__members__) if _is_enum(self.type) else ()

    @property
    def meaning(self) -> str:
        """The doc string under its field, as one line."""
        classes = filter(dataclasses.is_dataclass, self.section.__mro__)
        return next(docs[self.name] for docs in map(_field_docs, classes) if self.name in docs)

    @property
    def expected(self) -> str:
        """What its values are, to follow "must be"."""
        match self.type:
            case _ if self.choices:
                return "one of " + ", ".join(self.choices)
            case kind if kind is bool:
                return "true or false"
            case kind if kind is int:
                return "a whole number"
            case kind if kind is float:
                return "a number"
            case kind if kind == list[int]:
                return "a list of whole numbers, such as [1,4]"
            case kind if kind == list[float]:
                return "a list of numbers, such as [0.5,2]"
            case kind if get_origin(kind) is list:
                return "a list such as [a,b]"
        return "text"

    def accepts(self, value: object) -> bool:
        """Whether the value has the option's type; its limits are another matter."""
        try:
            OmegaConf.update(OmegaConf.structured(self.section), self.name, value)
        except OmegaConfBaseException:
            return False
        return True

    def with_default(self) -> str:
        """The override that sets the default."""
        match self.default:
            case None:
                value = "null"
            case bool(default):
                value = str(default).lower()
            case Enum(name=name):
                value = name
            case list(default):
                value = f"[{','.join(map(str, default))}]"
            case dataclasses.MISSING:  # only the choice of a group sets it
                value = self.choices[0]
            case default:
                value = str(default)
        return f"{self.key}={value}"


class Catalogue:
    """All options and groups, given the choices that groups with schemas of their own have.

    Attributes:
        options: By full key.
        sections: Keys that hold options.
        groups: Choices of each group.
        defaults: The choice each group has by default; groups that need not be chosen have none.
        chosen: The choice each group has.
    """

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self.groups = read_groups()
        self.defaults = read_defaults()
        known = {group: choice for group, choice in chosen.items() if self._is_known(group, choice)}
        self.chosen = {**self.defaults, **read_implied(known), **chosen}
        self.options = {option.key: option for option in self._walk(LaunchConfig, "")}
        self.sections = {key.rpartition(".")[0] for key in self.options} - {""} | set(self.groups)

    def written(self, key: str, value: str) -> str:
        """The override that sets a key; a group without a default has to be added."""
        is_optional = key in self.groups and key not in self.defaults
        return f"{'+' * is_optional}{key}={value}"

    def in_other_choice(self, key: str) -> str | None:
        """The choice of the key's group, `cluster=file`, with which the key exists."""
        group, _, name = key.partition(".")
        for schema in GROUP_SCHEMAS.get(group, ()):
            if name in {field.name for field in dataclasses.fields(schema)}:
                return f"{group}={schema.choice}"
        return None

    def _is_known(self, group: str, choice: str) -> bool:
        return choice in self.groups.get(group, ())

    def _walk(self, section: type, prefix: str) -> Iterator[Option]:
        hints = get_type_hints(section)
        for field in dataclasses.fields(section):
            kind = _without_none(hints[field.name])
            key = prefix + field.name
            if key in GROUP_SCHEMAS:
                kind = self._schema(key)
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield from self._walk(kind, key + ".")
            else:
                yield Option(key, section, kind, default_of(field))

    def _schema(self, group: str) -> type:
        schemas = {schema.choice: schema for schema in GROUP_SCHEMAS[group]}
        return schemas.get(self.chosen[group], GROUP_SCHEMAS[group][0])


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Of an option: lists are made anew for each config."""
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def read_groups() -> dict[str, Sequence[str]]:
    """Choices of each group: the YAML files in `conf/`."""
    return {
        folder.name: sorted(file.name[:-5] for file in folder.iterdir() if _is_yaml(file.name))
        for folder in resources.files("conf").iterdir()
        if folder.is_dir() and any(_is_yaml(file.name) for file in folder.iterdir())
    }


def read_defaults() -> dict[str, str]:
    """The choice of each group in the defaults list."""
    primary = yaml.safe_load(resources.files("conf").joinpath("config.yaml").read_text())
    entries = [entry for entry in primary["defaults"] if isinstance(entry, dict)]
    return {key: value for entry in entries for key, value in entry.items() if " " not in key}


def read_implied(chosen: Mapping[str, str]) -> dict[str, str]:
    """The choices of other groups that come with the chosen ones, as topology=split brings ray."""
    implied: dict[str, str] = {}
    for group, choice in chosen.items():
        file = resources.files("conf").joinpath(group, f"{choice}.yaml")
        content = yaml.safe_load(file.read_text()) or {}
        for entry in content.get("defaults", ()):
            for key, value in entry.items() if isinstance(entry, dict) else ():
                verb, _, other = key.partition(" /")
                implied |= {other: value} if verb == "override" else {}
    return implied


def read_meaning(group: str, choice: str) -> str:
    """What a choice is: the comment at the head of its YAML file."""
    lines = resources.files("conf").joinpath(group, f"{choice}.yaml").read_text().splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.strip("# ") for line in comment if "@package" not in line)


@functools.cache
def _field_docs(section: type) -> dict[str, str]:
    """The doc strings under the fields that a class adds, which Python itself does not keep."""
    tree = ast.parse(inspect.getsource(sys.modules[section.__module__]))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    docs = {}
    for field, after in itertools.pairwise(body):
        match field, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                docs[name] = " ".join(doc.split())
    return docs


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml")


def _is_enum(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _without_none(kind: Any) -> Any:
    """The type without `| None`."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(arm for arm in get_args(kind) if arm is not type(None))
    return kind
