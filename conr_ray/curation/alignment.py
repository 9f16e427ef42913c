"""How alike two pictures are after a crop, a resize, re-encoding or other brightness.

The score is the correlation of one picture with the best window of the other, over the pixels of
small thumbnails: brightness and contrast cancel, and what re-encoding and resizing change is too
fine for them. Two seas under a sky correlate as well, so detail has to be alike too. Windows are
sought coarsely over a grid and then refined for the pairs that may match.

Shapes: m pairs, n pictures, x windows of the grid, p pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

SIDE = 32
"""Side of a thumbnail: RGB uint8 (3, SIDE, SIDE), whatever the picture's shape was."""

DESCRIPTOR = 64
"""Width of `descriptors`."""

# Sides of windows, as shares of the picture's, and of the grid's pictures in pixels.
_SHARES = (1.0, 0.92, 0.84, 0.76)
_GRID_SIDE, _GRID_SEEN = 16, 8
# Pixels of a side in which pairs are compared, and those between windows of the grid.
_SEEN, _STEP = 16, 1.2
# Refinement: steps in shares of a side; the smallest and largest window.
_REFINING = (0.03, 0.015, 0.0075, 0.004)
_SMALLEST = 0.7
# Added to the deviation of pixels, 0 to 255, so that noise in a plain picture is no likeness.
_NOISE = 2.0
# Deviation of detail that is lost in re-encoding.
_GRAIN = 4.0
# Correlation of whole pictures below which no window is sought, and that of the best window of the
# grid below which it is not refined: planted copies have at least 0.29 and 0.93.
_HOPELESS, CLOSE = 0.2, 0.9
# Difference on the grid up to which either picture may be the crop.
_UNDECIDED = 0.03
# Pairs that are compared at a time: a picture's windows take 8 KB.
_PAIRS = 1024
# Detail, what differs from the pixels around it, may be less alike by so many times.
_DETAIL = 3
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Likeness:
    """How alike pairs of pictures are.

    Attributes:
        scores_m: correlation, float32, up to 1.
        inside_m: share of the side of the window; below 1 the left picture shows more than the
            right one, above 1 (the inverse) it shows less.
    """

    scores_m: NDArray[np.float32]
    inside_m: NDArray[np.float32]


def likeness(
    thumbnails_n: NDArray[np.uint8], left_m: NDArray[np.int64], right_m: NDArray[np.int64]
) -> Likeness:
    """Compare pairs of pictures.

    Args:
        thumbnails_n: uint8 (n, 3, SIDE, SIDE); may be memory-mapped.
        left_m: row of one picture of each pair, int64; pairs with equal ones together are faster.
        right_m: row of the other.
    """
    scores_m = np.empty(len(left_m), np.float32)
    inside_m = np.ones(len(left_m), np.float32)
    for start in range(0, len(left_m), _PAIRS):
        part = slice(start, start + _PAIRS)
        scores_m[part], inside_m[part] = _compared(thumbnails_n, left_m[part], right_m[part])
    return Likeness(scores_m, inside_m)


def descriptors(thumbnails_n: NDArray[np.uint8], vectors_n: NDArray[np.float32]) -> None:
    """Write thumbnails as vectors of unit length, whatever their brightness and contrast.

    Args:
        thumbnails_n: uint8 (n, 3, SIDE, SIDE).
        vectors_n: float32 (n, DESCRIPTOR), a file.
    """
    for start in range(0, len(thumbnails_n), _PAIRS):
        part = torch.from_numpy(np.array(thumbnails_n[start : start + _PAIRS])).float()
        seen = _seen((part * torch.tensor(_LUMA)[:, None, None]).sum(1))
        vectors_n[start : start + _PAIRS] = normalize(seen).numpy()


