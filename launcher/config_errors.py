"""Mistakes on the command line: what is wrong in one line, and an override that works.

Hydra says what it could not do, one thing at a time; here every override is looked at, so that
all mistakes are named at once, each with the closest name.
"""

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from launcher.config import Action
from launcher.config_options import Catalogue
from launcher.errors import Refused

SHOW_OPTIONS = "python -m launcher --help explains every option"
SHOW_FLAGS = "python -m launcher --hydra-help lists the flags"
WRITTEN = "an override is written key=value, such as dp=2"
NO_OVERRIDE = "not an override"
NOT_TAKEN_AWAY = "nothing can be taken away with ~"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
"""`owner/name` on the hub; a relative path can look like it too."""
OTHER_NAMES = {"gpu": "cuda"}
"""What people write whose closest name is a wrong one."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    message: str
    """Full key and value included."""
    override: str = ""
    """What works instead."""


def refusal(problems: Iterable[Problem], hint: str = SHOW_OPTIONS) -> Refused:
    """All problems in one error: a line for each, one hint with all overrides that mend them."""
    problems = list(problems)
    messages = "\n".join(_printable(problem.message) for problem in problems)
    overrides = dict.fromkeys(problem.override for problem in problems if problem.override)
    return Refused(messages, _printable(" ".join(overrides)) or hint)


def explain(error: Exception, overrides: Sequence[str], multirun: bool) -> Refused | None:
    """What the user can do about an error of Hydra or OmegaConf; None if it is not the user's.

    Args:
        error: What was raised before the config was complete.
        overrides: As typed.
        multirun: Whether an override may have several values.
    """
    parsed, problems = _parse(overrides)
    chosen = {
        item.key_or_group: str(item.value()) for item in parsed if not item.is_sweep_override()
    }
    catalogue = Catalogue(chosen)
    for override in parsed:
        problems.extend(_problems(override, catalogue, multirun))
    if problems:
        is_misread = any(problem.message.startswith(NO_OVERRIDE) for problem in problems)
        return refusal(problems, WRITTEN if is_misread else SHOW_OPTIONS)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return refusal([_as_hydra_says(error, catalogue, overrides)])
    if isinstance(error, ValueError):  # how Hydra refuses flags that exclude each other
        return Refused(str(error), SHOW_FLAGS)
    return None


def explain_flags(flags: Sequence[str], overrides: Sequence[str]) -> Refused:
    """What to write instead of flags that do not exist, such as `--dp 2` or `--dp=2`."""
    flag, equals, value = flags[0].partition("=")
    value = value or next((text for text in overrides if "=" not in text), "")
    catalogue = Catalogue({})
    key = _closest_key(flag.strip("-").replace("-", "_"), catalogue)
    hint = WRITTEN
    if key and value:
        wrong_too = _problem(key, value, f"{key}={value}", catalogue)
        override = wrong_too.override if wrong_too else _override(key, value, catalogue)
        hint = f"options are overrides, without dashes: {override}"
    typed = flags[0] if equals or not value else f"{flag} {value}"
    return Refused(_printable(f"there is no flag {flag}: {typed}"), _printable(hint))


def _parse(overrides: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except OverrideParseException:
            problems.append(_unreadable(text))
    return parsed, problems


def _unreadable(text: str) -> Problem:
    """What is wrong with an override that Hydra's grammar does not allow: it knows ASCII only."""
    typed, equals, value = text.partition("=")
    key = typed.lstrip("+")
    catalogue = Catalogue({})
    if key.startswith("~"):
        return Problem(f"{NOT_TAKEN_AWAY}: {text}")
    if not equals:
        return Problem(f"{NO_OVERRIDE}: {text}", _meant_by(text, catalogue))
    if not re.fullmatch(r"[\w./@-]+", key):
        return Problem(f"{NO_OVERRIDE}: {text}")
    problem = _problem(key, value, text, catalogue)
    if problem is not None:
        return problem
    option = catalogue.options.get(key)
    if option is not None and option.expected != "text":  # Python reads digits of other scripts
        return Problem(f"{key} must be {option.expected}: {value}", option.with_default())
    override = _override(key, value, catalogue)
    return Problem(f"{typed} has a value that must be quoted: {text}", override)


