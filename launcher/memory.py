"""How many blocks the KV cache of a rank has, and whether weights and cache fit: pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.config import CacheSettings, Device, DType, ModelKind, Quantization, may_be_native
from engine.model.facts import BYTES_PER_ELEMENT, ModelFacts
from engine.wording import counted
from launcher.cluster import Node
from launcher.config import LaunchConfig
from launcher.errors import Refused
from launcher.placement import Home, Load, loads
from launcher.shortage import DoesNotFit
from launcher.sizes import MIB, format_bytes, parse_bytes

CPU_CACHE_SHARE = 0.04
"""Of a node's memory for the caches of all its ranks: other programs live there too, and pages of
the cache that a request once touched stay resident.
"""
GPU_SHARE = 0.9
"""Of a GPU's memory for the engine, as in vLLM (`gpu_memory_utilization`): the driver and the
display take some, and the allocator leaves gaps.
"""
CUDA_CONTEXT_BYTES = 1024 * MIB
"""CUDA context, loaded kernels, cuBLAS workspaces."""
PROCESS_BYTES = 160 * MIB
"""What an engine core on a CPU has besides weights, cache and a step: what it imports, torch above
all, and its heap.

Measured in `/proc/PID/smaps` (torch 2.13.0, CPU build, Linux x86-64): 140 MiB of heap and anonymous
memory of the server that engine cores are forked from, which they share but on Ray have each to
itself; 16 MiB of `Private_Dirty` when ready, 48 at the end of a load of 64 requests, the cache's
64 MiB left out (SmolLM2-135M in bfloat16).
"""
DUMMY_PROCESS_BYTES = 16 * MIB
"""The same of the runner that computes nothing, which imports no torch: measured alike, 16 MiB."""
UNKNOWN_MEMORY_CACHE_BYTES = 1024 * MIB
"""Cache of a rank where an inventory does not say how much memory there is."""
GROUP_SCORES = 1 << 21
"""Most scores per head at a time (engine/model/batch.py, which the planner does not import)."""
LEAST_TOKENS = 2048
"""A cache sized by itself holds at least one request of this length, or of the model's limit."""


