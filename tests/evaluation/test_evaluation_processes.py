"""Two processes that saw different shares give, each, the numbers of one process that saw all."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from alitok.evaluation.classifier import Classifier, ClassifierExtractor
from alitok.evaluation.code_distance import CodeHistograms
from alitok.evaluation.fid import FeatureStatistics
from alitok.evaluation.generation import GenerationMetrics
from alitok.evaluation.inception_score import InceptionScore
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.evaluation.tokens import CodebookUsage, TokenAccuracy


def results(rows: torch.Tensor) -> dict[str, float]:
    """Every metric over the given rows of one seeded data set; a second codebook sees row 0 only."""
    torch.manual_seed(0)
    images, noise = torch.rand(10, 3, 16, 16), 0.1 * torch.randn(10, 3, 16, 16)
    ids, logits = torch.randint(0, 8, (10, 5)), torch.randn(10, 5, 8)
    extractor = ClassifierExtractor(Classifier(num_classes=4, width=2), "random")
    reference = FeatureStatistics(8)
    reference.update(torch.randn(20, 8))

    reconstruction = ReconstructionMetrics(extractor)
    generation = GenerationMetrics(extractor, reference, split_size=4)
    codes, others = CodeHistograms(8), CodeHistograms(8)
    others.update(ids.flip(0) // 2)
    codebook, accuracy, seldom = CodebookUsage(8), TokenAccuracy(5), InceptionScore()
    if len(rows):
        reconstruction.update(images[rows], images[rows] + noise[rows])
        generation.update((images[rows] * 255).to(torch.uint8), rows)
        codebook.update(ids[rows])
        codes.update(ids[rows])
        accuracy.update(logits[rows], ids[rows])
    if 0 in rows.tolist():
        seldom.update(logits[0].softmax(dim=-1), torch.arange(5))
    statistics = generation.statistics.reduce()
    assert statistics.count == 10
    positions = torch.cat(accuracy.by_position())
    return {
        **reconstruction.compute(),
        **generation.compute(),
        **codebook.compute(),
        **accuracy.compute(),
        "chd": codes.reduce().distance(others),
        "seldom": seldom.compute()["inception_score"],
        "mean": float(statistics.mean.sum()),
        "covariance": float(statistics.covariance.square().sum()),
        "positions": float((positions * torch.arange(10)).sum()),
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        uneven = [torch.tensor([0, 9, 4]), torch.tensor([1, 2, 3, 5, 6, 7, 8])][rank]
        nothing = [torch.arange(10), torch.arange(0)][rank]
        with pytest.raises(ValueError, match="index"):
            InceptionScore().update(torch.eye(2))
        text = json.dumps([results(uneven), results(nothing)])
        Path(folder, f"{rank}.json").write_text(text)
        dist.barrier()  # a process that ends while the other still talks to it may abort
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    expected = results(torch.arange(10))
    for split in first:
        assert split == pytest.approx(expected, rel=1e-4)
        for name in ("psnr", "token_nats", "codebook_perplexity", "mean", "positions", "seldom", "chd"):
            assert split[name] == pytest.approx(expected[name], rel=1e-7)
