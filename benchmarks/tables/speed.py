"""Write the tables of the question "How fast?"."""

import statistics
from typing import Any

from benchmarks.tables.cells import Runs, device, head, row, spread


def speeds(results: Runs) -> list[str]:
    """Return one row per measured training step."""
    names = ("objective", "backbone", "batch", "precision", "images/s", "s per step", "plain s", "plain / ours", "F")
    lines = [
        "### Speed of a training step",
        "",
        "Ours against a step written plainly (float32, contiguous memory, weight gradients in the attack, views by "
        "PIL), in turns on the same random images; median of the pairs, and their range. GFLOP/s: F encoder forwards "
        "per image; share: of the best matrix product in the same precision, measured in the same run.",
        "",
        *head(*names, "GFLOP/s", "share", "views s", "attack s", "rest s", "peak GiB", "device"),
    ]
    for r in results:
        parts, shape = r["parts"], "x".join(map(str, r["shape"]))
        rest = sum(parts[name] for name in ("data", "forward and backward", "optimizer"))
        lines += row(
            r["objective"],
            f"{r['backbone']}, {shape}",
            r["batch_size"],
            r["precision"] + (", compiled" if r["compiled"] else ""),
            f"{r['images_per_second']:.1f}",
            f"{r['seconds_per_step']:.3f}",
            f"{r['plain_seconds_per_step']:.3f}",
            f"{r['ratio']:.2f} ({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f})",
            r["encoder_forwards_per_image"],
            f"{r['flops_per_second'] / 1e9:,.0f}",
            f"{100 * r['share_of_ceiling']:.0f} %",
            f"{parts['views']:.3f}",
            f"{parts['attack']:.3f}",
            f"{rest:.3f}",
            f"{r['peak_memory'] / 2**30:.1f}",
            device(r),
        )
    return [*lines, "", "![Where the seconds of a step go](speed.svg)"]


def scaling(kept: dict[str, Any]) -> list[str]:
    """Return one row per batch and number of ranks, and the estimate for many GPUs."""
    rows, paper = kept["rows"], kept["paper"]
    lines = [
        f"### How a step of {rows[0]['objective']} grows",
        "",
        f"A small ResNet on 3x32x32, one thread a rank, float32, gloo; {kept['environment']['device']}. Every rank "
        f"takes the loss of the joint batch. Efficiency: images per second a rank, against one rank with the same "
        f"batch.",
        "",
        *head("batch a rank", "ranks", "s per step", "images/s", "efficiency", "exchange s", "KiB taken from others"),
    ]
    alone = {r["batch_size"]: r["seconds_per_step"] for r in rows if r["ranks"] == 1}
    for r in rows:
        seconds, taken = r["seconds_per_step"], sum(v for name, v in r.items() if name.startswith("bytes"))
        share = f"{100 * alone[r['batch_size']] / seconds:.0f} %" if r["batch_size"] in alone else ""
        rate = f"{r['ranks'] * r['batch_size'] / seconds:.0f}"
        exchange = f"{r['seconds_of_exchange']:.3f}"
        lines += row(r["batch_size"], r["ranks"], f"{seconds:.3f}", rate, share, exchange, f"{taken / 1024:,.0f}")
    assumed = paper["assumed"]
    sent = sum(v for name, v in paper.items() if name.startswith("bytes"))
    return [
        *lines,
        "",
        f"On paper, not measured: ResNet-18 under ACL(DS) on {assumed['nodes']} x {assumed['gpus']} GPUs, batch "
        f"{paper['batch_size']} each, at {assumed['flops_per_second'] / 1e12:.0f} TFLOP/s and "
        f"{assumed['bytes_per_second'] / 1e9:.0f} GB/s a GPU. A step computes for "
        f"{1e3 * paper['seconds_of_encoder']:.2f} ms, takes the joint losses in "
        f"{1e3 * paper['seconds_of_joint_losses']:.2f} ms, and sends {sent / 2**20:.0f} MiB in "
        f"{1e3 * paper['seconds_of_sending']:.2f} ms, of which embeddings and their gradients are "
        f"{(paper['bytes_of_embeddings'] + paper['bytes_of_their_gradients']) / 2**20:.0f} MiB.",
    ]


def evaluation_speeds(results: Runs) -> list[str]:
    """Return one row per classifier that both were run on."""
    lines = [
        "### Speed of AutoAttack",
        "",
        "Ours against the reference package called plainly (batch 100, float32, contiguous memory), in turns on the "
        "same classifier and images, with the same attacks, iterations and restarts, float32; medians. Robust "
        "accuracies are in %, over the seeds of the turns. Share: what the reference's input gradients reach "
        "of the device's ceiling for matrix products, about the least ratio that faster code can have.",
        "",
        *head(
            "classifier",
            "test images",
            "ours s",
            "reference s",
            "ours / reference",
            "share",
            "robust, ours",
            "reference",
            "device",
        ),
    ]
    for r in results:
        lines += row(
            f"{r['data']}, {r['backbone']}, {r['objective']}",
            r["n"],
            f"{statistics.median(r['seconds']):.1f}",
            f"{statistics.median(r['reference_seconds']):.1f}",
            f"{r['ratio']:.2f} ({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f})",
            f"{100 * r['reference_share_of_ceiling']:.0f} %",
            spread(100 * v for v in r["robust_accuracies"]),
            spread(100 * v for v in r["reference_robust_accuracies"]),
            device(r),
        )
    return lines


def reading(kept: dict[str, Any]) -> list[str]:
    """Return one row per way of reading and number of processes, and the ratio to ImageFolder with as many."""
    settings, rows = kept["settings"], kept["rows"]
    theirs = {r["workers"]: r["images_per_second"] for r in rows if r["kind"] == "ImageFolder"}
    lines = [
        "### Reading images from disk",
        "",
        f"{settings['images']:,} JPEGs of {settings['side']} pixels, enlarged from CIFAR-10 and digits, drawn in "
        f"shuffled batches of {settings['batch']}; the median of {settings['repeats']} measurements of "
        f"{settings['measured']:,} images each, in turns. Memory: of the process and its workers, beyond that "
        f"of the libraries. The index took "
        f"{kept['index_seconds']:.0f} s, once. {device(kept)}.",
        "",
        *head("images", "workers", "images/s", "range", "of ImageFolder", "MiB", "s to begin"),
    ]
    for r in rows:
        name = {"ram": "in memory", "disk": "on disk", "ImageFolder": "torchvision's ImageFolder"}[r["kind"]]
        ratio = f"{r['images_per_second'] / theirs[r['workers']]:.2f}" if r["kind"] == "disk" else ""
        low, high = r["range"]
        rate, range_ = f"{r['images_per_second']:,.0f}", f"{low:,.0f} to {high:,.0f}"
        lines += row(name, r["workers"], rate, range_, ratio, f"{r['mib']:,.0f}", f"{r['seconds_to_load']:.1f}")
    return lines


def startup(kept: dict[str, Any]) -> list[str]:
    """Return one row per command that computes nothing, with its time as a ratio to the import of PyTorch."""
    lines = [
        "### Start-up",
        "",
        f"A process for each command, in turns; the median of {kept['settings']['repeats']} measurements. "
        f"{device(kept)}.",
        "",
        *head("command", "s", "range", "of `import torch`"),
    ]
    for r in kept["rows"]:
        range_ = f"{r['fastest']:.2f} to {r['slowest']:.2f}"
        lines += row(r["name"], f"{r['seconds']:.2f}", range_, f"{r['to_torch']:.2f}")
    return lines
