"""The memory format of filters and images: contiguous, or with the channels last, as cuDNN prefers it."""

from __future__ import annotations

from torch import Tensor


def channels_last(t: Tensor) -> bool:
    """Return True if t [N, C, *S] lies in memory as [N, *S, C], without gaps, and not as [N, C, *S]."""
    return t.dim() > 2 and not t.is_contiguous() and t.movedim(1, -1).is_contiguous()


def suggests_channels_last(t: Tensor) -> bool:
    """Return True if torch's convolution of t [N, C, H, W], as image or as filter, has a result with the channels last.

    The rule reads the strides alone (torch's ``suggest_memory_format``): a slice of an image with the channels last
    counts, and a contiguous filter of one position does not.
    """
    least, channels = 0, t.stride(1)
    for size, stride in ((t.shape[d], t.stride(d)) for d in (1, 3, 2, 0)):
        if not size or stride < least:
            return False
        least, before = size * stride, least
    return bool(channels) and before != channels


def in_format_of(like: Tensor, t: Tensor) -> Tensor:
    """Return t [..., *like.shape] with the channels last if ``like`` has them last, else contiguous; t itself if so."""
    if not channels_last(like):
        return t.contiguous()
    channels = t.dim() - like.dim() + 1
    last = t.movedim(channels, -1)
    return t if last.is_contiguous() else last.contiguous().movedim(-1, channels)