@dataclass(frozen=True)
class RankMemory:
    """What one rank needs, over all its workers."""

    config: LaunchConfig
    facts: ModelFacts
    dtype: DType
    device: Device
    """Decided."""

    @cached_property
    def is_native(self) -> bool:
        return may_be_native(self.config.engine.kernels, self.device, self.dtype)

    @cached_property
    def weight_bytes(self) -> int:
        if not self.is_native:
            return self.facts.weight_bytes(self.dtype.value)
        quantized = self.config.engine.quantization is Quantization.int8
        return self.facts.packed_bytes(self.dtype.value, quantized)

    @property
    def node_bytes(self) -> int:
        """What all ranks of a node on a CPU need once: weights in a file that they all map."""
        is_mapped = self.is_native and self.config.model.kind is not ModelKind.dummy
        return self.weight_bytes if is_mapped else 0

    @cached_property
    def block_bytes(self) -> int:
        """One block of the cache. Workers beyond the number of key heads hold copies of them."""
        copies = math.ceil(self.config.tp / self.facts.num_key_value_heads)
        token_bytes = self.facts.kv_bytes_per_token(self.dtype.value, self.is_native) * copies
        return token_bytes * self.config.profile.block_size

    @cached_property
    def step_bytes(self) -> int:
        """What a step needs besides, an upper estimate.

        Hidden states, projections and the MLP's inner values of every token, float32 logits of
        every request twice (sampling sorts a copy), the attention scores of one group of tokens
        thrice (before and after the softmax, and the mask).
        """
        facts, profile = self.facts, self.config.profile
        query_size = facts.num_attention_heads * facts.head_dim
        per_token = 8 * max(facts.hidden_size, query_size) + 4 * facts.intermediate_size
        per_request = 2 * BYTES_PER_ELEMENT["float32"] * facts.vocab_size
        element = BYTES_PER_ELEMENT[self.dtype.value]
        tokens, requests = profile.max_num_batched_tokens, profile.max_num_seqs
        context = profile.max_model_len or facts.max_position_embeddings
        scores = 3 * min(tokens * context, GROUP_SCORES) * facts.num_attention_heads
        return (tokens * per_token + scores) * element + requests * per_request

    @cached_property
    def process_bytes(self) -> int:
        """What its processes need on a CPU besides weights and cache."""
        return self.config.tp * (PROCESS_BYTES + self.step_bytes)

    @cached_property
    def least_blocks(self) -> int:
        """Blocks of a cache of the user's own size; else the fewest that a rank is started with.

        Raises:
            Refused: An explicit size or length is impossible.
        """
        profile, limit = self.config.profile, self.facts.max_position_embeddings
        if profile.max_model_len is not None and profile.max_model_len > limit:
            raise Refused(
                f"profile.max_model_len must be at most the model's limit ({limit}):"
                f" {profile.max_model_len}",
                f"profile.max_model_len={limit}",
            )
        if profile.kv_cache_bytes != "auto":
            return _explicit(self)
        return self.num_blocks(profile.max_model_len or min(limit, LEAST_TOKENS))

    def bytes_on_cpu(self, num_blocks: int) -> int:
        """What a rank takes, besides `node_bytes`, of the nodes that its workers are on."""
        if self.config.model.kind is ModelKind.dummy:
            return DUMMY_PROCESS_BYTES
        own_weights = self.weight_bytes - self.node_bytes
        return own_weights + num_blocks * self.block_bytes + self.process_bytes

    def num_blocks(self, num_tokens: int) -> int:
        return math.ceil(num_tokens / self.config.profile.block_size)


def memory_room(memory: RankMemory, device: Device, node: Node) -> int | None:
    """How many ranks with the smallest cache fit into a node's memory; None: no limit is known."""
    if device is Device.cuda:
        needed = memory.least_blocks * memory.block_bytes
        is_known = node.gpu_memory_bytes > 0
        return 0 if is_known and needed > _gpu_room(memory, node, 1.0) else None
    if not node.memory_bytes:
        return None
    left = max(0, node.memory_bytes - memory.node_bytes)
    return left // memory.bytes_on_cpu(memory.least_blocks)


def size_cache(
    memory: RankMemory, device: Device, homes: Sequence[Home]
) -> tuple[CacheSettings, int]:
    """The KV cache of every rank, and the most tokens that a request can have.

    A request must fit into the cache alone: one that does not would be preempted for ever.

    Args:
        memory: What a rank needs.
        device: Decided.
        homes: Of every rank.

    Raises:
        Refused: An explicit size or length is impossible.
        DoesNotFit: There is too little memory.
    """
    profile, limit = memory.config.profile, memory.facts.max_position_embeddings
    num_blocks, placed = memory.least_blocks, loads(homes)
    if profile.kv_cache_bytes == "auto":
        num_blocks = max(num_blocks, min(_auto(memory, device, load) for load in placed))
    _check_fit(memory, device, placed, num_blocks)
    cache = CacheSettings(
        block_size=profile.block_size,
        num_blocks=num_blocks,
        prefix_caching=profile.prefix_caching,
    )
    return cache, profile.max_model_len or min(limit, num_blocks * profile.block_size)


def _explicit(memory: RankMemory) -> int:
    profile = memory.config.profile
    num_blocks = parse_bytes(profile.kv_cache_bytes) // memory.block_bytes
    least = memory.num_blocks(profile.max_model_len or 1)
    if num_blocks >= least:
        return num_blocks
    if profile.max_model_len is None:
        what = f"a block of {counted(profile.block_size, 'token')}"
    else:
        length = counted(profile.max_model_len, "token")
        what = f"a request of profile.max_model_len ({length})"
    needed = least * memory.block_bytes
    raise Refused(
        f"profile.kv_cache_bytes must hold {what}, {format_bytes(needed)}:"
        f" {profile.kv_cache_bytes}",
        f"profile.kv_cache_bytes={math.ceil(needed / MIB)}MiB",
    )