def _override(key: str, value: str, catalogue: Catalogue) -> str:
    """The override that sets a key to what was typed, quoted for Hydra and the shell."""
    override = catalogue.written(key, value)
    try:
        OverridesParser.create().parse_overrides([override])
    except OverrideParseException:
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        override = catalogue.written(key, f'"{quoted}"')
    return shlex.quote(override)


def _meant_by(word: str, catalogue: Catalogue) -> str:
    """The override that a lone word stands for: `plan` -> `action=plan`, `tiny` -> `model=tiny`."""
    values = {action.name: "action" for action in Action}
    for group, choices in catalogue.groups.items():
        values |= {choice: group for choice in choices if choice not in ("default", *values)}
    close = difflib.get_close_matches(word, values, n=1, cutoff=0.7)
    return catalogue.written(values[close[0]], close[0]) if close else ""


def _problems(override: Override, catalogue: Catalogue, multirun: bool) -> Iterator[Problem]:
    key, text = override.key_or_group, override.input_line or ""
    if override.is_hydra_override() or override.package is not None:
        return
    if override.is_delete():
        if key not in catalogue.groups:
            yield Problem(f"{NOT_TAKEN_AWAY}: {text}")
    elif override.is_sweep_override():
        if (problem := _list_without_brackets(override, catalogue)) is not None:
            yield problem
        elif multirun and override.is_discrete_sweep():
            if isinstance(override.value(), Glob):  # it finds nothing but choices that there are
                values: Iterable[object] = catalogue.groups.get(key, [text.partition("=")[2]])
            else:
                values = override.sweep_iterator()
            each = (_problem(key, value, text, catalogue) for value in values)
            first = next((problem for problem in each if problem is not None), None)
            if first is not None:
                yield replace(first, override=_right_sweep(override, catalogue) or first.override)
        elif not multirun:
            yield Problem(
                f"{key} takes one value, or several with -m: {text}", f"-m {shlex.quote(text)}"
            )
    elif (problem := _problem(key, override.value(), text, catalogue)) is not None:
        yield problem
    elif key in catalogue.groups and key not in catalogue.defaults:
        if not override.is_add():
            message = f"{key} has no default, it is written with one +: {text}"
            yield Problem(message, "+" + text.lstrip("+"))
    elif override.is_add():
        yield Problem(f"{key} exists already, write it without +: {text}", text.lstrip("+"))


def _right_sweep(override: Override, catalogue: Catalogue) -> str:
    """A sweep with all values that were typed for a misspelt key; "" if it is none."""
    key, text = override.key_or_group, override.input_line or ""
    if key in catalogue.sections or key in catalogue.options or catalogue.in_other_choice(key):
        return ""
    close = _closest_key(key, catalogue)
    if not close:
        return ""
    works = catalogue.written(close, text.partition("=")[2])
    renamed = OverridesParser.create().parse_override(works)
    wrong_too = next(_problems(renamed, catalogue, multirun=True), None)
    return wrong_too.override if wrong_too else shlex.quote(works)


def _list_without_brackets(override: Override, catalogue: Catalogue) -> Problem | None:
    """Of `bench.concurrency=1,4`: values of a list, where none of them is a list itself."""
    option = catalogue.options.get(override.key_or_group)
    if option is None or override.value_type is not ValueType.SIMPLE_CHOICE_SWEEP:
        return None
    values = list(override.sweep_iterator())
    if any(option.accepts(value) for value in values) or not option.accepts(values):
        return None
    typed = (override.input_line or "").partition("=")[2]
    works = shlex.quote(f"{option.key}=[{typed}]")
    return Problem(f"{option.key} must be {option.expected}: {typed}", works)


