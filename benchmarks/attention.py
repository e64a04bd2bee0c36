"""How long the attention kernel takes for one layer, caches cold as in a model.

    PYTHONPATH=. python benchmarks/attention.py [--cases 1x1+150,64x1+150,1x512+0] [--threads 2]

A case is SEQUENCESxTOKENS+CONTEXT: so many sequences, each with new tokens after a context that is
in the cache already. Heads are those of SmolLM2-135M (9 of 64, 3 key-value heads), 30 layers take
turns, blocks lie in order. Prints one JSON object per case: microseconds a layer, the lowest of all
calls, and what that is in bytes of the cache that are read and in floating-point operations.
"""

import argparse
import json
import time
from dataclasses import replace

import torch

from engine.model.batch import lay_out
from engine.model.kernels.attention import NativeAttention
from engine.model.kernels.binding import Library, Team
from engine.model.kernels.build import usable_paths
from engine.model.runner import Chunk
from tests.engine.settings import dummy_settings

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, LAYERS = 9, 3, 64, 16, 30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    paths = {path.name: path for path in usable_paths()}
    parser.add_argument("--cases", default="1x1+150,4x1+150,16x1+150,64x1+150,1x1+1000,1x512+0")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--path", choices=paths, default=next(iter(paths)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    library = Library(paths[args.path], getattr(torch, args.dtype))
    team = Team(library, args.threads)
    for case in args.cases.split(","):
        sequences, rest = case.split("x")
        tokens, context = map(int, rest.split("+"))
        print(  # noqa: T201
            json.dumps(measure(library, team, args, int(sequences), tokens, context)), flush=True
        )


def measure(
    library: Library,
    team: Team,
    args: argparse.Namespace,
    sequences: int,
    tokens: int,
    context: int,
) -> dict[str, float | str]:
    """Of one case."""
    dtype, end = getattr(torch, args.dtype), context + tokens
    num_blocks = -(-end // BLOCK_SIZE)
    base = dummy_settings()
    facts = replace(
        base.facts,
        head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
    )
    cache = replace(base.cache, block_size=BLOCK_SIZE, num_blocks=sequences * num_blocks)
    settings = replace(base, facts=facts, cache=cache, max_model_len=max(end, BLOCK_SIZE))
    attention = NativeAttention(library, team, settings, dtype)
    layer = attention.layer()
    caches = [attention.new_cache().normal_() for _ in range(LAYERS)]
    chunks = [
        Chunk([0] * tokens, context, list(range(i * num_blocks, (i + 1) * num_blocks)), None)
        for i in range(sequences)
    ]
    step = attention.begin_step(lay_out(chunks, BLOCK_SIZE, attention.tile_tokens))
    qkv = torch.randn(sequences * tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM).to(dtype)
    times = []
    for index in range(LAYERS * args.rounds):
        began = time.perf_counter()
        layer(qkv, caches[index % LAYERS], step)
        times.append(time.perf_counter() - began)
    best_s = min(times)
    seen = sequences * sum(range(context + 1, end + 1))
    return {
        "case": f"{sequences}x{tokens}+{context}",
        "us": round(best_s * 1e6, 1),
        "gb_s": round(sequences * end * 2 * KV_HEADS * HEAD_DIM * dtype.itemsize / best_s / 1e9, 1),
        "gflop_s": round(seen * HEADS * HEAD_DIM * 4 / best_s / 1e9, 1),
    }


if __name__ == "__main__":
    main()
