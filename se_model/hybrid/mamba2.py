"""The Mamba-2 mixer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from se_model.hybrid.configuration import Mamba2HybridConfig
from se_model.hybrid.convolution import CausalConv1d
from se_model.hybrid.normalization import GatedRMSNorm
from se_model.hybrid.past import Past
from se_model.hybrid.projection import ResidualProjection
from se_model.hybrid.ssd import ssd_chunked


class Mamba2Mixer(nn.Module):
    """The mixer of most layers, with z, x, B, C and dt from one projection.

    x, B, C = silu(conv(x, B, C)); y = ssd(x, dt, A, B, C) + D x; output out_proj(rmsnorm(y * silu(z))).
    Parameters are named, shaped and ordered as in mamba_ssm 2.3.2 (modules/mamba2.py).
    """

    is_attention = False

    def __init__(self, config: Mamba2HybridConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.state_width = config.n_groups * config.state_size
        conv_width = config.inner_size + 2 * self.state_width
        self.split_sizes = [config.inner_size, conv_width, config.mamba_num_heads]
        self.in_proj = nn.Linear(config.hidden_size, sum(self.split_sizes), bias=config.mamba_proj_bias)
        self.conv1d = CausalConv1d(conv_width, config.conv_kernel, bias=config.conv_bias)
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
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """x: [B, L, hidden]; padding: bool [B, L], True where there is no token; cu_seqlens: [N + 1], B = 1.

        A padded token enters neither the convolution nor the state. The convolution's and the recurrence's
        states come from ``past``, and are kept there. Returns [B, L, hidden].
        """
        config, past = self.config, past or Past()
        batch, length, _ = x.shape
        z, xBC, dt = self.in_proj(x).split(self.split_sizes, dim=-1)
        step = F.softplus(dt.to(torch.promote_types(dt.dtype, torch.float32)) + self.dt_bias)
        if config.time_step_limit is not None:
            step = step.clamp(*config.time_step_limit)
        if padding is not None:
            xBC = xBC.masked_fill(padding[..., None], 0)
            step = step.masked_fill(padding[..., None], 0)

        context = config.conv_kernel - 1
        convolved = F.silu(self.conv1d(xBC, past.convolution_state(xBC, context), cu_seqlens))
        past.keep_convolution_state(xBC, context)

        inner, B, C = convolved.split([config.inner_size, self.state_width, self.state_width], dim=-1)
        inner = inner.unflatten(-1, (-1, config.mamba_head_dim))
        y, state = ssd_chunked(
            inner,
            step,
            -self.A_log.to(step.dtype).exp(),
            B.unflatten(-1, (config.n_groups, -1)),
            C.unflatten(-1, (config.n_groups, -1)),
            chunk_size=config.ssm_chunk_size,
            initial_state=past.initial_state(),
            cu_seqlens=cu_seqlens,
        )
        past.keep_state(state)
        y = (y + inner * self.D.to(y.dtype)[:, None]).reshape(batch, length, -1)
        return self.out_proj(self.norm(y, z))

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
