"""How the tokens of a request are chosen: travels from the front end to the sampler."""

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    """64 bits; noise is a function of (seed, output index) alone."""
    ignore_eos: bool = False
