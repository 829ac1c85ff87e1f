"""Compute golden trajectories of the first-order methods.

    python tools/trajectories.py

writes tests/oracles/trajectories.json: the parameters of a small network after some steps of each
method, computed by PyTorch's published rules with fifty digits, one number at a time. The gradient
is a central difference, so that no derivative was written down by hand; its error is of order
1e-40. Nothing of fastbp is used. Needs mpmath.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import mpmath
from mpmath import mpf, sqrt

FILE = Path(__file__).resolve().parent.parent / "tests" / "oracles" / "trajectories.json"
DIGITS = 50
H = mpf(10) ** -20  # of the differences

# A 2-3-1 network, tanh and linear, on five rows in batches of two: numbers exact in any type.
X = [[0.5, -1.25], [1.75, 0.25], [-0.75, 0.5], [-1.5, -0.5], [0.25, 1.0]]
Y = [0.75, -0.5, 1.25, 0.25, -1.0]
START = [0.5, -0.75, 0.25, 0.375, 0.625, -0.5, 0.125, -0.25, 0.0625, 0.75, -0.375, 0.5, 0.1875]
BATCH_SIZE = 2
STEPS = (1, 2, 7, 60)

# Method, the arguments of its class in fastbp, and the limit of the gradient's norm.
RUNS = [
    ("SGD", {"lr": 0.05}, None),
    ("SGD", {"lr": 0.05}, 0.5),
    ("SGD", {"lr": 0.02, "momentum": 0.9}, None),
    ("SGD", {"lr": 0.02, "momentum": 0.8, "nesterov": True}, None),
    ("SGD", {"lr": 0.02, "momentum": 0.8, "nesterov": True}, 0.5),
    ("Adam", {"lr": 0.01}, None),
    ("Adam", {"lr": 0.03, "betas": [0.8, 0.95], "eps": 1e-3}, 0.5),
    ("AdamW", {"lr": 0.01}, None),
    ("AdamW", {"lr": 0.03, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.5}, None),
    ("RMSprop", {"lr": 0.01}, None),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "momentum": 0.7}, None),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "centered": True}, None),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-2, "momentum": 0.7, "centered": True}, 0.5),
    ("Adagrad", {"lr": 0.05}, None),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.25}, None),
]


def objective(p, rows):
    """The mean squared error of some rows; p has each layer's W row by row, then its b."""
    total = mpf(0)
    for i in rows:
        a, b = X[i]
        hidden = [mpmath.tanh(a * p[j] + b * p[3 + j] + p[6 + j]) for j in range(3)]
        output = p[12] + sum(hidden[j] * p[9 + j] for j in range(3))
        total += (output - Y[i]) ** 2
    return total / len(rows)


def gradient(p, rows):
    slopes = []
    for k in range(len(p)):
        ahead, behind = ([*p[:k], p[k] + h, *p[k + 1 :]] for h in (H, -H))
        slopes.append((objective(ahead, rows) - objective(behind, rows)) / (2 * H))
    return slopes


def clip(g, most):
    """torch.nn.utils.clip_grad_norm_."""
    norm = sqrt(sum(x * x for x in g))
    factor = min(mpf(1), most / (norm + mpf("1e-6")))
    return [x * factor for x in g]


# One parameter's rules: from p, g, the step t = 1, 2, ... and its memory, which starts empty.


def sgd(p, g, t, memory, lr, momentum=0.0, nesterov=False):
    if momentum:
        v = momentum * memory["v"] + g if "v" in memory else g
        memory["v"] = v
        g = g + momentum * v if nesterov else v
    return p - lr * g


def adamw(p, g, t, memory, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    p = p - lr * weight_decay * p
    beta1, beta2 = betas
    m = memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * g
    s = memory["s"] = beta2 * memory.get("s", 0) + (1 - beta2) * g**2
    return p - lr * (m / (1 - beta1**t)) / (sqrt(s / (1 - beta2**t)) + eps)


def adam(p, g, t, memory, **options):
    return adamw(p, g, t, memory, weight_decay=mpf(0), **options)


def rmsprop(p, g, t, memory, lr, alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
    s = memory["s"] = alpha * memory.get("s", 0) + (1 - alpha) * g**2
    if centered:
        a = memory["a"] = alpha * memory.get("a", 0) + (1 - alpha) * g
        s = s - a**2
    d = g / (sqrt(s) + eps)
    if momentum:
        d = memory["b"] = momentum * memory.get("b", 0) + d
    return p - lr * d


def adagrad(p, g, t, memory, lr, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    s = memory["s"] = memory.get("s", initial_accumulator_value) + g**2
    return p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)


RULES = {"SGD": sgd, "Adam": adam, "AdamW": adamw, "RMSprop": rmsprop, "Adagrad": adagrad}


def exact(value):
    """An option's numbers as mpmath's, which have the same value."""
    if isinstance(value, list):
        return [mpf(v) for v in value]
    return value if isinstance(value, bool) else mpf(value)


def trajectory(name, options, most, steps):
    """Step -> the parameters after it, as float64."""
    rule, options = RULES[name], {key: exact(value) for key, value in options.items()}
    p, memories, result = [mpf(x) for x in START], [{} for _ in START], {}
    batches = [range(j, min(j + BATCH_SIZE, len(X))) for j in range(0, len(X), BATCH_SIZE)]
    for t in range(1, max(steps) + 1):
        g = gradient(p, batches[(t - 1) % len(batches)])
        if most is not None:
            g = clip(g, most)
        p = [rule(x, d, t, m, **options) for x, d, m in zip(p, g, memories, strict=True)]
        if t in steps:
            result[t] = [float(x) for x in p]
    return result


def generate(steps=STEPS):
    """The file's content."""
    with mpmath.workdps(DIGITS):
        runs = [
            {
                "method": name,
                "options": options,
                "clip_norm": most,
                "params": trajectory(name, options, most, steps),
            }
            for name, options, most in RUNS
        ]
    return {"X": X, "y": Y, "start": START, "batch_size": BATCH_SIZE, "runs": runs}


def as_text(content):
    """JSON with a line for each list of numbers."""
    innermost = r"([\[{])\s*([^\[\]{}]*?)\s*([\]}])"
    text = json.dumps(content, indent=1)
    return re.sub(innermost, lambda m: m[1] + " ".join(m[2].split()) + m[3], text) + "\n"


if __name__ == "__main__":
    FILE.write_text(as_text(generate()), encoding="utf-8")
