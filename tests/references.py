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


def prope_theta(i, head_dim, fraction, base=10_000.0):
    """theta_i of the fastest floor(fraction * E / 2) pairs, 0 for the others."""
    return base ** (-2 * i / head_dim) if i < math.floor(fraction * head_dim / 2) else 0.0


def clipped_theta(i, head_dim, n_slow, base=10_000.0):
    """theta_i; of the n slowest pairs, times (1 + cos(t)) / 2 with t from 0 at the first to pi at the last."""
    theta, place = base ** (-2 * i / head_dim), i - (head_dim // 2 - n_slow)
    return theta if place <= 0 else theta * (1 + math.cos(math.pi * place / (n_slow - 1))) / 2


def below_hope(head_dim, train_length, base=10_000.0):
    """Number of pairs that make less than one turn within the training length."""
    return sum(base ** (-2 * i / head_dim) * train_length < 2 * math.pi for i in range(head_dim // 2))


def clipped_logit(q, k, query_position, key_position, n_slow, base=10_000.0):
    """RoPE with the angles of `clipped_theta`."""
    half, distance, total = len(q) // 2, query_position - key_position, 0.0
    for i in range(half):
        angle = distance * clipped_theta(i, len(q), n_slow, base)
        total += rope_logit([q[i], q[i + half]], [k[i], k[i + half]], angle, 0, 1.0)
    return total


def pi_theta(i, head_dim, factor, base=10_000.0):
    """theta_i / factor."""
    return base ** (-2 * i / head_dim) / factor


def ntk_theta(i, head_dim, factor, base=10_000.0):
    """theta_i at base * factor^(E / (E - 2))."""
    return (base * factor ** (head_dim / (head_dim - 2))) ** (-2 * i / head_dim)


def dynamic_ntk_theta(i, head_dim, factor, length, train_length, base=10_000.0):
    """theta_i at a base that grows with the length read."""
    length = max(length, train_length)
    grown = base * (factor * length / train_length - (factor - 1)) ** (head_dim / (head_dim - 2))
    return grown ** (-2 * i / head_dim)


def llama3_theta(i, head_dim, factor, low, high, train_length, base=10_000.0):
    """theta_i, interpolated by factor where it makes fewer than `low` turns in training, mixed up to `high`."""
    theta = base ** (-2 * i / head_dim)
    turns = train_length * theta / (2 * math.pi)
    if turns < low:
        return theta / factor
    if turns > high:
        return theta
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * theta / factor + smooth * theta


def yarn_theta(i, head_dim, factor, beta_fast, beta_slow, train_length, base=10_000.0):
    """theta_i, interpolated by factor below beta_slow turns, kept above beta_fast, mixed linearly in i between."""
    theta = base ** (-2 * i / head_dim)

    def pair_with(turns):
        return head_dim * math.log(train_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_with(beta_fast)), 0)
    high = min(math.ceil(pair_with(beta_slow)), head_dim - 1)
    ramp = min(max((i - low) / ((high - low) or 0.001), 0.0), 1.0)
    return theta / factor * ramp + theta * (1 - ramp)


def xpos_logit(q, k, query_position, key_position, scale_base=512.0, base=10_000.0):
    """RoPE whose pair i is multiplied by zeta_i^(distance / 512)."""
    half, distance, total = len(q) // 2, query_position - key_position, 0.0
    for i in range(half):
        zeta = (2 * i / len(q) + 0.4) / 1.4
        pair = rope_logit([q[i], q[i + half]], [k[i], k[i + half]], distance * base ** (-2 * i / len(q)), 0, 1.0)
        total += zeta ** (distance / scale_base) * pair
    return total


def alibi_bias(head, n_heads, distance):
    """- m_h distance; head counts from 0."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-8 * (2 * h + 1) / (2 * power)) for h in range(n_heads - power)]
    return -slopes[head] * distance


def kerple_bias(r1, r2, distance, power):
    """- r1 distance^r2, or - r1 log(1 + r2 distance)."""
    return -r1 * (distance**r2 if distance else 0.0) if power else -r1 * math.log(1 + r2 * distance)


def fire_bias(first_weight, first_bias, last_weight, last_bias, c, threshold, query_position, key_position):
    """One output of the network for log(c distance + 1) / log(c max(query position, L0) + 1)."""
    ratio = math.log(c * (query_position - key_position) + 1) / math.log(c * max(query_position, threshold) + 1)
    hidden = [max(0.0, w * ratio + b) for w, b in zip(first_weight, first_bias, strict=True)]
    return sum(w * h for w, h in zip(last_weight, hidden, strict=True)) + last_bias


def t5_bucket(distance, n_buckets=32, max_distance=128):
    """Half of the buckets hold one distance each; the others grow with the logarithm."""
    exact = n_buckets // 2
    if distance < exact:
        return distance
    growth = math.log(distance / exact) / math.log(max_distance / exact)
    return min(exact + int(growth * (n_buckets - exact)), n_buckets - 1)


def sinusoid(position, dimension, width):
    """sin of even dimensions, cos of odd ones."""
    angle = position / 10_000 ** ((dimension - dimension % 2) / width)
    return math.cos(angle) if dimension % 2 else math.sin(angle)
