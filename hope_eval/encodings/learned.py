"""Learned: one vector for every position within the training length, added to the token embeddings.

Positions past the training length have no vector: a model with this encoding cannot read further.

Source: Vaswani et al., 2017, arXiv 1706.03762, section 3.5 (and GPT-2).

Shape letters: B batch, L length, D model width.
"""

from torch import Tensor, nn

from hope_eval.encodings import Geometry, PositionEncoding


class Learned(PositionEncoding):
    """Learned absolute position embeddings, up to the training length."""

    source = "1706.03762"
    formula = "add a learned vector of the position to the embeddings; ends with the training length"
    style = ("#f172de", "dotted", "*")
    relative = False

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.position_embeddings = nn.Embedding(geometry.train_length, geometry.d_model)
        nn.init.normal_(self.position_embeddings.weight, std=0.02)

    @property
    def max_length(self) -> int:
        return self.geometry.train_length

    def embed(self, embeddings_BLD: Tensor, positions_BL: Tensor) -> Tensor:
        vectors_BLD: Tensor = self.position_embeddings(positions_BL)
        return embeddings_BLD + vectors_BLD.to(embeddings_BLD.dtype)
