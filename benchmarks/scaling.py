"""Measure how the cost of a step grows with batch and ranks, and estimate it for many GPUs.

    python -m benchmarks scaling        a small ResNet, batch 32 to 256 a rank, 1 and 2 ranks of one thread each

Every rank computes the loss of the joint batch. It gathers the embeddings of all ranks, and sums their gradients and
those of the weights over all ranks. Traffic is counted from shapes; the additional time of a step is measured.
"""

import socket
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from acl_plugin.cli.parser import Parser
from acl_plugin.config import RunConfig, preset, used
from acl_plugin.runs.environment import environment
from acl_plugin.runtime import distributed
from acl_plugin.runtime.files import read_json, write_json
from acl_plugin.training.build import build
from benchmarks.speed import flops, random_data

PAPER = {"nodes": 8, "gpus": 8, "flops_per_second": 4e14, "bytes_per_second": 5e10}
"""Properties of a cluster of H100: 40 % of bfloat16's peak, and 400 Gbit/s for each GPU."""


def run(*arguments: str) -> tuple[str, dict[str, Any]]:
    """Run what the command line describes; return the name of its file and the result."""
    parser = Parser(prog="benchmarks scaling", exit_on_error=False)
    parser.add_argument("--objective", type=str, default="acl_ds", help="Objective.")
    parser.add_argument("--batches", type=list[int], default=[32, 64, 128, 256], help="Images per rank.")
    parser.add_argument("--ranks", type=list[int], default=[1, 2], help="Processes.")
    parser.add_argument("--repeats", type=int, default=7, help="Steps, the first of which warms up.")
    given = parser.parse(arguments)
    kwargs = {"stem_width": 16, "channels": [16, 32, 64, 128]}
    own = {"objective": given.objective, "backbone": "resnet10t", "backbone_kwargs": kwargs, "eps_ramp": 0.0}
    config = preset("cifar10", **used("cifar10", **own))
    rows = []
    for batch in given.batches:
        for ranks in given.ranks:
            rows.append(measured(config.replace(batch_size=batch, precision="32-true"), ranks, given.repeats))
            print(f"batch {batch}, {ranks} rank(s): {rows[-1]['seconds_per_step']:.3f} s per step", flush=True)
    return f"scaling_{given.objective}", {"rows": rows, "paper": on_paper(), "environment": environment()}


def measured(config: RunConfig, ranks: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of a step on each of ``ranks`` processes, and of its waiting for the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_rank, (ranks, port, config, repeats, folder), ranks, start_method="spawn")
        steps = [read_json(Path(folder) / f"{rank}.json") for rank in range(ranks)]
    return {
        "objective": config.objective.objective,
        "batch_size": config.training.batch_size,
        "ranks": ranks,
        "seconds_per_step": statistics.median(
            max(of_step) for of_step in zip(*(s["steps"] for s in steps), strict=True)
        ),
        "seconds_of_exchange": statistics.median(steps[0]["exchange"]),
        **sent(config, ranks, steps[0]["size"], steps[0]["embedding"], steps[0]["parameters"]),
    }


def sent(config: RunConfig, ranks: int, streams: int, embedding: int, parameters: int) -> dict[str, int]:
    """Return the bytes that a rank receives from the others in one step, in float32.

    Args:
        streams: number of contrastive losses of two views each.
        embedding: P.
        parameters: number of parameters of encoder and projector.
    """
    others = ranks - 1
    gathered = streams * 2 * config.training.batch_size * embedding * 4 * others
    return {
        "bytes_of_embeddings": gathered,
        "bytes_of_their_gradients": gathered * 2,  # a sum over the joint batch: reduce, then distribute
        "bytes_of_weight_gradients": 2 * parameters * 4 * others // max(1, ranks),
    }


def on_paper(batch: int = 64) -> dict[str, Any]:
    """Return the seconds of computation and of communication in a step of ResNet-18 under ACL(DS) on 64 GPUs.

    The two do not overlap in this estimate.
    """
    config = preset("cifar10", objective="acl_ds", batch_size=batch)
    module = build(config, random_data(32, 3, batch))
    parameters = sum(p.numel() for p in module.model.parameters())
    ranks = PAPER["nodes"] * PAPER["gpus"]
    told = sent(config, int(ranks), 2, module.model.size, parameters)
    joint = 2 * batch * ranks
    losses = 2 * 3 * 2 * joint**2 * module.model.size  # two losses, each a product and two gradients
    return {
        "batch_size": batch,
        "ranks": ranks,
        **told,
        "seconds_of_encoder": flops(module, torch.device("cpu")) / PAPER["flops_per_second"],
        "seconds_of_joint_losses": losses / (PAPER["flops_per_second"] / 8),  # they are in float32
        "seconds_of_sending": sum(told.values()) / PAPER["bytes_per_second"],
        "assumed": PAPER,
    }


def _rank(rank: int, ranks: int, port: int, config: RunConfig, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    module = build(config, random_data(32, 3, config.training.batch_size))
    attack = replace(module.attack, on_moved=None)
    optimizer = module.configure_optimizers()
    record: dict[str, Any] = {"steps": [], "exchange": [], "embedding": module.model.size, "size": 0}
    record["parameters"] = sum(p.numel() for p in module.model.parameters())
    waited = 0.0
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def counted(exchange: Any) -> Any:
        def call(*arguments: Any) -> None:
            nonlocal waited
            began = time.perf_counter()
            exchange(*arguments)
            waited += time.perf_counter() - began

        return call

    dist.all_reduce, dist.all_gather = counted(all_reduce), counted(all_gather)
    for _ in range(repeats):
        drawn = module.views_of(module.data.train.pixels, module.data.train.rows)
        waited, began = 0.0, time.perf_counter()
        optimizer.zero_grad()
        terms = module.objective.backward(module.model, drawn, attack)
        distributed.average(p.grad for p in module.model.parameters() if p.grad is not None)
        optimizer.step()
        record["steps"].append(time.perf_counter() - began)
        record["exchange"].append(waited)
        record["size"] = sum(name.startswith("nce") for name in terms.parts)
    record["steps"], record["exchange"] = record["steps"][1:], record["exchange"][1:]
    write_json(Path(folder) / f"{rank}.json", record)
    if ranks > 1:
        dist.destroy_process_group()
