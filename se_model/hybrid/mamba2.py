"""The Mamba-2 mixer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from se_model.hybrid.configuration import Mamba2HybridConfig
from se_model.hybrid.normalization import GatedRMSNorm
from se_model.hybrid.past import Past
from se_model.hybrid.projection import ResidualProjection
from se_model.parallel.formula import Share
from se_model.parallel.volumes import Exchanged, mamba2_exchange
from se_model.recurrence import CONVOLUTION, MAMBA2, CausalConv1d, Mamba2Sizes, mamba2
from se_model.span.documents import DocumentBounds


class Mamba2Mixer(nn.Module):
    """The mixer of most layers, with z, x, B, C and dt from one projection.

    x, B, C = silu(conv(x, B, C)); y = ssd(x, dt, A, B, C) + D x; output out_proj(rmsnorm(y * silu(z))).
    Parameters are named, shaped and ordered as in mamba_ssm 2.3.2 (modules/mamba2.py).
    """

    is_attention = False
    recurrences = (MAMBA2, CONVOLUTION)
    recurrence_backend = "auto"

    def __init__(self, config: Mamba2HybridConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.sizes = Mamba2Sizes(
            heads=config.mamba_num_heads,
            head_size=config.mamba_head_dim,
            groups=config.n_groups,
            state_size=config.state_size,
            kernel=config.conv_kernel,
            chunk_size=config.ssm_chunk_size,
        )
        self.split_sizes = [config.inner_size, self.sizes.channels, config.mamba_num_heads]
        self.in_proj = nn.Linear(config.hidden_size, sum(self.split_sizes), bias=config.mamba_proj_bias)
        self.conv1d = CausalConv1d(self.sizes.channels, config.conv_kernel, bias=config.conv_bias)
        self.dt_bias = nn.Parameter(torch.ones(config.mamba_num_heads))
        self.A_log = nn.Parameter(torch.zeros(config.mamba_num_heads))
        self.D = nn.Parameter(torch.ones(config.mamba_num_heads))
        self.norm = GatedRMSNorm(config.inner_size, config.n_groups, config.rms_norm_eps)
        self.out_proj = ResidualProjection(config.inner_size, config.hidden_size, bias=config.mamba_proj_bias)

    def forward(
        self,
        x: Tensor,
        *,
        padding: Tensor | None = None,
        past: Past | None = None,
        documents: DocumentBounds | None = None,
    ) -> Tensor:
        """x: [B, L, hidden]; padding: bool [B, L], True where there is no token; documents: with B = 1.

        A padded token enters neither the convolution nor the state. The convolution's and the recurrence's
        states come from ``past``, and are kept there. Returns [B, L, hidden].
        """
        config = self.config
        z, xBC, dt = self.in_proj(x).split(self.split_sizes, dim=-1)
        step = F.softplus(dt.to(torch.promote_types(dt.dtype, torch.float32)) + self.dt_bias)
        if config.time_step_limit is not None:
            step = step.clamp(*config.time_step_limit)
        if padding is not None:
            xBC = xBC.masked_fill(padding[..., None], 0)
            step = step.masked_fill(padding[..., None], 0)

        def convolve(inputs: Tensor, before: Tensor | None) -> Tensor:
            return F.silu(self.conv1d(inputs, before, documents))

        y = mamba2(
            xBC,
            step,
            A_log=self.A_log,
            D=self.D,
            sizes=self.sizes,
            convolve=convolve,
            carried=past or Past(),
            documents=documents,
            backend=self.recurrence_backend,
        )
        return self.out_proj(self.norm(y, z))

    def exchanged(self, share: Share) -> Exchanged:
        """What a rank receives for this layer where a row is shared."""
        return mamba2_exchange(self.sizes, share)

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw dt_bias and A_log: steps log-uniform in [time_step_min, time_step_max], rates uniform."""
        config = self.config
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        step = torch.empty_like(self.dt_bias, dtype=torch.float32).uniform_(low, high).exp()
        step = step.clamp(min=config.time_step_floor)
        # softplus(step + log(1 - exp(-step))) = step
        init.copy_(self.dt_bias, step + torch.log(-torch.expm1(-step)))
        rate = torch.empty_like(self.A_log, dtype=torch.float32).uniform_(*config.A_initial_range)
        init.copy_(self.A_log, rate.log())
        init.ones_(self.D)