def _auto(memory: RankMemory, device: Device, load: Load) -> int:
    """Blocks for which a node has memory to spare."""
    node, profile = load.node, memory.config.profile
    if device is Device.cuda:
        return _gpu_room(memory, node, GPU_SHARE) // memory.block_bytes
    tokens = profile.max_model_len or memory.facts.max_position_embeddings
    of_full_batch = profile.max_num_seqs * memory.num_blocks(tokens)
    share = UNKNOWN_MEMORY_CACHE_BYTES
    if node.memory_bytes:
        share = int(CPU_CACHE_SHARE * node.memory_bytes) * memory.config.tp // load.num_workers
    return min(of_full_batch, share // memory.block_bytes)


def _gpu_room(memory: RankMemory, node: Node, share: float) -> int:
    """Bytes for the cache of one rank in the GPUs of its workers."""
    if not node.gpu_memory_bytes:
        return UNKNOWN_MEMORY_CACHE_BYTES
    workers = memory.config.tp
    usable = int(share * node.gpu_memory_bytes) - CUDA_CONTEXT_BYTES - memory.step_bytes
    return usable * workers - memory.weight_bytes


def _check_fit(memory: RankMemory, device: Device, placed: Sequence[Load], num_blocks: int) -> None:
    """Refuses what is larger than the memory; not what only might be too much beside others."""
    for load in placed:
        if device is Device.cuda:
            _check_gpus(memory, load.node, num_blocks)
        else:
            _check_node(memory, load, num_blocks)


def _check_gpus(memory: RankMemory, node: Node, num_blocks: int) -> None:
    cache = num_blocks * memory.block_bytes
    if node.gpu_memory_bytes and cache > _gpu_room(memory, node, 1.0):
        step = format_bytes(CUDA_CONTEXT_BYTES + memory.step_bytes)
        raise DoesNotFit(
            f"a rank does not fit into tp={counted(memory.config.tp, 'GPU')} of"
            f" {format_bytes(node.gpu_memory_bytes)} on {node.id}:"
            f" {_weights_and_cache(memory, cache)}, {step} per GPU to compute"
        )


def _check_node(memory: RankMemory, load: Load, num_blocks: int) -> None:
    node, tp = load.node, memory.config.tp
    rank_bytes = memory.bytes_on_cpu(num_blocks)
    left = node.memory_bytes - memory.node_bytes
    if not node.memory_bytes or load.num_workers * rank_bytes <= left * tp:
        return
    if memory.config.model.kind is ModelKind.dummy:
        takes = f"a rank that computes nothing takes {format_bytes(rank_bytes)}"
    else:
        needs = _weights_and_cache(memory, num_blocks * memory.block_bytes)
        process = f"{format_bytes(memory.process_bytes)} for its process and to compute"
        takes = f"a rank takes {needs}, {process}"
        if memory.node_bytes and load.num_workers > tp:
            takes += " (ranks share the weights)"
    whole, rest = divmod(load.num_workers, tp)
    puts = counted(load.num_workers, "worker") if rest else counted(whole, "rank")
    raise DoesNotFit(
        f"dp={memory.config.dp} puts {puts} on {node.id}, which has"
        f" {format_bytes(node.memory_bytes)} of memory: {takes}"
    )


def _weights_and_cache(memory: RankMemory, cache_bytes: int) -> str:
    weights = format_bytes(memory.weight_bytes)
    quantization = memory.config.engine.quantization
    form = memory.dtype if quantization is Quantization.none else quantization
    return f"{weights} of weights ({form.value}), {format_bytes(cache_bytes)} of cache"
