"""What runs code when it is read is refused by the linter, under every name that it has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BANNED = """\
import pickle
from pickle import loads
import _pickle
import marshal
import shelve
import dill
import cloudpickle
import joblib
import jsonpickle
from joblib import load
torch.load("x")
torch.load("x", weights_only=True)
torch.save({}, "x")
torch.serialization.load("x")
torch.jit.load("x")
torch.hub.load("x", "y")
from torch import load
import torch.package
numpy.load("x", allow_pickle=True)
np.load("x")
pd.read_pickle("x")
yaml.load("x")
"""
ALLOWED = """\
import numpy
import numpy as np
import pandas as pd
import torch
import yaml
json.loads("x")
yaml.safe_load("x")
"""


@pytest.mark.parametrize(
    "folder", ["curvserve", "client/curvserve_client", "benchmarks", "examples", "tests"]
)
def test_reading_code_is_refused(folder: str) -> None:
    lines = (ALLOWED + BANNED).splitlines()
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json"]
    found = json.loads(
        subprocess.run(
            [*command, f"--stdin-filename={folder}/new.py", "-"],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            cwd=ROOT,
        ).stdout
    )
    refusals = [each for each in found if each["code"] in ("TID251", "S301", "S506")]
    refused = {lines[each["location"]["row"] - 1] for each in refusals}
    assert refused == set(BANNED.splitlines())
