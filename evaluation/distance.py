"""Numbers between samples of features: Fréchet distance and CLIP score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evaluation.features import Features

DARK = 1e-10  # mean squared error of images that count as the same


class Gaussian(NamedTuple):
    """What a Fréchet distance takes of a sample: its mean (d,) and a root (r, d) of its covariance, rootᵀ root."""

    mean: Features
    root: Features


def gaussian(sample: Features) -> Gaussian:
    """The mean and covariance of a sample (n, d). Worth keeping where many distances go to one large sample: r is at most d."""
    n, d = sample.shape
    centred = (sample - sample.mean(0)) / np.sqrt(n - 1)
    return Gaussian(sample.mean(0), np.asarray(np.linalg.qr(centred, mode="r")) if n > d else centred)


def frechet_distance(a: Features | Gaussian, b: Features | Gaussian) -> float:
    """|μ_a − μ_b|² + Tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½) between samples (n, d) and (m, d) (Heusel et al. 2017, arXiv 1706.08500).

    With roots A, B of the covariances the trace of the root is the nuclear norm of A Bᵀ: exact also where n < d, where a
    matrix root of singular covariances is not.

    n and m may differ, but the estimate depends on both: it is biased upwards, the more the fewer images and the more
    dimensions (Chong and Forsyth 2020, arXiv 1911.07023), and two samples of the same distribution are apart as well. So
    compare distances only at equal n, equal m and equal features. A distance to real images means something beside the
    teacher's own distance to them at the same n.
    """
    (mean_a, root_a), (mean_b, root_b) = (sample if isinstance(sample, Gaussian) else gaussian(sample) for sample in (a, b))
    trace = np.linalg.norm(root_a @ root_b.T, ord="nuc")
    return float(((mean_a - mean_b) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * trace)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB for a mean squared error of images in [0, 1]; 100 at most."""
    return float(-10 * np.log10(max(error, DARK)))


def clip_score(images: Features, texts: Features) -> float:
    """100 · mean cosine of each image with its own prompt (Hessel et al. 2021, arXiv 2104.08718, without the clipping)."""
    cosine = (images * texts).sum(1) / np.linalg.norm(images, axis=1) / np.linalg.norm(texts, axis=1)
    return float(100 * cosine.mean())
