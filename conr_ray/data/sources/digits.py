"""scikit-learn's 1,797 handwritten digits, which come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from conr_ray.config import DataConfig
from conr_ray.data.decoding import fit_arrays
from conr_ray.data.sources.base import Contents, Source, UInt8Array, check_label_column


class DigitsSource(Source):
    """8x8 grey digits, their 17 grey levels spread over 0..255."""

    def __init__(self, config: DataConfig) -> None:
        """Refuse label columns other than `label`."""
        super().__init__(config)
        check_label_column(config, ["label"])

    def identity(self) -> dict[str, object]:
        """Label column and stored size: the digits themselves never change."""
        return {
            "source": "digits",
            "label_column": self.config.label_column,
            "stored_size": self.config.stored_size,
        }

    @property
    def labels_from(self) -> str:
        """Nothing: the labels of the set itself."""
        return ""

    def contents(self) -> Contents:
        """1,797 images, (1, 8, 8) unless `data.stored_size` is set, in 10 classes."""
        labelled = self.config.label_column is not None
        return Contents(
            num_rows=len(self._images),
            row_shape=(1, *self._images.shape[2:]),
            labels=self._digits[1] if labelled else None,
            class_names=tuple("0123456789") if labelled else None,
        )

    def blocks(self) -> Iterator[UInt8Array]:
        """All digits in one block."""
        yield self._images

    @cached_property
    def _digits(self) -> tuple[UInt8Array, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
        return pixels[:, None], digits.target.astype(np.int64)

    @cached_property
    def _images(self) -> UInt8Array:
        return fit_arrays(self._digits[0], self.config.stored_size)
