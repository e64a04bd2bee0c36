"""From a request to what the engine is told: sampling parameters within the model's limits."""

import random
from collections.abc import Collection, Sequence

import msgspec

from engine.config import Settings
from engine.frontend.errors import InvalidRequest
from engine.frontend.requests import ChatCompletionRequest, CompletionRequest
from engine.sampling import GREEDY_BELOW, MAX_LOGPROBS, SamplingParams
from engine.wording import counted

_SEEDS = 2**64


MAX_ECHOED_SCORES = 2**19
"""Log-probabilities of prompt tokens in one answer, some 15 MB of JSON; a prompt as long as the
context, once, is always told."""


def seed_source(seed: int | None, identity: str) -> random.Random:
    """Where seeds come from for the requests that bring none: reproducible if a seed is given.

    Args:
        identity: Of the process: each has seeds of its own, and others when it is started again.
    """
    return random.SystemRandom() if seed is None else random.Random(f"{seed} {identity}")


def sampling_params(
    request: ChatCompletionRequest | CompletionRequest,
    prompt_token_ids: Sequence[int],
    settings: Settings,
    seeds: random.Random,
) -> list[SamplingParams]:
    """How the engine shall choose the tokens of each of a prompt's choices.

    A choice is what a request for it alone would get: the seed given, plus its number.

    Args:
        seeds: Of the front end, for a request that brings no seed.

    Raises:
        InvalidRequest: The prompt is empty, has tokens that the model does not know, or leaves
            too little of the context, or a parameter does not fit the model or another parameter.
    """
    param = "messages" if isinstance(request, ChatCompletionRequest) else "prompt"
    if not prompt_token_ids:
        raise InvalidRequest(f"'{param}' holds no text.", param=param, code="empty_prompt")
    check_vocabulary(prompt_token_ids, settings.facts.vocab_size, param)
    # An engine makes one token at least; 0 is what the transcript makes of it.
    asked = None if request.max_tokens is None else max(request.max_tokens, 1)
    max_tokens = _max_tokens(asked, len(prompt_token_ids), settings.max_model_len, param)
    temperature = 1.0 if request.temperature is None else request.temperature
    first = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=min(max(request.top_k or 0, 0), settings.facts.vocab_size),
        ignore_eos=bool(request.ignore_eos),
        min_p=request.min_p or 0.0,
        min_tokens=_min_tokens(request.min_tokens, max_tokens),
        stop_token_ids=tuple(dict.fromkeys(request.stop_token_ids or ())),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        logit_bias=request.logit_bias or {},
        priority=request.priority or 0,
        logprobs=request.num_logprobs,
    )
    check_vocabulary(first.stop_token_ids, settings.facts.vocab_size, "stop_token_ids")
    check_vocabulary(first.logit_bias, settings.facts.vocab_size, "logit_bias")
    if request.seed is None:
        drawn = [seeds.getrandbits(64) for _ in range(request.num_choices)]
    else:  # -1 is 2**64 - 1
        drawn = [(request.seed + index) % _SEEDS for index in range(request.num_choices)]
    told = [msgspec.structs.replace(first, seed=seed) for seed in drawn]
    if request.scores_prompt:  # once for all choices
        told[0] = msgspec.structs.replace(told[0], prompt_logprobs=request.num_logprobs)
    return told


def check_echo(
    request: ChatCompletionRequest | CompletionRequest,
    prompts: Sequence[Sequence[int]],
    max_model_len: int,
) -> None:
    """Looks whether prompts that are repeated with their scores make an answer of sensible size.

    Raises:
        InvalidRequest: They do not.
    """
    if not request.scores_prompt or request.num_logprobs is None:
        return
    num_tokens = sum(map(len, prompts)) * request.num_choices
    num_scores = num_tokens * (1 + request.num_logprobs)
    most = max(MAX_ECHOED_SCORES, max_model_len * (1 + MAX_LOGPROBS))
    if num_scores > most:
        raise InvalidRequest(
            f"'echo' would tell {num_scores} log-probabilities of prompt tokens, at most {most}"
            " can be: ask for fewer prompts at once, or for a smaller 'n' or 'logprobs'.",
            param="echo",
            code="too_many_logprobs",
        )


def check_vocabulary(token_ids: Collection[int], vocab_size: int, param: str) -> None:
    """Looks whether a model has all of these.

    Raises:
        InvalidRequest: It does not.
    """
    largest = max(token_ids, default=0)
    if largest >= vocab_size:
        raise InvalidRequest(
            f"Token id out of range: {largest}. The model has {counted(vocab_size, 'token')}.",
            param=param,
            code="invalid_token_id",
        )


def _max_tokens(asked: int | None, num_prompt_tokens: int, context: int, param: str) -> int:
    left = context - num_prompt_tokens
    if left >= (asked or 1):
        return asked or left
    raise InvalidRequest(
        f"This model's maximum context length is {counted(context, 'token')}. However, you "
        f"requested {num_prompt_tokens + (asked or 1)} tokens ({num_prompt_tokens} in the {param}, "
        f"{asked or 1} in the completion). Please reduce the length of the {param} or completion.",
        param=param,
        code="context_length_exceeded",
    )


def _min_tokens(asked: int | None, max_tokens: int) -> int:
    if (asked or 0) > max_tokens:
        raise InvalidRequest(
            f"'min_tokens' must be at most 'max_tokens', here {max_tokens}.",
            param="min_tokens",
            code="invalid_value",
        )
    return asked or 0
