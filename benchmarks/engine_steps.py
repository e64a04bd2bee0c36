"""Times of an engine core's steps, without sockets: how long a prefill and a decode step take.

    PYTHONPATH=. python benchmarks/engine_steps.py DIR [--dtype bfloat16] [--quantization int8]

DIR is a Hugging Face directory. Each batch size is so many requests that arrive at once with random
prompts. Prints one JSON object per batch size; times are in milliseconds, the
lowest and the median of the decode steps.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from engine.config import Device, DType, Quantization
from engine.core.engine_core import EngineCore
from engine.model.torch_runner import TorchRunner
from engine.protocol import AddRequest
from engine.sampling import SamplingParams
from tests.engine.settings import make_settings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quantization", choices=("none", "int8"), default="none")
    parser.add_argument("--batches", default="1,4,16,64", help="requests at once, by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    args = parser.parse_args()
    core = _make_core(args)
    for batch in map(int, args.batches.split(",")):
        print(json.dumps(_measure(core, batch, args)), flush=True)  # noqa: T201


def _make_core(args: argparse.Namespace) -> EngineCore:
    settings = make_settings(
        args.directory,
        dtype=DType(args.dtype),
        device=Device(args.device),
        quantization=Quantization(args.quantization),
        max_model_len=args.input_len + args.output_len,
        max_num_seqs=1024,
        max_num_batched_tokens=2048,
        max_step_s=600.0,  # else some would be answered before all have begun
        cache={"block_size": 16, "num_blocks": 4096, "prefix_caching": False},
    )
    runner = TorchRunner(settings, args.directory, device_id=0, num_threads=args.threads)
    runner.prepare_kernels()
    runner.load_weights()
    runner.allocate_cache()
    runner.warm_up()
    return EngineCore(settings, runner)


def _measure(core: EngineCore, batch: int, args: argparse.Namespace) -> dict[str, float]:
    rng = random.Random(batch)
    greedy = SamplingParams(args.output_len, temperature=0.0, ignore_eos=True)
    for index in range(batch):
        prompt = [rng.randrange(100, 10_000) for _ in range(args.input_len)]
        core.add_request("benchmark", AddRequest(index, index, prompt, greedy))
    prefill_s, decodes = 0.0, []
    began = time.perf_counter()
    while core.num_requests:
        step_began = time.perf_counter()
        produced = core.step()
        step_s = time.perf_counter() - step_began
        if len(produced) == batch and all(item.request.num_outputs > 1 for item in produced):
            decodes.append(step_s)
        else:
            prefill_s += step_s
    return {
        "batch": batch,
        "output_tok_s": round(batch * args.output_len / (time.perf_counter() - began), 1),
        "prefill_ms": round(prefill_s * 1e3, 1),
        "decode_min_ms": round(min(decodes) * 1e3, 2),
        "decode_median_ms": round(statistics.median(decodes) * 1e3, 2),
    }


if __name__ == "__main__":
    main()
