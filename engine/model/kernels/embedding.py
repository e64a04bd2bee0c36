"""The embedding of tokens by a kernel of ours, from the packed head that is tied to it."""

import torch

from engine.model.kernels.binding import Library, Team
from engine.model.kernels.packing import PackedMatrix


class NativeEmbedding:
    """Rows of an embedding that are columns of a packed matrix: no second copy of them."""

    def __init__(self, library: Library, team: Team, weight: PackedMatrix) -> None:
        assert weight.scales is None
        self._gather, self._team, self._weight = library.gather, team, weight
        self._dtype = library.dtype

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] in int64 to [tokens, in_features]."""
        assert token_ids.dtype == torch.int64
        assert token_ids.is_contiguous()
        in_features = self._weight.in_features
        rows = torch.empty((len(token_ids), in_features), dtype=self._dtype)
        self._gather(
            self._weight.weight.data_ptr(),
            token_ids.data_ptr(),
            rows.data_ptr(),
            len(token_ids),
            in_features,
            self._team.pool,
        )
        return rows
