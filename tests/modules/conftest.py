"""One thread, for the tensors are tiny and other tests need the cores; always the same draws."""

import pytest
import torch

pytest.register_assert_rewrite("tests.modules.conformance")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    torch.manual_seed(0)
