"""How telling a word is: the weights of BM25 and TF-IDF, of sparse counts of words."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix, diags


K1, B = 1.2, 0.75  # the defaults of Lucene


def bm25_weights(counts: csr_matrix) -> tuple[csr_matrix, np.ndarray]:
    """BM25 (Robertson and Zaragoza 2009) with Lucene's idf, which is never negative: weights of documents [D, V] and
    of the words of a query [V]."""
    documents, _ = counts.shape
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    saturation = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-9))
    weights = counts.copy()
    rows = np.repeat(np.arange(documents), np.diff(counts.indptr))
    weights.data = counts.data / (counts.data + saturation[rows])
    frequency = document_frequency(counts)
    return weights, np.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))


def tfidf_weights(counts: csr_matrix) -> tuple[csr_matrix, np.ndarray]:
    """Cosine of TF-IDF vectors with logarithmic counts and smoothed idf. The length of a query's vector would change
    all of its scores alike, so it is left out."""
    documents, _ = counts.shape
    idf = np.log((1 + documents) / (1 + document_frequency(counts))) + 1
    weights = counts.copy()
    weights.data = 1 + np.log(counts.data)
    weights = weights @ diags(idf)
    lengths = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
    return diags(1 / np.maximum(lengths, 1e-9)) @ weights, idf


def document_frequency(counts: csr_matrix) -> np.ndarray:
    """In how many documents each word is, [V]."""
    return np.bincount(counts.indices, minlength=counts.shape[1]).astype(np.float64)
