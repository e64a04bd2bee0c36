"""`--help`: every key and choice that can be typed, with its meaning."""

import shutil
import textwrap
from collections.abc import Iterator

from launcher.config import GROUP_SCHEMAS, LaunchConfig
from launcher.config_options import Catalogue, Option, read_meaning

EXAMPLES = {
    "dp=2 frontend.port=9000": "two engines behind one port",
    "model=path model.path=DIR": "a Hugging Face directory of Llama, Mistral or Qwen",
    "action=plan dp=4 topology=split": "half of the ranks beside the head, half elsewhere",
    "action=plan dp=4 plan.format=json": "what would run where; starts nothing",
    "action=bench dp=2": "starts it, measures it under load, and ends it",
    "-m action=bench dp=1,2 bench.repeat=3": "measures both three times, and writes a report",
    "action=compare compare.runs=[A,B]": "exits with 3 if what was measured second is worse",
    "action=status": "what runs, beside what was planned",
    "action=stop": "lets the running deployment drain, and waits for its end",
}
_GAP = 2
PIPED_WIDTH = 100
"""Columns where no terminal says how many it has."""
_LEAST_MEANING = 40
"""Columns of a meaning, however narrow the terminal is."""


def help_text() -> str:
    """The page that `--help` prints, as wide as the terminal."""
    width = shutil.get_terminal_size((PIPED_WIDTH, 0)).columns
    catalogue = Catalogue({})
    options = [
        (option.with_default(), _meaning(option))
        for option in _options()
        if not _is_set_by_choice(option, catalogue)
    ]
    choices = list(_choices(catalogue))
    left = max(len(text) for text, _ in (*options, *choices))
    return f"""\
flotilla launches and serves a data-parallel LLM deployment.

usage: python -m launcher [KEY=VALUE ...] [GROUP=CHOICE ...]

Keys, with their defaults:

{_table(options, left, width)}

Groups, each with its default choice first:

{_table(choices, left, width)}

Examples:

{_table([(f"python -m launcher {typed}", why) for typed, why in EXAMPLES.items()], 0, width)}

python -m launcher --cfg job      shows every option and the value that it gets
python -m launcher --hydra-help   lists Hydra's own flags
python -m launcher --version      shows Flotilla's version
"""


def _options() -> list[Option]:
    """Those of every choice, in the order of the config's sections."""
    found: dict[str, Option] = {}
    for group, schemas in GROUP_SCHEMAS.items():
        for schema in schemas:
            found |= Catalogue({group: schema.choice}).options
    sections = list(LaunchConfig.__dataclass_fields__)
    return sorted(found.values(), key=lambda option: sections.index(option.key.partition(".")[0]))


def _is_set_by_choice(option: Option, catalogue: Catalogue) -> bool:
    """Whether it says which choice of its group was made, as `model.kind` does."""
    group = option.key.partition(".")[0]
    return set(option.choices) == set(catalogue.groups.get(group, ["no group"]))


def _meaning(option: Option) -> str:
    meaning = option.meaning
    unnamed = [choice for choice in option.choices if choice not in meaning]
    return f"{meaning} One of {', '.join(option.choices)}." if unnamed else meaning


def _choices(catalogue: Catalogue) -> Iterator[tuple[str, str]]:
    optional = catalogue.groups.keys() - catalogue.defaults.keys()
    for group in (*catalogue.defaults, *sorted(optional)):
        choices = catalogue.groups[group]
        for choice in sorted(choices, key=lambda choice: choice != catalogue.defaults.get(group)):
            yield catalogue.written(group, choice), read_meaning(group, choice)


def _table(rows: list[tuple[str, str]], left: int, width: int) -> str:
    """Two columns, the right one wrapped."""
    left = max(left, *(len(text) for text, _ in rows)) + 2 * _GAP
    room = max(_LEAST_MEANING, width - left)
    lines = []
    for text, meaning in rows:
        first, *rest = textwrap.wrap(meaning.replace("`", ""), room, break_on_hyphens=False)
        lines.append(f"{' ' * _GAP}{text}".ljust(left) + first)
        lines += [" " * left + line for line in rest]
    return "\n".join(lines)