def _compared(
    thumbnails_n: NDArray[np.uint8], left_m: NDArray[np.int64], right_m: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows, places = np.unique(np.concatenate([left_m, right_m]), return_inverse=True)
    pictures_n = torch.from_numpy(thumbnails_n[rows]).float()
    left, right = torch.from_numpy(places).view(2, -1)
    grey_n = (pictures_n * torch.tensor(_LUMA)[:, None, None]).sum(1)
    whole_n = _seen(grey_n)
    scores_m = (whole_n[left] * whole_n[right]).sum(1)
    inside_m = torch.ones(len(left))
    hopeful = (scores_m > _HOPELESS).nonzero()[:, 0]
    if not len(hopeful):
        return scores_m.numpy(), inside_m.numpy()
    joined = torch.cat([left[hopeful], right[hopeful]])
    used, places = torch.unique(joined, return_inverse=True)
    windows_nx, whole_n, pictures_n = _windows(grey_n[used]), whole_n[used], pictures_n[used]
    left, right = places.view(2, -1)
    pairs = ((left, right), (right, left))
    found_mx = [torch.einsum("mxp,mp->mx", windows_nx[a], whole_n[b]) for a, b in pairs]
    best = [one_mx.amax(1) for one_mx in found_mx]
    least_m = torch.maximum(*best) - _UNDECIDED
    scores, shares = [], []
    for (one, other), one_mx, best_m in zip(pairs, found_mx, best, strict=True):
        window_m4 = _WINDOWS[one_mx.argmax(1)]
        close = ((best_m > CLOSE) & (best_m >= least_m)).nonzero()[:, 0]
        # What is not refined stays below all that is.
        best_m = best_m.clamp(max=CLOSE)
        if len(close):
            best_m[close], window_m4[close] = _refined(
                pictures_n[one[close]], pictures_n[other[close]], window_m4[close]
            )
        scores.append(best_m)
        shares.append(window_m4[:, 2:].mean(1))
    turned_m = scores[1] > scores[0]
    scores_m[hopeful] = torch.maximum(*scores)
    inside_m[hopeful] = torch.where(turned_m, 1 / shares[1], shares[0])
    return scores_m.numpy(), inside_m.numpy()


def _all_windows() -> Tensor:
    """Left, top, width and height of the windows of the grid, (x, 4), in shares of a side."""
    found = []
    for share in _SHARES:
        count = 1 + round((1 - share) * _GRID_SIDE / _STEP)
        for top in range(count):
            for left in range(count):
                places = [(1 - share) * place / max(1, count - 1) for place in (left, top)]
                found.append([*places, share, share])
    return torch.tensor(found)


_WINDOWS = _all_windows()


def _area(starts_m: Tensor, shares_m: Tensor, side: int, seen: int) -> Tensor:
    """Matrices (m, seen, side) that average over a window of a line of `side` pixels."""
    width_m11 = (shares_m * side / seen)[:, None, None]
    begin = starts_m[:, None, None] * side + width_m11 * torch.arange(seen)[None, :, None]
    pixel = torch.arange(side)[None, None, :]
    overlap = torch.minimum(begin + width_m11, pixel + 1.0) - torch.maximum(begin, pixel.float())
    return overlap.clamp(min=0) / width_m11


def _centred(pixels: Tensor) -> Tensor:
    """Without their mean, and at unit length but for noise, over the last dimension."""
    pixels = pixels - pixels.mean(-1, keepdim=True)
    noise = _NOISE * float(pixels.shape[-1]) ** 0.5
    unit: Tensor = pixels / (pixels.square().sum(-1, keepdim=True) + noise**2).sqrt()
    return unit


def _seen(grey_n: Tensor) -> Tensor:
    """Whole grey pictures as the grid compares them, (n, p)."""
    whole = _area(torch.zeros(1), torch.ones(1), SIDE, _GRID_SEEN)[0]
    return _centred((whole @ grey_n @ whole.T).flatten(1))


def _windows(grey_n: Tensor) -> Tensor:
    """All windows of grey pictures, (n, x, p)."""
    half = avg_pool2d(grey_n, SIDE // _GRID_SIDE).flatten(1)
    return _centred((half @ _operator()).reshape(len(half), len(_WINDOWS), -1))


@functools.cache
def _operator() -> Tensor:
    """From the pixels of the grid's pictures to those of all windows."""
    rows_x = _area(_WINDOWS[:, 1], _WINDOWS[:, 3], _GRID_SIDE, _GRID_SEEN)
    columns_x = _area(_WINDOWS[:, 0], _WINDOWS[:, 2], _GRID_SIDE, _GRID_SEEN)
    operator = torch.einsum("xap,xbq->xabpq", rows_x, columns_x)
    return operator.reshape(-1, _GRID_SIDE**2).T.contiguous()


def _refined(one: Tensor, other: Tensor, window_m4: Tensor) -> tuple[Tensor, Tensor]:
    """Likeness in colour of the best window of `one` and `other`, and the window."""
    whole = _area(torch.zeros(1), torch.ones(1), SIDE, _SEEN)[0]
    target = _centred((whole @ other @ whole.T).flatten(1))

    def seen(window: Tensor) -> Tensor:
        rows = _area(window[:, 1], window[:, 3], SIDE, _SEEN)[:, None]
        columns = _area(window[:, 0], window[:, 2], SIDE, _SEEN)[:, None]
        return rows @ one @ columns.mT

    def correlation(window: Tensor) -> Tensor:
        return (_centred(seen(window).flatten(1)) * target).sum(1)

    window_m4 = window_m4.clone()
    best_m = correlation(window_m4)
    for step in _REFINING:
        for place in range(4):
            for sign in (-step, step):
                tried = window_m4.clone()
                tried[:, place] += sign
                # Inside the picture.
                tried[:, 2:].clamp_(_SMALLEST, 1)
                tried[:, :2] = torch.minimum(tried[:, :2].clamp(min=0), 1 - tried[:, 2:])
                found = correlation(tried)
                better = found > best_m
                best_m = torch.where(better, found, best_m)
                window_m4 = torch.where(better[:, None], tried, window_m4)
    detail_m = _same_detail(seen(window_m4), whole @ other @ whole.T)
    return torch.minimum(best_m, 1 - (1 - detail_m) / _DETAIL), window_m4


def _same_detail(one: Tensor, other: Tensor) -> Tensor:
    """How alike two pictures (m, 3, h, w) are in what differs from the pixels around it, (m,).

    Skies and seas have the rest in common. Where both have no detail but noise, it is alike.
    """
    details = []
    for pixels in (one, other):
        around = avg_pool2d(pixels, 5, 1, 2, count_include_pad=False)
        # Contrast may differ between copies.
        contrast_m = pixels.flatten(1).std(1).clamp(min=_NOISE)
        details.append((pixels - around).flatten(1) / contrast_m[:, None])
        noise_m = (_GRAIN / contrast_m).square()
        details.append(details[-1].square().mean(1) + noise_m)
    apart_m = (details[0] - details[2]).square().mean(1)
    return 1 - apart_m / (details[1] + details[3])
