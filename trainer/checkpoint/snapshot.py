"""A copy of a state in host memory, which training does not change any more."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor


@torch.no_grad()
def on_host(value: Any) -> Any:
    """A copy of a state dict; of a sharded tensor this rank's shards alone.

    DCP's own stagers copy twice, and ``copy.deepcopy`` the whole memory behind each table, which
    FBGEMM's tables share.
    """
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, ShardedTensor):
        return _sharded_on_host(value)
    if isinstance(value, Tensor):
        return _tensor_on_host(value)
    return copy.deepcopy(value)


def _tensor_on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _sharded_on_host(tensor: ShardedTensor) -> ShardedTensor:
    metadata = copy.deepcopy(tensor.metadata())
    for shard in metadata.shards_metadata:
        shard.placement._device = torch.device("cpu")
    here = {tuple(s.metadata.shard_offsets): s.tensor for s in tensor.local_shards()}
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [
            Shard(_tensor_on_host(here[tuple(shard.shard_offsets)]), shard)
            for shard in metadata.shards_metadata
            if tuple(shard.shard_offsets) in here
        ],
        metadata,
        process_group=tensor._process_group,
    )
