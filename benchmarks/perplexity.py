"""Perplexity of a model on a text, by the engine's own log-probabilities of prompt tokens.

    PYTHONPATH=. python benchmarks/perplexity.py DIR [--dtype bfloat16] [--quantization int8]

DIR is a Hugging Face directory. The text is what `help()` knows of Python's language (the standard
library's `pydoc_data.topics`, another one in every version), cut into windows that start without
context. Prints one JSON object.
"""

import argparse
import json
import math
import time
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer

from engine.config import DType, Kernels, Quantization
from engine.model.runner import Chunk, PromptScoring
from engine.model.torch_runner import TorchRunner
from engine.sampling import TokenLogprobs
from tests.engine.settings import make_settings

BLOCK_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--quantization", choices=("none", "int8"), default="none")
    parser.add_argument("--kernels", choices=("native", "torch"), default="native")
    parser.add_argument("--window", type=int, default=512, help="tokens with one context")
    parser.add_argument("--windows", type=int, default=64, help="as many from the text's begin")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    runner = _make_runner(args)
    began_s = time.perf_counter()
    logprobs = [scored.logprob for window in _windows(args) for scored in _score(runner, window)]
    mean = sum(logprobs) / len(logprobs)
    result = {
        "perplexity": round(math.exp(-mean), 4),
        "tokens": len(logprobs),
        "seconds": round(time.perf_counter() - began_s, 1),
    }
    print(json.dumps(result))  # noqa: T201


def _make_runner(args: argparse.Namespace) -> TorchRunner:
    settings = make_settings(
        args.directory,
        dtype=DType(args.dtype),
        quantization=Quantization(args.quantization),
        kernels=Kernels(args.kernels),
        max_model_len=args.window,
        max_num_batched_tokens=args.window,
        cache={"block_size": BLOCK_SIZE, "num_blocks": -(-args.window // BLOCK_SIZE)},
    )
    runner = TorchRunner(settings, args.directory, device_id=None, num_threads=args.threads)
    runner.prepare_kernels()
    runner.load_weights()
    runner.allocate_cache()
    return runner


def _windows(args: argparse.Namespace) -> list[list[int]]:
    text = "\n".join(topics[name] for name in sorted(topics))
    token_ids = Tokenizer.from_file(str(args.directory / "tokenizer.json")).encode(text).ids
    begins = range(0, len(token_ids) - args.window + 1, args.window)
    return [token_ids[begin : begin + args.window] for begin in begins[: args.windows]]


def _score(runner: TorchRunner, window: list[int]) -> list[TokenLogprobs]:
    blocks = list(range(-(-len(window) // BLOCK_SIZE)))
    scoring = PromptScoring(offset=0, token_ids=window[1:], num_top=0)
    return runner.execute([Chunk(window, 0, blocks, None, scoring=scoring)]).prompt_logprobs[0]


if __name__ == "__main__":
    main()
