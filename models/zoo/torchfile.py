"""Reads the tensors of a PyTorch checkpoint without PyTorch, and without running anything a checkpoint may contain."""

import collections
import io
import pickle
import zipfile

import numpy as np

_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8", "IntStorage": "<i4", "HalfStorage": "<f2"}


class _Storage(str):
    """The name of a storage type, as the pickle refers to it."""


def _rebuild_tensor(storage, offset, size, stride, *_):
    return ("tensor", storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data, *_):
    return data


class _Unpickler(pickle.Unpickler):
    """Knows the four names a state dictionary needs. Any other name is an error, since a pickle can call what it names."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if module == "torch" and name in _DTYPES:
            return _Storage(name)
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"the checkpoint names {module}.{name}, which is no tensor")
        return known[module, name]

    def persistent_load(self, pid):
        kind, storage_type, key = pid[:3]
        if kind != "storage":
            raise pickle.UnpicklingError(f"the checkpoint refers to a {kind}")
        self.storages[key] = np.dtype(_DTYPES[storage_type])
        return key


def load(path):
    """The tensors of a state dictionary by name, as arrays. `path` is a `.pth` of either format: a zip archive (since
    PyTorch 1.6) or the older sequence of pickles followed by the storages."""
    with open(path, "rb") as f:
        data = f.read()
    tree, storages = _zipped(data) if data[:2] == b"PK" else _sequence(data)
    return {name: _array(value, storages) for name, value in tree.items()}


def _zipped(data):
    archive = zipfile.ZipFile(io.BytesIO(data))
    pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
    unpickler = _Unpickler(io.BytesIO(archive.read(pickled)))
    tree = unpickler.load()
    folder = pickled.removesuffix("data.pkl") + "data/"
    return tree, {key: np.frombuffer(archive.read(folder + key), dtype) for key, dtype in unpickler.storages.items()}


def _sequence(data):
    file = io.BytesIO(data)
    for _ in range(3):  # magic number, protocol version, the writer's byte order and integer sizes
        _Unpickler(file).load()
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    storages = {}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        dtype = unpickler.storages[key]
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return tree, storages


def _array(value, storages):
    _, key, offset, size, stride = value
    storage = storages[key]
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, [s * storage.itemsize for s in stride])
    return np.array(view)
