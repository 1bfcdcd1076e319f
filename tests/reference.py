"""The losses as plain loops over the formulas of the papers, in float64."""

import math

import torch


def cosine(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True)) / (u.norm() * v.norm())


def nt_xent(za, zb, temperature):
    """SimCLR's Algorithm 1: rows 2k and 2k + 1 are partners."""
    rows = [z for pair in zip(za, zb, strict=True) for z in pair]
    count = len(rows)
    losses = []
    for i in range(count):
        partner = i + 1 if i % 2 == 0 else i - 1
        denominator = sum(torch.exp(cosine(rows[i], rows[k]) / temperature) for k in range(count) if k != i)
        losses.append(-torch.log(torch.exp(cosine(rows[i], rows[partner]) / temperature) / denominator))
    return sum(losses) / count


def pgd(loss, x, eps, alpha, steps, start):
    """Projected gradient ascent on ``loss`` in the Linf ball and the box."""
    moved = (x + start).clamp(0, 1)
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(moved), moved)
        moved = moved + alpha * gradient.sign()
        moved = torch.max(torch.min(moved, x + eps), x - eps).clamp(0, 1)
    return moved.detach()


def js_of_gaussians(shift, points=20001):
    """JS of N(0, 1) and N(shift, 1) in nats, by quadrature."""
    x = torch.linspace(-12, 12 + shift, points, dtype=torch.float64)
    p = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    q = torch.exp(-((x - shift) ** 2) / 2) / math.sqrt(2 * math.pi)
    m = (p + q) / 2
    integrand = (p * torch.log(p / m) + q * torch.log(q / m)) / 2
    return torch.trapezoid(torch.nan_to_num(integrand), x).item()
