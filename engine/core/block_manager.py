"""Who holds which block of the paged KV cache, and which can be found by their content. Pure."""

from collections import OrderedDict

from engine.core.request import Request


class BlockManager:
    """Blocks of one rank's cache, shared between requests with equal prefixes.

    A block is *held* by the requests that use it or *free*; a free one may still be *published*:
    found by the hash of its content until it is given to somebody else, the longest unused first.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_caching = prefix_caching
        self._holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that so many tokens fill."""
        return -(-num_tokens // self.block_size)

    def admit(self, request: Request) -> bool:
        """Gives a waiting request blocks for all its tokens, published ones for a known prefix.

        Sets `num_computed` to the tokens found; at least one token is left to compute, since its
        logits are wanted. False, and nothing changed, if there are not enough.
        """
        assert not request.block_ids
        found = self._find_prefix(request)
        num_new = self.num_needed(len(request.token_ids)) - len(found)
        num_revived = sum(1 for block in found if not self._holders[block])
        if num_new + num_revived > self.num_free:
            return False
        for block in found:
            self._hold(block)
        request.block_ids = found + [self._take() for _ in range(num_new)]
        request.num_computed = len(found) * self.block_size
        return True

    def grow(self, request: Request) -> bool:
        """Gives a running request a block for its newest token if needed. False if none is free."""
        if self.num_needed(len(request.token_ids)) <= len(request.block_ids):
            return True
        if not self._free:
            return False
        request.block_ids.append(self._take())
        return True

    def publish(self, request: Request, num_tokens: int) -> None:
        """Makes blocks findable that the next `num_tokens` tokens of a running request fill.

        The step that computes them must be the next one: it stores what it computes of all its
        tokens, in each layer, before any of them looks back.
        """
        if not self._prefix_caching:
            return
        first = request.num_computed // self.block_size
        last = (request.num_computed + num_tokens) // self.block_size
        if first == last:
            return
        hashes = request.block_hashes(last, self.block_size)
        for index in range(first, last):
            block, content = request.block_ids[index], hashes[index]
            if content not in self._block_of and block not in self._hash_of:
                self._block_of[content] = block
                self._hash_of[block] = content

    def release(self, request: Request) -> None:
        """Takes back a request's blocks: still findable, a prefix's end given away first."""
        for block in reversed(request.block_ids):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)
        request.block_ids = []
        request.num_computed = 0

    def unpublish(self, request: Request) -> None:
        """Makes what a request has published impossible to find: there is something wrong in it."""
        for content in request.known_block_hashes:
            block = self._block_of.pop(content, None)
            if block is not None:
                del self._hash_of[block]

    def _find_prefix(self, request: Request) -> list[int]:
        # What is taken from the cache has no logits.
        if not self._prefix_caching or request.scores_prompt:
            return []
        num_full = (len(request.token_ids) - 1) // self.block_size
        found = []
        for content in request.block_hashes(num_full, self.block_size):
            block = self._block_of.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def _hold(self, block: int) -> None:
        if not self._holders[block]:
            del self._free[block]
        self._holders[block] += 1

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        content = self._hash_of.pop(block, None)
        if content is not None:
            del self._block_of[content]
        self._holders[block] = 1
        return block
