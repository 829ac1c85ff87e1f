"""Levenberg-Marquardt on rows in a file: what it takes of memory does not grow with their number.

Counted are the pages that belong to the process alone. Those of the mapped file, which the system
keeps while it has room for them and takes back when it wants, are not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from measuring.session import QUICK

import fastbp as fb

ROWS = (10_000, 100_000) if QUICK else (100_000, 1_000_000)
KIB, LIMIT = 2**10, 2**20  # of 1,000,000 rows the residuals alone would take 8 MiB

CHILD = """
import sys, threading, time
import numpy as np, fastbp as fb

def fit(rows):
    X, y = (np.memmap(path, shape=(rows, n), mode="r", dtype="float64")
            for path, n in zip(sys.argv[2:], (4, 1)))
    fb.fit(net, X, y, method="lm", epochs=5, params=net.init(seed=0), progress=False)

def own_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    while not ended.wait(0.001):
        seen[1] = max(seen[1], own_kib())

net = fb.Network.mlp([4, 20, 1], "tanh")
fit(2000)  # imports, compiles and makes workspaces
seen, ended = [own_kib()] * 2, threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
fit(int(sys.argv[1]))
seconds = time.perf_counter() - start
ended.set()
watcher.join()
print(seen[1] - seen[0], seconds)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("backend", [name for name in fb.available_backends() if name != "numpy"])
def test_memory(backend, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FASTBP_BACKEND", backend)
    files = write(tmp_path, max(ROWS))
    growth = {}
    for rows in ROWS:
        command = [sys.executable, "-c", CHILD, str(rows), *map(str, files)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        growth[rows], seconds = map(float, output.split())
        with capsys.disabled():
            told = f"{growth[rows]:,.0f} KiB more, {seconds:.2f} s"
            print(f"\n{backend}, 5 iterations on {rows:,} rows, 121 parameters: {told}", end="")
    assert KIB * (growth[max(ROWS)] - growth[min(ROWS)]) < LIMIT


def write(folder: Path, rows: int) -> tuple[Path, Path]:
    """Files of X (rows, 4) and y (rows, 1)."""
    X = np.random.default_rng(0).standard_normal((rows, 4))
    files = folder / "X", folder / "y"
    X.tofile(files[0])
    (np.sin(X[:, 0]) + X[:, 1] * X[:, 2]).tofile(files[1])
    return files
