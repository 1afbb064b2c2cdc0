"""The mark of tests that want a GPU; they are run by hand on a machine that has one."""

import pytest
import torch

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
