"""What is measured of a random view, of ours and of the authors' codes.

Draws cannot be compared one by one, as the codes draw in another order; shares, means and quantiles of many can.
"""

import torch

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
SIDE = 32


def picture():
    """Return a smooth color image (3, 32, 32) in [0, 1], in whole 255ths, the same in all codes."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    waves = [0.5 + 0.3 * torch.sin(6 * x + 2 * y), 0.4 + 0.3 * torch.cos(5 * y - x), 0.3 + 0.2 * torch.sin(9 * x * y)]
    return (torch.stack(waves) * 255).round() / 255


def ramp():
    """Return a gray image (3, 32, 32) that grows from left to right: its slope tells whether it was mirrored."""
    return (torch.linspace(0.2, 0.8, SIDE) * 255).round().div(255).expand(3, SIDE, SIDE).contiguous()


def flat():
    """Return a gray image (3, 32, 32) without content, of which a view shows the brightness alone."""
    return torch.full((3, SIDE, SIDE), 128 / 255)


IMAGES = {"picture": picture, "ramp": ramp, "flat": flat}


def of_picture(views):
    """Return statistics (N,) of views (N, 3, H, W) of the picture, by name."""
    spread = views.amax(1) - views.amin(1)
    changes = (views[..., 1:] - views[..., :-1]).abs().mean((1, 2, 3))
    channels = {f"mean of {name}": views[:, i].mean((1, 2)) for i, name in enumerate(("red", "green", "blue"))}
    return channels | {"contrast": views.std((1, 2, 3)), "saturation": spread.mean((1, 2)), "roughness": changes}


def statistics(views):
    """Return the distribution of each statistic, of views by the name of their image."""
    slope = views["ramp"][..., SIDE // 2 :].mean((1, 2, 3)) - views["ramp"][..., : SIDE // 2].mean((1, 2, 3))
    found = of_picture(views["picture"]) | {"brightness": views["flat"].mean((1, 2, 3))}
    gray = (views["picture"].amax(1) - views["picture"].amin(1)).amax((1, 2)) < 1.5 / 255
    shares = {"gray": gray.double().mean().item(), "mirrored": (slope < 0).double().mean().item()}
    return {"shares": shares, "values": found}


def summary_of(values):
    """Return mean, standard deviation and quantiles of values (N,)."""
    values = values.double()
    quantiles = values.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return {"mean": values.mean().item(), "sd": values.std().item(), "quantiles": quantiles}
