"""The papers' equations for one pair of positions, in plain floats. Slow and obviously right."""

import cmath
import math


def rope_logit(q, k, query_position, key_position, base=10_000.0, kept=lambda theta: True):
    """q . k with pair i of both turned by position * theta_i; pairs are (i, i + E/2)."""
    half = len(q) // 2
    total = 0.0
    for i in range(half):
        theta = base ** (-2 * i / len(q))
        angle = theta * (query_position - key_position) if kept(theta) else 0.0
        q_i, k_i = complex(q[i], q[i + half]), complex(k[i], k[i + half])
        total += (q_i * k_i.conjugate() * cmath.exp(1j * angle)).real
    return total


def hope_logit(q, k, query_position, key_position, train_length, multiplier=1.0, base=10_000.0):
    """RoPE on pairs that make at least `multiplier` turns within the training length; the others stand still."""
    return rope_logit(
        q, k, query_position, key_position, base, lambda theta: theta >= multiplier * 2 * math.pi / train_length
    )


def nope_logit(q, k, query_position, key_position):
    """q . k."""
    return sum(a * b for a, b in zip(q, k, strict=True))
