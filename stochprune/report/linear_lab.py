"""The table and the pictures of the linear lab."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochprune.report.style import BLUE, GREEN, GREY, ORANGE, new_figure, save, terminal_table, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

TITLES = {"exact": "exact gradient", "straight_through": "straight-through", "concrete": "concrete"}


def linear_lab_table(results: Mapping[str, Any]) -> Table:
    """Return the results of the linear lab in a few lines."""
    points = results["certificates"]
    kept = results["alignment"]["orthogonal features"]
    made = terminal_table("Linear lab")
    made.add_column("what")
    made.add_column("found")
    for name, loss in results["training"]["losses"].items():
        made.add_row(f"expected loss at the end of the flow: {name}", f"{loss:.4f}")
    made.add_row("loss of the best mask", f"{results['training']['best']:.4f}")
    agree = sum((q > 0.5) == (part > 0.5) for q, part in zip(kept["kept"], kept["alignment"], strict=True))
    made.add_row("weights kept or pruned as their alignment predicts", f"{agree} of {len(kept['kept'])}")
    made.add_row("largest KL(Q | P) / its bound by alignment", f"{max(p['kl'] / p['bound'] for p in points):.3f}")
    failed = sum(p["risk"] > p["certificate"] for p in points)
    made.add_row("certificates below the true risk", f"{failed} of {len(points)}")
    return made


def plot_linear_lab(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write one PNG file per experiment and return the paths."""
    makers: dict[str, tuple[tuple[float, float], int, Callable[[Any, list[Axes]], None]]] = {
        "training": ((9.6, 3.4), 3, _plot_training),
        "alignment": ((9.6, 3.2), 3, _plot_alignment),
        "paths": ((9.6, 5.8), 4, _plot_paths),
        "certificates": ((7.4, 3.4), 2, _plot_certificates),
    }
    written = []
    for name, (size, panels, maker) in makers.items():
        figure = new_figure(*size)
        grid = (2, 2) if panels == 4 else (1, panels)
        axes = list(figure.subplots(*grid, squeeze=False).flat)
        for axis in axes:
            tidy(axis)
        maker(results[name], axes)
        path = folder / f"linear-lab-{name}.png"
        save(figure, path)
        written.append(path)
    return written


def _plot_training(data: Mapping[str, Any], axes: list[Axes]) -> None:
    wanted = np.array(data["wanted"])
    for axis, name in zip(axes, TITLES, strict=True):
        trained = np.array(data["trained"][name])
        time = np.linspace(0, data["times"][-1], len(trained))
        for i, part in enumerate(wanted):
            colour = BLUE if part > 0.5 else ORANGE
            axis.plot(time, trained[:, i], color=colour, alpha=0.35, linewidth=1)
            axis.plot(data["times"], np.array(data["flows"][name])[:, i], color="black", linewidth=0.8, linestyle="--")
        axis.set(title=f"{TITLES[name]}: loss {data['losses'][name]:.3f}", xlabel="time (rate x steps)", ylim=(0, 1))
    axes[0].set_ylabel("probability of keeping")
    axes[0].plot([], color=BLUE, label="labels ask for > 1/2 of the weight")
    axes[0].plot([], color=ORANGE, label="less")
    axes[0].plot([], color="black", linestyle="--", linewidth=0.8, label="gradient flow")
    axes[0].legend(fontsize=7, loc="center right")


def _plot_alignment(data: Mapping[str, Any], axes: list[Axes]) -> None:
    for axis, (name, found) in zip(axes, data.items(), strict=True):
        at = np.clip(found["residual_alignment"], -1.5, 2.5)
        axis.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
        axis.scatter(at, found["kept"], s=26, color=[BLUE if kept else ORANGE for kept in found["best_mask"]])
        axis.set(title=name, xlabel="alignment with the labels, in weights", ylim=(-0.05, 1.05), xlim=(-1.6, 2.6))
    axes[0].set_ylabel("probability at the end")
    axes[0].scatter([], [], color=BLUE, label="in the best mask")
    axes[0].scatter([], [], color=ORANGE, label="not in it")
    axes[0].legend(fontsize=7, loc="center left")


def _plot_paths(data: Mapping[str, Any], axes: list[Axes]) -> None:
    for row, (title, found) in enumerate(data.items()):
        masks, dropout = np.array(found["mask_weights"]), np.array(found["dropout_weights"])
        left, right = axes[2 * row : 2 * row + 2]
        for i in range(masks.shape[1]):
            label = None if found["names"] is None else found["names"][i]
            left.plot(found["sizes"], masks[:, i], linewidth=1.2, label=label, drawstyle="steps-post")
            right.plot(found["keeps"], dropout[:, i], linewidth=1.2)
        left.set(title=f"{title}: masks trained (adaptive L1)", xlabel="size of the weights")
        right.set(title=f"{title}: dropout (adaptive L2)", xlabel="probability of keeping")
        right.invert_xaxis()
        left.set_ylabel("mean weight")
        if found["names"] is not None:
            left.legend(fontsize=6, ncols=2)


def _plot_certificates(points: list[Mapping[str, float]], axes: list[Axes]) -> None:
    for size, colour in zip(sorted({p["examples"] for p in points}), (ORANGE, GREEN, BLUE, GREY), strict=True):
        mine = [p for p in points if p["examples"] == size]
        column = lambda name: [p[name] for p in mine]  # noqa: B023, E731
        axes[0].scatter(column("bound"), column("kl"), s=9, color=colour, label=f"{size} examples each")
        axes[1].scatter(column("change"), column("certificate"), s=9, color=colour, marker="^")
        axes[1].scatter(column("change"), column("risk"), s=9, facecolors="none", edgecolors=colour, linewidths=0.7)
    ends = [min(p["kl"] for p in points), max(p["bound"] for p in points)]
    axes[0].plot(ends, ends, color="black", linewidth=0.8, label="equality")
    axes[0].set(xscale="log", yscale="log", xlabel="bound by the change of alignment (nats)", ylabel="KL(Q | P) (nats)")
    axes[0].legend(fontsize=7)
    axes[1].set(xscale="log", xlabel="change of alignment |c - c'|", ylabel="0-1 risk", ylim=(0, 1))
    axes[1].scatter([], [], color="black", marker="^", label="certificate")
    axes[1].scatter([], [], facecolors="none", edgecolors="black", label="true risk")
    axes[1].legend(fontsize=7)
