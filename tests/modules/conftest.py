"""One thread: the tensors are tiny, and the cores are for the other tests."""

import pytest
import torch

pytest.register_assert_rewrite("tests.modules.conformance")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
