"""Training loops in PyTorch; see peers/__init__.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from workloads import ADAM_BETAS, ADAM_EPS, MOMENTUM, N_MOMENTS

from fastbp.cli.workloads import Training

MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "linear": nn.Identity}
LOSSES = {"mse": F.mse_loss, "softmax_ce": F.cross_entropy}

torch.set_num_threads(1)


def tensors(work: Training, X: np.ndarray, y: np.ndarray) -> list[Any]:
    return [(torch.tensor(Xb), torch.tensor(yb)) for Xb, yb in work.cut(X, y)]


def eager(work, dtype, X, y, params):
    data, start = tensors(work, X, y), work.net(dtype).unpack(params)
    linears = [nn.Linear(*W.shape, dtype=getattr(torch, dtype)) for W, _ in start]
    pairs = zip(linears, work.activations, strict=True)
    model = nn.Sequential(*(part for linear, name in pairs for part in (linear, MODULES[name]())))
    weights = [tuple(map(torch.tensor, (W.T, b))) for W, b in start]
    loss = LOSSES[work.loss]

    def run(epochs):
        with torch.no_grad():
            for linear, (W, b) in zip(linears, weights, strict=True):
                linear.weight.copy_(W)
                linear.bias.copy_(b)
        optimizer = optimizer_of(work, model)
        for _ in range(epochs):
            for Xb, yb in data:
                loss(model(Xb), yb).backward()
                optimizer.step()
                optimizer.zero_grad()
        return [(linear.weight.detach().T, linear.bias.detach()) for linear in linears]

    return run


def optimizer_of(work: Training, model: nn.Module) -> torch.optim.Optimizer:
    if work.method == "adam":
        return torch.optim.Adam(model.parameters(), work.lr, ADAM_BETAS, ADAM_EPS, fused=True)
    momentum = MOMENTUM if work.method == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), work.lr, momentum, fused=True)


def compiled(work, dtype, X, y, params):
    data, start = tensors(work, X, y), work.net(dtype).unpack(params)
    acts = [getattr(torch, name, lambda Z: Z) for name in work.activations]
    betas = torch.tensor(ADAM_BETAS, dtype=torch.float64)

    def objective(layers, X, y):
        for (W, b), act in zip(layers, acts, strict=True):
            X = act(torch.addmm(b, X, W))
        return LOSSES[work.loss](X, y)

    def step(layers, moments, corrections, X, y):
        grads = torch.func.grad(objective)(layers, X, y)
        for p, g, kept in zip(flat(layers), flat(grads), moments, strict=True):
            UPDATES[work.method](work.lr, corrections, p, g, *kept)

    torch.compiler.reset()  # the number of functions that it keeps is limited
    compiled_step = torch.compile(step, fullgraph=True, dynamic=False)

    def run(epochs):
        layers = [(torch.tensor(W), torch.tensor(b)) for W, b in start]
        moments = [
            [torch.zeros_like(p) for _ in range(N_MOMENTS[work.method])] for p in flat(layers)
        ]
        powers = torch.ones_like(betas)
        with torch.no_grad():
            for _ in range(epochs):
                for Xb, yb in data:
                    if work.method == "adam":
                        powers = powers * betas
                    compiled_step(layers, moments, 1 - powers, Xb, yb)
        return layers

    return run


def flat(layers: Any) -> list[Any]:
    return [p for layer in layers for p in layer]


def sgd(lr, corrections, p, g):
    p.sub_(lr * g)


def momentum(lr, corrections, p, g, v):
    p.sub_(lr * v.mul_(MOMENTUM).add_(g))


def adam(lr, corrections, p, g, m, s):
    beta1, beta2 = ADAM_BETAS
    m.mul_(beta1).add_((1 - beta1) * g)
    s.mul_(beta2).add_((1 - beta2) * g * g)
    p.sub_(lr / corrections[0] * m / ((s / corrections[1]).sqrt() + ADAM_EPS))


UPDATES = {"sgd": sgd, "momentum": momentum, "adam": adam}
