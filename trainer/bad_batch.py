"""A batch that training could not digest, written for a person to look at; what to tell them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from data.batch import RankingBatch
from data.loader import RequestLoader
from data.store import write_arrow
from trainer.state import NonFiniteLossError


def write_batch(file: Path, batch: RankingBatch) -> None:
    """One row for each request: its number in its split, context, numbers, labels, and lists of its
    candidates' and its history's ids, named as the batch names them.
    """
    per_request = torch.bincount(batch.request_of.cpu(), minlength=len(batch.request_ids))
    columns: dict[str, pa.Array] = {"request": pa.array(batch.request_ids.cpu().numpy())}
    for name, column in batch.context.to_dict().items():
        columns[name] = pa.array(column.values().cpu().numpy())
    for place in range(batch.numbers.shape[1]):
        columns[f"number_{place}"] = pa.array(batch.numbers[:, place].cpu().numpy())
    columns["labels"] = _lists(batch.labels, per_request)
    columns |= _fields("candidate", batch.candidates, per_request)
    columns |= _fields("history", batch.history, batch.history_lengths)
    write_arrow(file, columns)


def told_of_loss(
    run: Path, step: int, rank: int, batch: RankingBatch, error: NonFiniteLossError
) -> str:
    """Writes the batch of a step whose loss is not finite; returns what to say of it."""
    file = run / f"batch-{step:08d}-rank-{rank}.arrow"
    write_batch(file, batch)
    return (
        f"The loss of step {step} is not finite on rank {rank}{error}. Training has stopped before "
        f"a checkpoint could be spoiled by it; those from before are kept. The requests are in "
        f"{file}. Look there for values out of range, or train again with lower learning rates "
        "(--tables.learning-rate, --dense-learning-rate)."
    )


def told_of_crashes(run: Path, step: int, crashes: int, loader: RequestLoader) -> str:
    """Writes the global batch of a step that crashes every time; returns what to say of it.

    ``loader``: of all requests of each global batch.
    """
    epoch, number = divmod(max(0, step - 1), len(loader))
    file = run / f"batch-{step:08d}.arrow"
    loader.load_state_dict({"epoch": epoch, "batch": number})
    write_batch(file, next(iter(loader)))
    return (
        f"{run} is not tried again: its last {crashes} attempts crashed in step {step} (batch "
        f"{number} of epoch {epoch}, counted from 0) or in what followed it. The requests of that "
        f"batch are in {file}; {run / 'attempts.jsonl'} has all attempts. When the cause is gone, "
        "go on with --resume --max-attempts-at-a-step 0."
    )


def _fields(role: str, ids: KeyedJaggedTensor, lengths: Tensor) -> dict[str, pa.Array]:
    return {
        f"{role}_{name}": _lists(column.values(), lengths) for name, column in ids.to_dict().items()
    }


def _lists(values: Tensor, lengths: Tensor) -> pa.Array:
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).cpu().numpy()
    return pa.LargeListArray.from_arrays(offsets, pa.array(values.cpu().numpy()))
