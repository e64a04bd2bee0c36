"""How long it takes to choose a step's tokens, by our kernel and by torch.

    PYTHONPATH=. python benchmarks/sampling.py [--rows 64] [--vocab-size 49152] [--threads 2]

Logits are random (normal, times 3), which is harder than a model's: few of them can be left out
early. Prints one JSON object per kind of request: milliseconds, the lowest of the rounds.
"""

import argparse
import json
import time
from typing import Any

import torch

from engine.model.choice import Sampler
from engine.model.kernels.binding import Team, best_library
from engine.model.kernels.sampler import NativeSampler
from engine.model.logit_edits import edits_of
from engine.model.sampler import Row, sample
from engine.model.torch_sampler import TorchSampler
from engine.sampling import SamplingParams

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 50},
    "min_p": {"min_p": 0.05},
    "top_k, top_p": {"top_k": 50, "top_p": 0.9},
    "top_p, penalties": {"top_p": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
    "greedy, logprobs=0": {"temperature": 0.0, "logprobs": 0},
    "greedy, logprobs=20": {"temperature": 0.0, "logprobs": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    library = best_library(torch.float32)
    native = NativeSampler(library, Team(library, args.threads))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((args.rows, args.vocab_size), generator=generator) * 3
    for name, options in KINDS.items():
        rows = [row(seed, options, args.vocab_size) for seed in range(args.rows)]
        times: dict[str, Any] = {"kind": name}
        for by, sampler, num_threads in (
            ("native", native, 1),
            ("torch", TorchSampler(), args.threads),
        ):
            torch.set_num_threads(num_threads)
            times[f"{by}_ms"] = min(measure(logits, rows, sampler) for _ in range(args.rounds))
        print(json.dumps(times), flush=True)  # noqa: T201


def row(seed: int, options: dict[str, Any], vocab_size: int) -> Row:
    """Of a request with a prompt of 1000 tokens and 100 outputs."""
    params = SamplingParams(200, seed=seed, **options)
    edits = edits_of(params, [index * 37 % vocab_size for index in range(1000)], [])
    if edits is not None:
        for index in range(100):
            edits.note(index * 41 % vocab_size)
    return Row(params, 100, edits)


def measure(logits: torch.Tensor, rows: list[Row], sampler: Sampler) -> float:
    """Milliseconds of one call, on a copy of the logits."""
    logits = logits.clone()
    began = time.perf_counter()
    sample(logits, rows, sampler)
    return round((time.perf_counter() - began) * 1e3, 2)


if __name__ == "__main__":
    main()