def _problem(key: str, value: object, text: str, catalogue: Catalogue) -> Problem | None:
    """What is wrong with a key or its value; limits are checked later, on the whole config."""
    if isinstance(value, dict) and key in catalogue.sections:
        inner = (_problem(f"{key}.{name}", item, text, catalogue) for name, item in value.items())
        return next((problem for problem in inner if problem is not None), None)
    if key in catalogue.groups:
        choices = catalogue.groups[key]
        default = catalogue.defaults.get(key, choices[0])
        return _wrong_choice(key, choices, default, value, catalogue)
    if key in catalogue.sections:
        first = next(option for option in catalogue.options if option.startswith(f"{key}."))
        override = catalogue.options[first].with_default()
        return Problem(f"{key} holds options, it takes no value itself: {_shown(value)}", override)
    option = catalogue.options.get(key)
    if option is None:
        return _unknown(key, value, text, catalogue)
    if option.choices:
        default = option.with_default().partition("=")[2]
        return _wrong_choice(key, option.choices, default, value, catalogue)
    if not option.accepts(value):
        is_one = option.accepts([value])  # where a list is wanted
        works = f"{key}=[{_shown(value)}]" if is_one else option.with_default()
        return Problem(f"{key} must be {option.expected}: {_shown(value)}", works)
    return None


def _wrong_choice(
    key: str, choices: Sequence[str], default: str, value: object, catalogue: Catalogue
) -> Problem | None:
    word = _shown(value)
    if word in choices or "${" in word:
        return None
    message = f"{key} must be one of {', '.join(choices)}: {word}"
    source = _source(key, word, catalogue)
    if source:
        return Problem(message, source)
    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    other = OTHER_NAMES.get(word, "")
    choice = other if other in choices else (close or [default])[0]
    return Problem(message, catalogue.written(key, choice))


def _source(key: str, word: str, catalogue: Catalogue) -> str:
    """The overrides that take a model from where the word says: a directory or a repository."""
    if key != "model":
        return ""
    if REPOSITORY.fullmatch(word) and not os.path.isdir(word):
        return f"model=hub {_override('model.repo', word, catalogue)}"
    if "/" in word or os.path.isdir(os.path.expanduser(word)):
        return f"model=path {_override('model.path', word, catalogue)}"
    return ""


def _unknown(key: str, value: object, text: str, catalogue: Catalogue) -> Problem:
    typed = text.partition("=")[2] if f"{key}=" in text else _shown(value)
    choice = catalogue.in_other_choice(key)
    if choice is not None:
        group = choice.partition("=")[0]
        message = f"{key} is no option of {group}={catalogue.chosen[group]}: {text}"
        return Problem(message, f"{choice} {shlex.quote(f'{key}={typed}')}")
    message = f"there is no option {key}: {text}"
    close = _closest_key(key, catalogue)
    if not close:
        return Problem(message)
    wrong_too = _problem(close, value, text, catalogue)
    override = wrong_too.override if wrong_too else _override(close, typed, catalogue)
    return Problem(message, override)


def _closest_key(key: str, catalogue: Catalogue) -> str:
    """The group or option most like a misspelt key, or ""."""
    section, _, name = key.rpartition(".")

    def likeness(candidate: str) -> float:
        its_section, _, its_name = candidate.rpartition(".")
        alone = _ratio(name, its_name) + (0.1 if section == its_section else 0)
        return max(alone, _ratio(key, candidate))

    best = max((*catalogue.groups, *catalogue.options), key=likeness)
    return best if likeness(best) > 0.7 else ""


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _as_hydra_says(error: Exception, catalogue: Catalogue, overrides: Sequence[str]) -> Problem:
    """An error that no single override explains, in Hydra's or OmegaConf's own words."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    says = str(cause).partition("\n")[0] or type(cause).__name__
    key = getattr(cause, "full_key", None) or ""
    if key in catalogue.options:
        override = catalogue.options[key].with_default()
    else:
        override = f"{key}={catalogue.defaults[key]}" if key in catalogue.defaults else ""
    if isinstance(cause, MissingMandatoryValue):
        return Problem(f"{key} has no value", override)
    written = [text for text in overrides if text.lstrip("+").startswith(f"{key}=")]
    return Problem(f"{says}: {written[-1]}" if key and written else says, override)


def _shown(value: object) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "(empty)"


def _printable(text: str) -> str:
    """One line, whatever was typed: control characters and stray bytes as escapes."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
