"""Runs a model with torch in one worker, on a CPU or a GPU."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from engine.config import Device, DType, Settings
from engine.errors import CapacityError
from engine.model.batch import lay_out
from engine.model.decoder import Decoder
from engine.model.logprobs import token_logprobs
from engine.model.operators import make_operators
from engine.model.runner import Chunk, StepResult
from engine.model.sampler import Row, sample
from engine.sampling import SamplingParams, TokenLogprobs

logger = logging.getLogger(__name__)

SCORED_ROWS = 32
"""Prompt tokens that have logits at one time."""
_DTYPES = {
    DType.float32: torch.float32,
    DType.bfloat16: torch.bfloat16,
    DType.float16: torch.float16,
}


class TorchRunner:
    """A model of ours on one CPU or GPU.

    Args:
        device_id: GPU id on this node; None on a CPU.
        on_layer: Called after each layer of each step.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        device_id: int | None,
        num_threads: int,
        on_layer: Callable[[], None] = lambda: None,
    ) -> None:
        self.remark = ""
        self._on_layer = on_layer
        self._settings = settings
        self._directory = directory
        self._dtype = _DTYPES[settings.dtype]
        self._device = torch.device("cpu")
        if settings.device is Device.cuda:
            _check_cuda()
            self._device = torch.device("cuda", device_id or 0)
        self._num_threads = num_threads
        torch.set_num_threads(num_threads)

    @torch.inference_mode()
    def prepare_kernels(self) -> None:
        operators = make_operators(self._settings, self._dtype, self._device, self._num_threads)
        logger.info("operators: %s", operators.name)
        self._operators = operators
        self._sampler = operators.sampler()
        self._attention = operators.attention()

    @torch.inference_mode()
    def load_weights(self) -> None:
        operators = self._operators
        with _enough_memory("the weights", "engine.dtype=bfloat16, or a smaller model"):
            weights = operators.weights(self._directory)
            self._model = Decoder(
                self._settings.facts, weights, operators, self._attention, self._on_layer
            )
        self.remark = operators.remark
        if operators.has_own_threads:
            # torch's would go on spinning beside them after each of its few operators
            torch.set_num_threads(1)

    def allocate_cache(self) -> None:
        num_blocks = self._settings.cache.num_blocks
        what = f"a KV cache of {num_blocks} blocks"
        with _enough_memory(what, "profile.kv_cache_bytes=... with less than was planned"):
            self._caches = [
                self._attention.new_cache() for _ in range(self._settings.facts.num_hidden_layers)
            ]

    def warm_up(self) -> None:
        """One prefill and one decode, so that the first request finds everything loaded."""
        block_size = self._settings.cache.block_size
        length = min(
            self._settings.max_num_batched_tokens, self._settings.max_model_len, block_size
        )
        greedy = SamplingParams(max_tokens=1, temperature=0.0)
        # Block 0 is written and left unpublished: nobody can find what is in it.
        self.execute([Chunk([0] * length, 0, [0], greedy)])
        self.execute([Chunk([0], length - 1, [0], greedy)])

    @torch.inference_mode()
    def execute(self, chunks: Sequence[Chunk]) -> StepResult:
        sampled, scored = self._compute(chunks)
        result = StepResult([], prompt_logprobs=self._score(scored, chunks))
        rows = [
            Row(chunk.sampling, chunk.output_index, chunk.edits)
            for chunk in chunks
            if chunk.sampling is not None
        ]
        if rows:
            logits = self._model.logits(sampled)
            result.token_ids, result.logprobs, result.failed = sample(logits, rows, self._sampler)
        return result

    @torch.inference_mode()
    def logits(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Computes the chunks and gives what `execute` would choose from, [rows, V]."""
        sampled, _ = self._compute(chunks)
        return self._model.logits(sampled)

    def _compute(self, chunks: Sequence[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the chunks: hidden states [rows, E] that are sampled, and that are scored."""
        layout = lay_out(chunks, self._settings.cache.block_size, self._attention.tile_tokens)
        hidden_states = self._model.hidden_states(
            torch.from_numpy(layout.token_ids).to(self._device),
            self._attention.begin_step(layout),
            self._caches,
            np.concatenate((layout.sampled_rows, layout.scored_rows)),
        )
        num_sampled = len(layout.sampled_rows)
        return hidden_states[:num_sampled], hidden_states[num_sampled:]

    def _score(
        self, hidden_states: torch.Tensor, chunks: Sequence[Chunk]
    ) -> dict[int, list[TokenLogprobs]]:
        """The log-probabilities of prompt tokens, by chunk, a few tokens at a time."""
        scorings = {
            index: chunk.scoring for index, chunk in enumerate(chunks) if chunk.scoring is not None
        }
        wanted = [
            (token_id, scoring.num_top)
            for scoring in scorings.values()
            for token_id in scoring.token_ids
        ]
        scores: list[TokenLogprobs] = []
        for begin in range(0, len(wanted), SCORED_ROWS):
            part = slice(begin, begin + SCORED_ROWS)
            token_ids, num_top = zip(*wanted[part], strict=True)
            logits = self._model.logits(hidden_states[part])
            targets = torch.tensor(token_ids, device=self._device)
            scores += token_logprobs(logits, targets, num_top, self._sampler)
            self._on_layer()
        in_order = iter(scores)
        return {
            index: list(islice(in_order, len(scoring.token_ids)))
            for index, scoring in scorings.items()
        }


def _check_cuda() -> None:
    if not torch.cuda.is_available():
        raise CapacityError(
            f"engine.device=cuda, but torch {torch.__version__} finds no CUDA device",
            "engine.device=cpu, or install a CUDA build of torch that fits the driver",
        )


@contextmanager
def _enough_memory(what: str, hint: str) -> Iterator[None]:
    """Says what there was no memory for.

    Raises:
        CapacityError: There was none.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        # On a CPU torch has no error of its own for it; OutOfMemoryError is of devices.
        is_memory = isinstance(problem, (torch.OutOfMemoryError, MemoryError))
        if not is_memory and "can't allocate memory" not in str(problem):
            raise
        raise CapacityError(f"no memory for {what}: {problem}", hint) from problem
