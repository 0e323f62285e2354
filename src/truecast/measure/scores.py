"""Scores over labels and vectors, in NumPy alone: accuracy, macro F1, cosine, Spearman's rank correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def accuracy(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """The share of equal entries of two arrays [rows]; raises ValueError for none or for unequal lengths."""
    true, guess = _paired(truth, predicted)
    return float(np.mean(true == guess))


def macro_f1(truth: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """The mean over classes of F1 = 2TP / (2TP + FP + FN), of two arrays [rows] of class numbers.

    The classes are those that occur in the truth or among the predictions, as scikit-learn counts them; a class that is
    never predicted rightly has F1 0. Raises ValueError for no rows or for unequal lengths.
    """
    true, guess = _paired(truth, predicted)
    scores = []
    for label in np.union1d(true, guess):
        right = int(np.sum((true == label) & (guess == label)))
        scores.append(2 * right / int(np.sum(true == label) + np.sum(guess == label)))
    return float(np.mean(scores))


def cosines(left: npt.ArrayLike, right: npt.ArrayLike) -> Floats:
    """The cosine of each row of two arrays [rows, …], rows taken as flat vectors.

    Two zero rows have cosine 1, a zero row and another one 0, and a row with NaN or Inf NaN.
    """
    one, other = (_rows(array) for array in (left, right))
    if one.shape != other.shape:
        raise ValueError(f"shapes {one.shape} and {other.shape} differ")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # Rows are brought to unit size first: products of the raw values may overflow.
        one, other = _scaled(one), _scaled(other)
        product = np.sum(one * other, axis=1)
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        found = np.where(norms > 0, product / norms, 0.0)
    found[~one.any(axis=1) & ~other.any(axis=1)] = 1.0
    found[~(np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1))] = np.nan
    return np.clip(found, -1.0, 1.0)


def spearman(left: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Spearman's rank correlation of two arrays [n], ties sharing their mean rank; NaN where one of them is constant.

    Raises ValueError for fewer than two entries or for unequal lengths.
    """
    one, other = _paired(left, right)
    if len(one) < 2:
        raise ValueError("a rank correlation needs two entries at least")
    if not (np.isfinite(one.astype(float)).all() and np.isfinite(other.astype(float)).all()):
        return float("nan")
    ranks = [_ranks(array) - (len(array) + 1) / 2 for array in (one, other)]
    scale = float(np.sqrt(np.sum(ranks[0] ** 2) * np.sum(ranks[1] ** 2)))
    return float(np.sum(ranks[0] * ranks[1])) / scale if scale else float("nan")


def pairwise_similarities(vectors: npt.ArrayLike) -> Floats:
    """The cosines of all pairs of different rows of an array [rows, size], as [rows · (rows − 1) / 2]."""
    rows = _rows(vectors)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    first, second = np.triu_indices(len(rows), k=1)
    return np.asarray((unit @ unit.T)[first, second])


def _ranks(values: npt.NDArray[Any]) -> Floats:
    """Ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def _scaled(rows: Floats) -> Floats:
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    return np.asarray(np.where(largest > 0, rows / largest, rows))


def _rows(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array.reshape(len(array), -1)


def _paired(left: npt.ArrayLike, right: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    one, other = np.asarray(left), np.asarray(right)
    if one.ndim != 1 or one.shape != other.shape or not one.size:
        raise ValueError(f"two arrays [rows] of one length are needed, not {one.shape} and {other.shape}")
    return one, other
