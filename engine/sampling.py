"""How the tokens of a request are chosen: travels from the front end to the sampler."""

import msgspec

GREEDY_BELOW = 1e-5
"""Temperatures below this are taken as 0. Source: vLLM's `_SAMPLING_EPS`."""
MAX_LOGPROBS = 20
"""Most alternatives that are told of one token, as at OpenAI."""


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """Temperature 0 is greedy.

    Logits are changed in this order: `logit_bias` and what `min_tokens` forbids; repetition,
    frequency and presence penalty; temperature; `min_p`; `top_k`; `top_p`. Source: vLLM.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    """64 bits; noise is a function of (seed, output index) alone."""
    ignore_eos: bool = False
    min_p: float = 0.0
    """Least probability, relative to that of the best token."""
    min_tokens: int = 0
    """End tokens and `stop_token_ids` are impossible among the first so many outputs."""
    stop_token_ids: tuple[int, ...] = ()
    """They end the request as end tokens do; `ignore_eos` does not concern them."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that is among the outputs."""
    frequency_penalty: float = 0.0
    """The same, times the number of its outputs."""
    repetition_penalty: float = 1.0
    """Divides positive logits and multiplies others, of tokens in prompt or outputs; above 0."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of tokens."""
    logprobs: int | None = None
    """Alternatives to tell for each output, 0 to `MAX_LOGPROBS`; None: no log-probabilities."""
    prompt_logprobs: int | None = None
    """The same for each prompt token but the first, which nothing comes before."""
    priority: int = 0
    """Requests with lower ones run first, and are preempted last."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Natural logarithms of probabilities: of one token, and of the best ones in its place.

    They are the model's own, before temperature, penalties and bias.
    """

    logprob: float
    top_ids: list[int] = []
    """As many as were asked for, the best first; the token itself may be among them."""
    top_logprobs: list[float] = []
