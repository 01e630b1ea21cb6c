"""From settings to a model for the users and items of a log."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from modules.retrieval.config import (
    FactorsConfig,
    FrequentConfig,
    GCMCConfig,
    LightGCNConfig,
    ModelConfig,
    NGCFConfig,
    PopularConfig,
    SelfAttentionConfig,
)
from modules.retrieval.self_attention import SelfAttention
from modules.retrieval.vectors import Frequent, MatrixFactorization, Popular
from trainer.topk.interactions import Interactions


def build(config: ModelConfig, log: Interactions) -> nn.Module:
    """The model at its start, drawn from torch's generator.

    Raises:
        InputError: a graph model, without the library that it is built on.
    """
    if isinstance(config, PopularConfig):
        return Popular(torch.from_numpy(log.frequency), log.num_users)
    if isinstance(config, FrequentConfig):
        _, counts = np.unique(log.user * log.num_items + log.item, return_counts=True)
        columns = (log.bought.offsets, log.bought.items, counts, log.frequency)
        return Frequent(*map(torch.from_numpy, columns))
    if isinstance(config, FactorsConfig):
        return MatrixFactorization(log.num_users, log.num_items, config)
    if isinstance(config, SelfAttentionConfig):
        return SelfAttention(log.num_items, config)
    return _build_graph(config, log)


def _build_graph(config: LightGCNConfig | NGCFConfig | GCMCConfig, log: Interactions) -> nn.Module:
    try:
        # takes seconds to import, and is in an extra
        from modules.retrieval import graph
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch_geometric":
            raise
        raise InputError(
            "Graph models need PyTorch Geometric, which is not installed. Install it: "
            "pip install 'twofold[graph]' (in a checkout: pip install -e '.[graph]')"
        ) from error
    users, items = torch.from_numpy(log.bought.users), torch.from_numpy(log.bought.items)
    adjacency = graph.adjacency(users, items, log.num_users, log.num_items)
    kinds = {LightGCNConfig: graph.LightGCN, NGCFConfig: graph.NGCF, GCMCConfig: graph.GCMC}
    return kinds[type(config)](adjacency, log.num_users, config)
