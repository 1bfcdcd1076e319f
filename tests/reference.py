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


def multi_view_nce(views, temperature, weight, detached=lambda a, b: False):
    """sum over ordered pairs of views of weight(a, b) times the mean over images of -s + log sum over all others."""
    total = 0.0
    count, images = len(views), len(views[0])
    for a in range(count):
        for b in range(count):
            if a == b or weight(a, b) == 0:
                continue
            stop = (lambda z: z.detach()) if detached(a, b) else (lambda z: z)
            for n in range(images):
                others = [
                    cosine(views[a][n], stop(views[v][m])) / temperature
                    for v in range(count)
                    for m in range(images)
                    if (v, m) != (a, n)
                ]
                own = cosine(views[a][n], stop(views[b][n])) / temperature
                total = total + weight(a, b) * (-own + torch.logsumexp(torch.stack(others), 0)) / images
    return total


def hard_negative_nce(views, temperature, tau_plus, beta, code="paper", weight=None):
    """A-InfoNCE's hard negatives, over ordered pairs (by default their mean), negatives of other images only."""
    count, images = len(views), len(views[0])
    names = [(v, n) for v in range(count) for n in range(images)]

    def s(i, j):
        return cosine(views[i[0]][i[1]], views[j[0]][j[1]]) / temperature

    def mean(i):
        columns = count * (images - 1) if code == "paper" else count * images
        return sum(torch.exp(beta * s(i, j)) for j in names if j[1] != i[1]) / columns

    def denominator(i):
        negatives = [j for j in names if j[1] != i[1]]
        positive = sum(torch.exp(s(i, j)) for j in names if j[1] == i[1] and j != i) / (count - 1)
        weighted = sum(torch.exp((1 + beta) * s(i, j)) / mean(i if code == "paper" else j) for j in negatives)
        estimate = (weighted - tau_plus * len(negatives) * positive) / (1 - tau_plus)
        floor = len(negatives) * (1 if code == "advcl" else math.exp(-1 / temperature))
        return positive + torch.clamp(estimate, min=floor)

    total = 0.0
    for i in names:
        for p in names:
            if i[1] == p[1] and i != p:
                of_pair = -s(i, p) + torch.log(denominator(p if code == "advcl" else i))
                share = 1 / (count * (count - 1)) if weight is None else weight(i[0], p[0])
                total = total + share * of_pair / images
    return total


def batch_law(u, v, temperature):
    """sigma(u, v): a law over the images of the batch."""
    weights = torch.stack([torch.exp(cosine(a, b) / temperature) for a, b in zip(u, v, strict=True)])
    return weights / weights.sum()


def lars(weights, gradients, rates, momentum=0.9, decay=1e-6, trust=1e-3):
    """The released rule, on one tensor: gradients and rates by step."""
    buffer = [0.0] * len(weights)
    for gradient, lr in zip(gradients, rates, strict=True):
        w_norm, g_norm = math.hypot(*weights), math.hypot(*gradient)
        degenerate = w_norm < 1e-15 or g_norm < 1e-15
        rate = lr if degenerate else lr * trust * w_norm / (g_norm + decay * w_norm)
        buffer = [momentum * b + rate * (g + decay * w) for b, g, w in zip(buffer, gradient, weights, strict=True)]
        weights = [w - b for w, b in zip(weights, buffer, strict=True)]
    return weights


def mmd_of_gaussians(shift, scale, width):
    """MMD^2 of N(0, 1) and N(shift, scale^2) with kernel exp(-(x - y)^2 / (2 width^2))."""

    def mean_kernel(variance, distance):
        total = width**2 + variance
        return width / math.sqrt(total) * math.exp(-(distance**2) / (2 * total))

    return mean_kernel(2, 0) + mean_kernel(2 * scale**2, 0) - 2 * mean_kernel(1 + scale**2, shift)


def mmd(p, q, width):
    """Mean of k(p_i, p_j) + k(q_i, q_j) - k(p_i, q_j) - k(p_j, q_i) over i != j."""

    def k(x, y):
        return math.exp(-((x - y) ** 2).sum().item() / (2 * width**2))

    pairs = [(i, j) for i in range(len(p)) for j in range(len(p)) if i != j]
    return sum(k(p[i], p[j]) + k(q[i], q[j]) - k(p[i], q[j]) - k(p[j], q[i]) for i, j in pairs) / len(pairs)


def sliced_wasserstein(p, q, directions):
    """Mean over directions of the mean distance between the sorted projections."""
    total = 0.0
    for direction in directions:
        u = direction / direction.norm()
        one, other = sorted(float(u @ x) for x in p), sorted(float(u @ x) for x in q)
        total += sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(p)
    return total / len(directions)


def with_statistics(network):
    """The network with norm weights and statistics that are not trivial, in eval mode."""
    for key, value in network.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            value.copy_(
                torch.rand_like(value) + 0.5 if key.endswith(("var", "weight")) else torch.randn_like(value) / 5
            )
    return network.eval()
