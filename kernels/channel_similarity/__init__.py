"""Distances between the rows of matrices, without a matrix of distances."""

from graphprune.kernels.channel_similarity.op import Precision, Similarity, channel_similarity

__all__ = ["Precision", "Similarity", "channel_similarity"]
