"""Sources whose images are opened by their rows, in any order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from conr_ray.data.sources.encoded import EncodedSource, PendingImage


class ImagesByRow(EncodedSource):
    """Encoded images of which each can be opened without the others."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """How many images there are.

        Raises:
            UserError: there are none, or they cannot be listed.
        """

    @property
    @abstractmethod
    def names(self) -> Sequence[str] | None:
        """What tells an image from the others: its path or id; None if its row does."""

    @abstractmethod
    def at(self, row: int) -> PendingImage:
        """The image of a row, not read yet."""

    def _pending(self) -> Iterator[PendingImage]:
        for row in range(self.num_rows):
            yield self.at(row)
