"""Writes numpy.npz: what numpy.savez writes, in every order and byte order hone promises to read.

Run: python record.py   (needs numpy)
"""
from pathlib import Path

import numpy as np

x = np.arange(6, dtype=np.float32).reshape(2, 3)
np.savez(
    Path(__file__).with_name("numpy.npz"),
    c=x,
    fortran=np.asfortranarray(x),
    big_endian=np.array([1, -2, 300], dtype=">i4"),
    scalar=np.array(42, dtype=np.int64),
)
