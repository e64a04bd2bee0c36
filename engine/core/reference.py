"""Greedy decoding in one plain process: what every rank of a deployment must say too.

`python -m engine.core.reference FD` reads a `Task` from its lifeline FD and writes a `Reference` to
stdout. It has no socket, no scheduler and no batch.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import msgspec
import setproctitle
from tokenizers import Tokenizer

from engine import logs
from engine.checkpoints.sources import model_directory
from engine.config import DType, ModelKind, Settings
from engine.errors import EngineError
from engine.lifeline import Lifeline
from engine.model.dummy_runner import DummyRunner
from engine.model.runner import Chunk
from engine.sampling import SamplingParams

TIE = 1e-4
"""Where the two best logits are nearer than this, either token is right."""
EPSILON = {DType.float32: 2.0**-23, DType.bfloat16: 2.0**-7, DType.float16: 2.0**-10}
"""Distance of 1 to the next number: two logits of a narrow type can differ by less than they are
rounded by."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to decode, and how."""

    settings: Settings
    """Of the deployment."""
    prompt: str
    max_tokens: int
    device: int | None
    """GPU id; None on a CPU."""
    num_threads: int


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What greedy decoding gives."""

    prompt_token_ids: list[int]
    num_tokens: int
    """As many as were asked for, or as the context has room for."""
    num_certain: int
    """Tokens before the first tie: after it, texts that differ can both be right."""
    text: str
    """Of the certain tokens."""


def decode(task: Task) -> Reference:
    """Computes the reference.

    Raises:
        EngineError: The model cannot be found, loaded or run.
    """
    settings = task.settings
    directory = model_directory(settings.model)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    prompt = tokenizer.encode(task.prompt, add_special_tokens=False).ids
    prompt = prompt[: max(1, settings.max_model_len // 2)]
    num_tokens = min(task.max_tokens, settings.max_model_len - len(prompt))
    choose = (
        _dummy_choice
        if settings.model.kind is ModelKind.dummy
        else _model_choice(task, directory, len(prompt) + num_tokens)
    )
    certain = [
        choice.token_id
        for choice in takewhile(lambda each: not each.is_tie, _greedy(choose, prompt, num_tokens))
    ]
    text = tokenizer.decode([*prompt, *certain]).removeprefix(tokenizer.decode(prompt))
    if len(certain) < num_tokens:
        text = text.rstrip("\ufffd")  # a character may end after the tie
    return Reference(
        prompt_token_ids=prompt, num_tokens=num_tokens, num_certain=len(certain), text=text
    )


class _Choice(NamedTuple):
    """A token chosen, and whether another is as good."""

    token_id: int
    is_tie: bool


def _greedy(
    choose: Callable[[Chunk], _Choice], prompt: list[int], num_tokens: int
) -> Iterator[_Choice]:
    """Feeds the prompt, then each chosen token alone."""
    greedy = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    # More blocks than any block size needs: a chunk uses those that its tokens reach.
    blocks = list(range(len(prompt) + num_tokens))
    token_ids, start = prompt, 0
    for index in range(num_tokens):
        choice = choose(Chunk(token_ids, start, blocks, greedy, index))
        yield choice
        start += len(token_ids)
        token_ids = [choice.token_id]


def _dummy_choice(chunk: Chunk) -> _Choice:
    return _Choice(DummyRunner().execute([chunk]).token_ids[0], is_tie=False)


def _model_choice(task: Task, directory: Path, num_cache_tokens: int) -> Callable[[Chunk], _Choice]:
    """Chooses by a model of its own, with a cache for one request."""
    from engine.model.torch_runner import TorchRunner  # torch is large: only what computes has it

    cache = replace(task.settings.cache, num_blocks=num_cache_tokens)
    settings = replace(task.settings, cache=cache)
    runner = TorchRunner(settings, directory, task.device, task.num_threads)
    runner.prepare_kernels()
    runner.load_weights()
    runner.allocate_cache()
    epsilon = EPSILON[settings.dtype]

    def choose(chunk: Chunk) -> _Choice:
        best = runner.logits([chunk])[0].topk(2)
        first, second = best.values.tolist()
        return _Choice(
            int(best.indices[0]), is_tie=first - second <= max(TIE, epsilon * abs(first))
        )

    return choose


def main() -> int:
    # Signals are the launcher's to answer, as in every other process of a deployment.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lifeline = Lifeline(int(sys.argv[1]))
    try:
        task = msgspec.msgpack.decode(lifeline.payload(), type=Task)
    except EOFError:
        return 1
    lifeline.watch(lambda: None, grace_s=0)
    logs.configure("reference", task.settings.log.level)
    setproctitle.setproctitle(f"flotilla {task.settings.name} reference")
    try:
        reference = decode(task)
    except EngineError as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(reference))
    return 0


if __name__ == "__main__":
    sys.exit(main())
