"""Rows of an embedding from the packed head, on every path."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from engine.model.kernels.embedding import NativeEmbedding
from engine.model.kernels.packing import pack

pytestmark = pytest.mark.timeout(300)


@given(
    num_tokens=st.integers(0, 70),
    vocab_size=st.integers(1, 200),
    features=st.integers(1, 200),
    num_threads=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_tokens_get_their_rows_bit_for_bit(
    library, dtype, teams, num_tokens, vocab_size, features, num_threads, seed
):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(vocab_size, features, generator=generator).to(dtype)
    token_ids = torch.randint(vocab_size, (num_tokens,), generator=generator)
    embedding = NativeEmbedding(library, teams[num_threads], pack(rows, library.depth))
    assert torch.equal(embedding(token_ids), F.embedding(token_ids, rows))
