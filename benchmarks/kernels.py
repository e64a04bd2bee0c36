"""How near the linear kernel comes to what memory and arithmetic allow, product by product.

    PYTHONPATH=. python benchmarks/kernels.py [--rows 1,4,16,64] [--products qkv,gate_up,head]
                                              [--dtype bfloat16] [--path PATH] [--threads 2]

The products are those of SmolLM2-135M. Weights are cold, as in a model: each call takes another
copy, 256 MiB in all. The limits are taken just before, by the same threads: memory of the same kind
is read and added up, products are computed in registers. oneDNN's
packed product is torch's, without the norm, gate and residual that our kernel does on its way.

Prints one JSON object per product and number of rows: microseconds, the lowest of all calls, and
the kernel's share of the larger of the two limits.
"""

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

import engine.model.kernels
from engine.model.kernels.binding import Library, Team
from engine.model.kernels.build import InstructionPath, usable_paths
from engine.model.kernels.linear import NativeLinear
from engine.model.kernels.packing import pack
from engine.model.linear import PackedLinear, can_pack
from engine.model.operators import Linear, Norm

COLD_BYTES = 256 << 20
"""More than the caches hold."""
READ_BYTES, ITEM_BYTES = 4 << 20, 64 << 10
NUM_MULTIPLIED = 8
"""Items of products in registers, each some 0.1 ms."""
SOURCE = Path(__file__).parent / "limits.c"
KERNELS = Path(engine.model.kernels.__file__).parent


class Product(NamedTuple):
    """One of a layer's linear operators."""

    columns: int
    in_features: int
    is_normed: bool = False
    is_gated: bool = False
    float32_out: bool = False

    def layers(
        self, dtype: torch.dtype, library: Library, team: Team
    ) -> tuple[list[Linear], list[Linear]]:
        """Ours and oneDNN's (none where it has no such type), as many as COLD_BYTES hold."""
        weight = torch.randn(self.columns, self.in_features).to(dtype)
        norm = Norm(torch.ones(self.in_features, dtype=dtype), 1e-5) if self.is_normed else None
        copies = range(-(-COLD_BYTES // weight.nbytes))
        ours = [
            NativeLinear(
                *(library, team, pack(weight, library.depth, self.is_gated), None, norm),
                gated=self.is_gated,
                float32_out=self.float32_out,
            )
            for _ in copies
        ]
        if not can_pack(torch.device("cpu"), dtype):
            return list(ours), []
        return list(ours), [PackedLinear(weight) for _ in copies]


PRODUCTS = {
    "qkv": Product(960, 576, is_normed=True),
    "out": Product(576, 576),
    "gate_up": Product(3072, 576, is_normed=True, is_gated=True),
    "down": Product(576, 1536),
    "head": Product(49152, 576, is_normed=True, float32_out=True),
}


class Limits:
    """Bytes and floating-point operations a second, at most, by the threads of a team."""

    def __init__(self, path: InstructionPath, dtype: torch.dtype, team: Team) -> None:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "limits.so"
            flags = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", *path.flags]
            if dtype == torch.bfloat16:
                flags.append("-DBF16")
            subprocess.run(["gcc", *flags, f"-I{KERNELS}", SOURCE, "-o", file], check=True)
            library = ctypes.CDLL(str(file))
        self._read, self._multiply = library.read_memory, library.multiply
        self._read.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 2]
        self._multiply.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self._multiply.restype = ctypes.c_int64
        self._pool = team.pool
        self._memory = torch.ones(COLD_BYTES, dtype=torch.uint8)
        self._operands = torch.zeros(64 + NUM_MULTIPLIED)

    def measure(self) -> tuple[float, float]:
        num_items = READ_BYTES // ITEM_BYTES
        sums = torch.zeros(num_items, dtype=torch.int32)
        bytes_s = flop_s = 0.0
        for part in self._memory.split(READ_BYTES):
            began = time.perf_counter()
            self._read(part.data_ptr(), ITEM_BYTES, num_items, sums.data_ptr(), self._pool)
            bytes_s = max(bytes_s, READ_BYTES / (time.perf_counter() - began))
            began = time.perf_counter()
            flop = self._multiply(self._operands.data_ptr(), NUM_MULTIPLIED, self._pool)
            flop_s = max(flop_s, flop / (time.perf_counter() - began))
        return bytes_s, flop_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    paths = {path.name: path for path in usable_paths()}
    parser.add_argument("--rows", default="1,2,4,8,16,32,64,128,512", help="by commas")
    parser.add_argument("--products", default=",".join(PRODUCTS), help="by commas")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--path", choices=paths, default=next(iter(paths)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    library = Library(paths[args.path], dtype)
    team = Team(library, args.threads)
    limits = Limits(paths[args.path], dtype, team)
    torch.set_num_threads(args.threads)
    for name in args.products.split(","):
        product = PRODUCTS[name]
        ours, onednn = product.layers(dtype, library, team)
        num_weights = product.columns * product.in_features
        for rows in map(int, args.rows.split(",")):
            x = torch.randn(rows, product.in_features).to(dtype)
            bytes_s, flop_s = limits.measure()
            memory_us = num_weights * dtype.itemsize / bytes_s * 1e6
            arithmetic_us = 2 * rows * num_weights / flop_s * 1e6
            kernel_us = lowest_us(ours, x, args.calls)
            result = {
                "product": name,
                "rows": rows,
                "memory_us": round(memory_us, 1),
                "arithmetic_us": round(arithmetic_us, 1),
                "kernel_us": round(kernel_us, 1),
                "share": round(max(memory_us, arithmetic_us) / kernel_us, 2),
                "onednn_us": round(lowest_us(onednn, x, args.calls), 1) if onednn else None,
            }
            print(json.dumps(result), flush=True)  # noqa: T201


def lowest_us(layers: list[Linear], x: torch.Tensor, num_calls: int) -> float:
    """The fastest of so many calls, layer after layer."""
    times = []
    for index in range(num_calls):
        layer = layers[index % len(layers)]
        began = time.perf_counter()
        layer(x)
        times.append(time.perf_counter() - began)
    return min(times) * 1e6


if __name__ == "__main__":
    main()
