"""Implement ``acl-plugin find-rate``."""

import logging

from acl_plugin import config as configuration
from acl_plugin.cli.parser import defaults_of_data, known_options, parse, parser_of
from acl_plugin.config import unused

ROWS = 12
"""Number of steps to print."""


def find_rate(arguments: list[str]) -> None:
    """Print the loss on held-out training images by learning rate, and the suggested rate."""
    parser = parser_of("find-rate")
    parser.add_argument("--steps", type=int, default=60, help="Number of steps, at least 10.")
    parser.add_argument("--lowest", type=float, default=1e-5, help="Learning rate of the first step.")
    parser.add_argument("--highest", type=float, default=1.0, help="Learning rate of the last step.")
    for group in configuration.SECTIONS.values():
        parser.add_class_arguments(group)
    options = parse(parser, arguments, defaults_of_data, {})
    search = {name: options.pop(name) for name in ("steps", "lowest", "highest")}
    config = configuration.from_dict(known_options(options))
    unused.refuse([config.options()], configuration.usual(config).options(), unused.RUN)

    from acl_plugin.training.rate_finder import find_rate as find  # imports Lightning, which takes seconds

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = find(config, **search)
    print(f"{'rate':>10}{'loss':>10}   on {found.held_out} held-out training images")
    every = -(-len(found.rates) // ROWS)
    for rate, loss in list(zip(found.rates, found.losses, strict=True))[::every]:
        print(f"{rate:10.2g}{loss:10.4f}")
    if found.suggestion is None:
        print("the loss never falls: lower --lowest, or take more steps")
    else:
        print(f"steepest fall: --lr {found.suggestion:.2g}")
