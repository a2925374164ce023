"""Triton kernel that scores candidate schemes: u (S, r, m, k), v (S, r, k, n), w (S, r, m, n) in fp64 -> residual and
noise gain of each, from the residual tensor itself, as ``score.expected_error`` and ``score.noise_gain`` define them;
these are the oracles. ``gpu.residuals`` launches."""

import triton
import triton.language as tl


@triton.jit
def residuals(
    u,
    v,
    w,
    error,
    gain,
    rank,
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    KN: tl.constexpr,
    MN: tl.constexpr,
):
    """One program: the slice of T - sum_q u_q (x) v_q (x) w_q at one entry (a, b) of A for one scheme.

    Its squared norm goes to error[scheme, a, b], sum_q u[q,a,b]^2 |v_q|^2 |w_q|^2 to gain[scheme, a, b]. KN and MN are
    k * n and m * n padded to powers of two.
    """
    scheme = (tl.program_id(0) // (M * K)).to(tl.int64)
    part = tl.program_id(0) % (M * K)
    x, y = tl.arange(0, KN), tl.arange(0, MN)
    in_b, in_c = x < K * N, y < M * N
    # T is 1 where B's row is A's column, C's row is A's row, and C's column is B's column.
    here = ((x // N == part % K) & in_b)[:, None] & ((y // N == part // K) & in_c)[None, :]
    gap = (here & ((x % N)[:, None] == (y % N)[None, :])).to(tl.float64)
    noise = tl.full((KN, MN), 0.0, tl.float64)
    for q in range(rank):
        term = scheme * rank + q
        a = tl.load(u + term * (M * K) + part)
        b = a * tl.load(v + term * (K * N) + x, mask=in_b, other=0.0)
        c = tl.load(w + term * (M * N) + y, mask=in_c, other=0.0)
        gap -= b[:, None] * c[None, :]
        noise += (b * b)[:, None] * (c * c)[None, :]
    tl.store(error + tl.program_id(0), tl.sum(tl.sum(gap * gap, 1), 0))
    tl.store(gain + tl.program_id(0), tl.sum(tl.sum(noise, 1), 0))
