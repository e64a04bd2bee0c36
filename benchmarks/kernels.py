"""How near the linear kernel comes to what memory and arithmetic allow, product by product.

    PYTHONPATH=. python benchmarks/kernels.py [--rows 1,4,16,64] [--dtype bfloat16] [--threads 2]

The products are those of SmolLM2-135M. Weights are cold, as in a model: each call takes another
copy, 256 MiB in all. The limits are taken on the same moment by the same threads: memory that is
read and added up, products in registers. oneDNN's packed product is torch's own, without the norm,
gate and residual that our kernel does on the way. Times are the lowest of all calls, in
microseconds; shares are of the larger of the two limits' times.
"""

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch

import engine.model.kernels
from engine.model.kernels.binding import Library, Team
from engine.model.kernels.build import PATHS
from engine.model.kernels.linear import NativeLinear
from engine.model.kernels.packing import pack
from engine.model.linear import PackedLinear, can_pack
from engine.model.operators import Linear, Norm

SHAPES = {
    "qkv": (960, 576),
    "out": (576, 576),
    "gate_up": (3072, 576),
    "down": (576, 1536),
    "head": (49152, 576),
}
"""Outputs and inputs."""
COLD_BYTES = 256 << 20
"""More than the caches hold."""
SOURCE = Path(__file__).parent / "limits.c"
KERNELS = Path(engine.model.kernels.__file__).parent


class Limits:
    """Bytes and operations a second, at most, by the threads of a team."""

    def __init__(self, library: Library, team: Team) -> None:
        path = next(path for path in PATHS if path.name == library.path_name)
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "limits.so"
            flags = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", *path.flags]
            subprocess.run(["gcc", *flags, f"-I{KERNELS}", SOURCE, "-o", file], check=True)
            self._library = ctypes.CDLL(str(file))
        self._library.read_memory.argtypes = (
            [ctypes.c_void_p] + [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 2
        )
        self._library.multiply.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self._library.multiply.restype = ctypes.c_int64
        self._pool = team.pool
        self._memory = torch.ones(COLD_BYTES, dtype=torch.uint8)
        self._operands = torch.zeros(1024)

    def measure(self) -> tuple[float, float]:
        bytes_s = flops_s = 0.0
        item, num_items = 64 << 10, 256
        sums = torch.zeros(num_items, dtype=torch.int32)
        for part in self._memory.split(item * num_items):
            began = time.perf_counter()
            self._library.read_memory(part.data_ptr(), item, num_items, sums.data_ptr(), self._pool)
            bytes_s = max(bytes_s, part.numel() / (time.perf_counter() - began))
        for _ in range(20):
            began = time.perf_counter()
            flops = self._library.multiply(self._operands.data_ptr(), 8, self._pool)
            flops_s = max(flops_s, flops / (time.perf_counter() - began))
        return bytes_s, flops_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1,4,16,64", help="by commas")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--path", choices=[path.name for path in PATHS], default=PATHS[0].name)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    path = next(path for path in PATHS if path.name == args.path)
    library = Library(path, dtype)
    team = Team(library, args.threads)
    limits = Limits(library, team)
    torch.set_num_threads(args.threads)
    for name in args.shapes.split(","):
        columns, k = SHAPES[name]
        gated, normed = name == "gate_up", name in ("qkv", "gate_up", "head")
        size = columns * k * dtype.itemsize
        weights = [torch.randn(columns, k).to(dtype) for _ in range(2)]
        norm = Norm(torch.ones(k, dtype=dtype), 1e-5) if normed else None
        num = -(-COLD_BYTES // size)
        ours: list[Linear] = [
            NativeLinear(
                library,
                team,
                pack(weights[i % 2], library.depth, gated),
                norm=norm,
                gated=gated,
                float32_out=name == "head",
            )
            for i in range(num)
        ]
        onednn: list[Linear] = []
        if can_pack(torch.device("cpu"), dtype):
            onednn = [PackedLinear(weights[i % 2]) for i in range(num)]
        for rows in map(int, args.rows.split(",")):
            x = torch.randn(rows, k).to(dtype)
            bytes_s, flops_s = limits.measure()
            memory_us, arithmetic_us = size / bytes_s * 1e6, 2 * rows * columns * k / flops_s * 1e6
            native_us = lowest(ours, x, args.calls)
            result = {
                "product": name,
                "rows": rows,
                "memory_us": round(memory_us, 1),
                "arithmetic_us": round(arithmetic_us, 1),
                "kernel_us": round(native_us, 1),
                "share": round(max(memory_us, arithmetic_us) / native_us, 2),
            }
            if onednn:
                result["onednn_us"] = round(lowest(onednn, x, args.calls), 1)
            result |= {"memory_gb_s": round(bytes_s / 1e9, 1), "gflop_s": round(flops_s / 1e9)}
            print(json.dumps(result), flush=True)  # noqa: T201


def lowest(layers: list[Linear], x: torch.Tensor, num_calls: int) -> float:
    """Microseconds of the fastest call."""
    best = float("inf")
    for index in range(num_calls):
        layer = layers[index % len(layers)]
        began = time.perf_counter()
        layer(x)
        best = min(best, time.perf_counter() - began)
    return best * 1e6


if __name__ == "__main__":
    main()
