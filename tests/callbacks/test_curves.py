"""Curves from the CSV logs of a run."""

import os
from pathlib import Path

import pytest
from PIL import Image

from alitok.reports.curves import plot_curves, read_curves


def write_log(run: Path, version: int, text: str, time: int) -> None:
    """The log of one start of a run; the folder's number says nothing about the order, the file's time does."""
    file = run / "logs" / f"version_{version}" / "metrics.csv"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    os.utime(file, (time, time))


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    write_log(tmp_path, 10, "epoch,step,train/loss,val/psnr\n0,10,3.0,\n0,20,2.5,\n0,20,,14.5\n0,30,9.0,\n", time=1000)
    write_log(tmp_path, 2, "epoch,step,train/loss,train/gan\n0,30,2.0,\n0,40,1.5,0.25\n", time=2000)
    assert read_curves(tmp_path) == {
        "train/loss": [(10, 3.0), (20, 2.5), (30, 2.0), (40, 1.5)],  # step 30 as the resumed run did it
        "val/psnr": [(20, 14.5)],
        "train/gan": [(40, 0.25)],
    }


@pytest.mark.parametrize("cut", ["0,5", "0,", "0", "0,50,1.0,0,60,2.0,3.0", "\0\0\0"])
def test_a_row_that_was_cut_is_left_out(tmp_path: Path, cut: str) -> None:
    write_log(tmp_path, 0, f"epoch,step,train/loss,val/psnr\n0,10,3.0,14.5\n{cut}", time=1000)
    assert read_curves(tmp_path) == {"train/loss": [(10, 3.0)], "val/psnr": [(10, 14.5)]}


def test_a_run_without_logs_has_no_curves(tmp_path: Path) -> None:
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    assert read_curves(tmp_path) == {}


def test_plot_puts_training_and_validation_in_one_panel(tmp_path: Path) -> None:
    curves = {f"train/{name}": [(0, 1.0), (10, 0.5)] for name in ("loss", "mse", "lr")}
    plot_curves(curves, tmp_path / "three.png")
    plot_curves({**curves, "val/loss": [(10, 0.7)]}, tmp_path / "still-three.png")
    plot_curves({**curves, "val/psnr": [(10, 20.0)]}, tmp_path / "four.png")
    heights = [Image.open(tmp_path / f"{name}.png").height for name in ("three", "still-three", "four")]
    assert heights[0] == heights[1] < heights[2]  # a second row of panels


def test_plot_as_svg(tmp_path: Path) -> None:
    plot_curves({"train/loss": [(0, 1.0), (10, 0.5)]}, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["curves.svg"]
