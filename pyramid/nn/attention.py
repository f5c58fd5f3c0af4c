"""Multi-head attention with keys and values that can be computed once, and a plain pre-norm self-attention stack.

Masks are boolean, True = may be attended. Time conditioning lives in `pyramid.nn.dit`; positions are the caller's.

Shapes: B batch, N query tokens, L key tokens, W width, C context width, H heads.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Attention", "FeedForward", "KeyValue", "SelfAttentionBlock", "SelfAttentionStack"]

KeyValue = tuple[Tensor, Tensor]
"""Keys and values, float [B, H, L, W / H] each."""


class Attention(nn.Module):
    """Scaled dot-product attention with biases.

    Args:
        width: width of the queries and of the output; a multiple of `heads`.
        heads: number of heads.
        context_width: width of the tokens attended to; None for `width` (self-attention).
        dropout: probability of dropping an attention weight while training.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)
        self.out = nn.Linear(width, width)

    def project(self, context: Tensor) -> KeyValue:
        """Return the keys and values of context tokens, float [B, L, C]; they can be kept while the queries change."""
        return self._split(self.key(context)), self._split(self.value(context))

    def forward(self, x: Tensor, key_value: KeyValue | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend from `x`.

        Args:
            x: float [B, N, W].
            key_value: what `project` returned; None attends to `x` itself.
            mask: bool [B, L] or [B, N, L], True = may be attended; None attends to everything.

        Returns:
            float [B, N, W].
        """
        key, value = self.project(x) if key_value is None else key_value
        bias = None if mask is None else mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
        dropout = self.dropout if self.training else 0.0
        heads = nn.functional.scaled_dot_product_attention(self._split(self.query(x)), key, value, bias, dropout)
        return self.out(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them, four times as wide inside."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., W] to float [..., W]."""
        inner = nn.functional.gelu(self.expand(x), approximate="tanh")
        return self.dropout(self.contract(self.dropout(inner)))  # type: ignore[no-any-return]


class SelfAttentionBlock(nn.Module):
    """Pre-norm block with learned layer norms: self-attention, then feed-forward, both residual."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, dropout=dropout)
        self.attention_dropout = nn.Dropout(dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-5)
        self.feed_forward = FeedForward(width, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map float [B, N, W] to the same; `mask`: bool [B, N], True = may be attended."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), mask=mask))
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


class SelfAttentionStack(nn.Module):
    """Self-attention blocks over vision-language tokens ("VL mixing" in GR00T N1.5 and N1.7); no final norm."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SelfAttentionBlock(width, heads, dropout) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map float [B, N, W] to the same; `mask`: bool [B, N], True = may be attended."""
        for block in self.blocks:
            x = block(x, mask)
        return x
