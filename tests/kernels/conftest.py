"""The same tests for Triton's kernels and their PyTorch twins, on a GPU if there is one.

A test that takes `backend` runs once with each. Without a GPU, Triton's half runs in a process of its own, under
TRITON_INTERPRET=1, which test_interpreter.py starts; that process runs nothing else.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["torch", "triton"] if torch.cuda.is_available() else ["torch"]


@pytest.fixture(params=["torch", "triton"])
def backend(request, monkeypatch):
    monkeypatch.setenv("KERNELS_BACKEND", request.param)
    return request.param


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


def pytest_collection_modifyitems(config, items):
    here = os.path.dirname(__file__)
    kept, dropped = [], []
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        wanted = parameters["backend"] in BACKENDS if "backend" in parameters else not INTERPRETED
        (kept if wanted or not str(item.path).startswith(here) else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
