import pytest

from engine.core.block_manager import BlockManager
from engine.core.request import Request, RequestKey
from engine.sampling import SamplingParams

BLOCK = 4


def make_request(request_id: int, tokens: list[int]) -> Request:
    return Request(RequestKey("test", request_id), list(tokens), len(tokens), SamplingParams(8))


def compute(blocks: BlockManager, request: Request) -> None:
    """As if the model had run over all tokens."""
    blocks.publish(request, request.num_uncomputed)
    request.num_computed = len(request.token_ids)


def test_admission_gives_blocks_for_all_tokens():
    blocks = BlockManager(8, BLOCK, prefix_caching=True)
    request = make_request(0, list(range(9)))
    assert blocks.admit(request)
    assert len(request.block_ids) == 3
    assert blocks.num_free == 5


def test_admission_changes_nothing_when_blocks_are_short():
    blocks = BlockManager(2, BLOCK, prefix_caching=True)
    request = make_request(0, list(range(9)))
    assert not blocks.admit(request)
    assert request.block_ids == []
    assert blocks.num_free == 2


def test_an_equal_prefix_is_shared_while_it_is_held():
    blocks = BlockManager(8, BLOCK, prefix_caching=True)
    first, second = make_request(0, list(range(9))), make_request(1, [*range(8), 77])
    blocks.admit(first)
    compute(blocks, first)
    blocks.admit(second)
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]
    assert second.num_computed == 8
    assert blocks.num_free == 4


def test_a_prefix_is_found_after_its_request_has_ended():
    blocks = BlockManager(8, BLOCK, prefix_caching=True)
    first = make_request(0, list(range(9)))
    blocks.admit(first)
    compute(blocks, first)
    blocks.release(first)
    assert blocks.num_free == 8
    again = make_request(1, list(range(9)))
    blocks.admit(again)
    assert again.num_computed == 8


def test_the_last_token_is_computed_even_if_every_block_is_known():
    blocks = BlockManager(8, BLOCK, prefix_caching=True)
    first, again = make_request(0, list(range(8))), make_request(1, list(range(8)))
    blocks.admit(first)
    compute(blocks, first)
    blocks.admit(again)
    assert again.num_computed == 4


def test_the_same_block_after_another_prefix_is_not_taken_for_it():
    blocks = BlockManager(8, BLOCK, prefix_caching=True)
    first, other = make_request(0, [1] * 4 + [2] * 5), make_request(1, [3] * 4 + [2] * 5)
    blocks.admit(first)
    compute(blocks, first)
    blocks.admit(other)
    assert other.num_computed == 0


def test_the_prefix_unused_longest_is_given_away_first():
    blocks = BlockManager(4, BLOCK, prefix_caching=True)
    old, new = make_request(0, [1] * 5), make_request(1, [2] * 5)
    for request in (old, new):
        blocks.admit(request)
        compute(blocks, request)
    blocks.release(old)
    blocks.release(new)
    blocks.admit(make_request(2, [3] * 9))  # three blocks: the two that nobody can find, and old's
    found_old, found_new = make_request(3, [1] * 5), make_request(4, [2] * 5)
    assert blocks._find_prefix(found_old) == []
    assert len(blocks._find_prefix(found_new)) == 1


def test_a_published_block_that_is_given_away_is_not_found_any_more():
    blocks = BlockManager(2, BLOCK, prefix_caching=True)
    first = make_request(0, [1] * 8)
    blocks.admit(first)
    compute(blocks, first)
    blocks.release(first)
    other = make_request(1, [2] * 8)
    blocks.admit(other)
    compute(blocks, other)
    blocks.release(other)
    again = make_request(2, [1] * 8)
    blocks.admit(again)
    assert again.num_computed == 0


def test_without_prefix_caching_nothing_is_shared():
    blocks = BlockManager(8, BLOCK, prefix_caching=False)
    first, second = make_request(0, list(range(9))), make_request(1, list(range(9)))
    blocks.admit(first)
    compute(blocks, first)
    blocks.admit(second)
    assert not set(first.block_ids) & set(second.block_ids)


@pytest.mark.parametrize(("num_tokens", "needed"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_tokens_are_rounded_up_to_blocks(num_tokens: int, needed: int):
    assert BlockManager(8, BLOCK, prefix_caching=True).num_needed(num_tokens) == needed
