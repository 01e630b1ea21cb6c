"""Tries the libraries for ``twofold doctor``, which runs this file in a process of its own.

A crash in compiled code then ends the probe, not the doctor. One JSON line is printed when a stage
begins and one when it ends, so the doctor knows where it stopped. Imports stand in the stages:
the probe has to say which of them fails.
"""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any


def devices() -> list[dict[str, Any]]:
    """The CUDA devices that torch can use: none is fine."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": device.name, "bytes": device.total_memory} for device in found]


def gloo() -> float:
    """Sums over a process group of one, on the loopback address."""
    import datetime

    import torch
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timeout)
    total = torch.ones(1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return total.item()


def operators() -> list[str]:
    """One step of SGD by FBGEMM's fused kernels on each kind of device, against a hand sum."""
    import torch
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        EmbeddingLocation,
        OptimType,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kinds = {"cpu": (EmbeddingLocation.HOST, ComputeDevice.CPU)}
    if torch.cuda.is_available():
        kinds["cuda"] = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    for device, (location, compute) in kinds.items():
        table = SplitTableBatchedEmbeddingBagsCodegen(
            embedding_specs=[(3, 4, location, compute)],
            optimizer=OptimType.EXACT_SGD,
            learning_rate=0.25,
            device=torch.device(device),
        )
        (weights,) = table.split_embedding_weights()
        torch.nn.init.ones_(weights)
        indices = torch.tensor([0, 1, 1], device=device)  # bags: [0, 1] and [1]
        offsets = torch.tensor([0, 2, 3], device=device)
        table(indices, offsets).sum().backward()
        rows = weights[:, 0].tolist()
        if rows != [0.75, 0.5, 1.0]:  # row 0 was read once, row 1 twice, row 2 never
            raise RuntimeError(f"wrong result on {device}: {rows} instead of [0.75, 0.5, 1.0]")
    return list(kinds)


def torchrec() -> str:
    """The import registers operators of its own."""
    import torchrec

    return torchrec.__version__


def main() -> None:
    """Runs the stages in order; a later one is tried although an earlier one failed."""
    stages: list[Callable[[], Any]] = [devices, gloo, operators, torchrec]
    for stage in stages:
        print(json.dumps({"begin": stage.__name__}), flush=True)
        try:
            answer = {"result": stage()}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"end": stage.__name__, **answer}), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
