"""Attention without cuDNN's kernels: within alone, and whatever was set before comes back."""

from __future__ import annotations

import pytest
import torch

from veneer.engine import trusted_attention


@pytest.mark.parametrize("enabled", [True, False])
def test_cudnn_is_off_within_alone(enabled: bool) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        with pytest.raises(KeyError), trusted_attention():
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            assert torch.backends.cuda.flash_sdp_enabled()
            raise KeyError
        assert torch.backends.cuda.cudnn_sdp_enabled() == enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
