"""The rules once more, as their papers write them: float64 numpy over one long vector.

Nothing is shared with the rules: exponential means run from zero and are divided by 1 - beta^t,
Kronecker products are written out.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.rules.problem import Problem, Vector


def sgd(
    problem: Problem, *, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> Iterator[Vector]:
    p, b = problem.begin(), None
    while True:
        g = problem.gradient(p) + weight_decay * p
        b = g if b is None else momentum * b + g
        p = p - lr * (g + momentum * b if nesterov else b)
        yield p


def adam(
    problem: Problem,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    l2: float,
) -> Iterator[Vector]:
    p, t = problem.begin(), 0
    m = v = np.zeros_like(p)
    while True:
        t += 1
        g = problem.gradient(p) + l2 * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * weight_decay * p
        p = p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        yield p


def sophia(
    problem: Problem,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    gamma: float,
    eps: float,
    weight_decay: float,
    curvature_interval: int,
) -> Iterator[Vector]:
    p, t = problem.begin(), 0
    m = h = np.zeros_like(p)
    while True:
        m = beta1 * m + (1 - beta1) * problem.gradient(p)
        if t % curvature_interval == 0:
            h = beta2 * h + (1 - beta2) * problem.curvature(t)
        p = p - lr * weight_decay * p
        p = p - lr * np.clip(m / np.maximum(gamma * h, eps), -1, 1)
        t += 1
        yield p


def diag_ggn(problem: Problem, told: dict[str, Any], **o: Any) -> Iterator[Vector]:
    """As the docstring of `DiagGGN` has it; `told` gets what its metrics should be."""
    p, damping = problem.begin(), o["damping"]
    t = drawn = asked = 0
    h, b = np.zeros_like(p), None
    while True:
        told.clear()
        h_before, b_before, drawn_before = h, b, drawn
        if t < o["curvature_warmup"] or t % o["curvature_interval"] == 0:
            h = o["beta2"] * h + (1 - o["beta2"]) * problem.curvature(asked)
            drawn += 1
        asked += 1
        mean = h / (1 - o["beta2"] ** drawn)
        g = problem.gradient(p) + o["l2"] * p
        d = g / (mean + damping + o["l2"]) ** o["exponent"]
        told["damping"] = damping
        if o["clip"]:
            told["clipped"] = np.mean(np.abs(d) > o["clip"])
            d = np.minimum(np.maximum(d, -o["clip"]), o["clip"])
        if o["kl_clip"]:
            length = abs(o["lr"] ** 2 * float(np.dot(d, g)))
            told["kl_scale"] = min(1.0, math.sqrt(o["kl_clip"] / length)) if length else 1.0
            d = d * told["kl_scale"]
        b = d if b is None else o["momentum"] * b + d
        new = p - o["lr"] * o["weight_decay"] * p - o["lr"] * b
        t += 1
        every = o["damping_interval"]
        if every and t % every == 0:
            rise = problem.loss(new) - problem.loss(p)
            rise += 0.5 * o["l2"] * (np.dot(new, new) - np.dot(p, p))
            c = new - p
            foretold = np.dot(g, c) + 0.5 * np.sum((mean + damping + o["l2"]) * c**2)
            told["accepted"] = 1.0
            if not (math.isfinite(rise) and abs(foretold) <= 2.0**-52 * abs(problem.loss(p))):
                rho = rise / foretold
                if math.isfinite(rho):
                    told["reduction_ratio"] = rho
                refused = rise > 0 or not math.isfinite(rho)
                told["accepted"] = float(not refused)
                if refused or rho < 1 / 4:
                    damping = damping / 0.95**every
                elif rho > 3 / 4:
                    damping = damping * 0.95**every
                if refused:
                    new, h, b, drawn, t = p, h_before, b_before, drawn_before, t - 1
            damping = min(max(damping, o["damping_min"]), o["damping_max"])
        p = new
        yield p


def kfac(problem: Problem, **o: Any) -> Iterator[Vector]:
    p, t, drawn = problem.begin(), 0, 0
    b = None
    sums: dict[str, list[Vector]] = {}
    matrix = np.zeros((len(p), len(p)))
    while True:
        if t % o["curvature_interval"] == 0:
            drawn += 1
            for name, both in problem.factors(t).items():
                old = sums.get(name, [np.zeros_like(factor) for factor in both])
                sums[name] = [
                    o["beta2"] * was + (1 - o["beta2"]) * factor
                    for was, factor in zip(old, both, strict=True)
                ]
        if t % o["inverse_interval"] == 0:
            means = {
                name: [each / (1 - o["beta2"] ** drawn) for each in both]
                for name, both in sums.items()
            }
            outer, inner = means["weight"]
            pi = math.sqrt((np.trace(inner) / 4) / (np.trace(outer) / 3))
            root = math.sqrt(o["damping"])
            block = np.kron(outer + root / pi * np.eye(3), inner + root * pi * np.eye(4))
            matrix[:12, :12] = np.linalg.inv(block)
            matrix[12:, 12:] = np.linalg.inv(means["bias"][0] + o["damping"] * np.eye(5))
        g = problem.gradient(p)
        d = matrix @ g
        if o["kl_clip"]:
            length = abs(o["lr"] ** 2 * float(np.dot(d, g)))
            d = d * (min(1.0, math.sqrt(o["kl_clip"] / length)) if length else 1.0)
        b = d if b is None else o["momentum"] * b + d
        p = p - o["lr"] * o["weight_decay"] * p - o["lr"] * b
        t += 1
        yield p
