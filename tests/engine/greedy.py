"""Greedy decoding in float32 held against Hugging Face transformers, token by token.

The rule: every token is the one that the reference finds best after the same tokens. Only where
the reference's two candidates are as good as equal may the texts part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from engine.config import Settings
from engine.core.engine_core import EngineCore
from engine.core.request import Request
from engine.model.torch_runner import TorchRunner
from engine.protocol import AddRequest
from engine.sampling import SamplingParams

TIE = 1e-4
"""A first difference counts as a tie only where the reference's two best logits are this near."""


class Reference:
    """The same model in transformers."""

    def __init__(self, directory: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._model.eval()

    @torch.inference_mode()
    def check(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Fails unless greedy decoding of the prompt gives the output, ties apart.

        One pass over prompt and output tells: if every token is the best one after those before it,
        then greedy decoding gives just them.
        """
        tokens = torch.tensor([[*prompt, *output]])
        logits = self._model(tokens).logits[0, len(prompt) - 1 : -1]
        for index, token in enumerate(output):
            best = logits[index].topk(2)
            if best.indices[0] != token:
                gap = float(best.values[0] - logits[index, token])
                assert gap <= TIE, (
                    f"output {index}: {token}, reference {best.indices[0]}, gap {gap}"
                )
                return  # after a tie the texts go different ways


@dataclass
class Seen:
    """How requests were run: tells whether what a test is named for has happened."""

    requests: dict[int, Request] = field(default_factory=dict)
    """By the index of the prompt."""
    num_steps: int = 0

    @property
    def num_cached(self) -> int:
        """Prompt tokens that the prefix cache gave, of all requests."""
        return sum(request.num_cached for request in self.requests.values())


def make_core(settings: Settings, directory: Path) -> EngineCore:
    """An engine core with the real model, on the device of the settings."""
    runner = TorchRunner(settings, directory, device_id=0, num_threads=1)
    runner.prepare_kernels()
    runner.load_weights()
    runner.allocate_cache()
    runner.warm_up()
    return EngineCore(settings, runner)


def run(
    core: EngineCore,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    arrivals: Sequence[int] = (),
    seen: "Seen | None" = None,
) -> list[list[int]]:
    """Greedy outputs of the prompts.

    Args:
        arrivals: The step before which each prompt arrives; all at once if not given.
        seen: Takes what happened on the way.
    """
    seen = seen if seen is not None else Seen()
    greedy = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    outputs: list[list[int]] = [[] for _ in prompts]
    due = sorted(zip(arrivals or [0] * len(prompts), range(len(prompts)), strict=True))
    step = 0
    while due or core.num_requests:
        while due and due[0][0] <= step:
            _, index = due.pop(0)
            core.add_request("test", AddRequest(index, index, list(prompts[index]), greedy))
        for item in core.step() if core.num_requests else ():
            seen.requests[item.request.key.request_id] = item.request
            outputs[item.request.key.request_id].append(item.token_id)
        step += 1
    seen.num_steps = step
    return outputs


def one_by_one(
    core: EngineCore, prompts: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[list[int]]:
    """Greedy outputs of the prompts, each run alone."""
    for prompt in prompts:
        yield run(core, [prompt], max_tokens)[0]
