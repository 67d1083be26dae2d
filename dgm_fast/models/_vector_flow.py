"""Base of the flows on vectors."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from dgm_fast.models._inputs import check_count, flatten_data
from dgm_fast.models.flow import Flow
from dgm_fast.nn import Standardize, StandardNormal, Transform


class VectorFlow(Flow):
    """Transforms of standardised vectors into standard normals.

    Data are [B, D] (or of any shape with D entries a sample) in their own units; the networks see them with
    mean 0 and variance 1 after :meth:`standardize`. Densities are those of x in its own units.

    Args:
        num_dims: D.
        transforms: of standardised data, the one nearest to the data first.
        context_dim: size of the context of a conditional density p(x | c).
    """

    def __init__(
        self, num_dims: int, transforms: Iterable[Transform], *, context_dim: int | None = None
    ) -> None:
        check_count("num_dims", num_dims)
        super().__init__(
            [Standardize(num_dims), *transforms], StandardNormal(num_dims), context_dim=context_dim
        )

    def standardize(self, x: Tensor) -> None:
        """Take the means and standard deviations of data x as those that the networks see as 0 and 1.

        An entry that is constant in x keeps the scale 1.

        Raises:
            TypeError: of a flow on images, which has nothing to standardise: actnorm does it.
            ValueError: if x has fewer than two rows or is not finite.
        """
        first = self.transform.transforms[0]  # type: ignore[index, union-attr]
        if not isinstance(first, Standardize):
            raise TypeError("standardize is for vectors; a flow on images has its actnorm")
        first.fit(flatten_data(x, self.num_dims, self._like.device))
