"""Networks in files: what comes back is what was saved, and nothing else is accepted."""

from __future__ import annotations

import json
import math
import os
import pathlib
import signal
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file, save as serialized

import fastbp as fb
from fastbp.common.files import replacing
from fastbp.io import SavedNetwork
from fastbp.networks import activations


def cube(z):
    return z**3


def cube_slope(z):
    return 3 * z**2


CUBE = fb.Activation("cube", cube, cube_slope)


def network(dtype="float64"):
    """Every kind of option; 4-3-3-2-1."""
    rng = np.random.default_rng(1)
    return fb.Network(
        4,
        fb.Dense(3, "tanh", mask=rng.integers(2, size=(4, 3)), dropout=0.3, init="he"),
        fb.Dense(3, fb.relu(0.5), bias_mask=[0, 1, 1], trainable=rng.integers(2, size=(3, 3))),
        fb.Dense(2, fb.elu(0.1), trainable=False),
        fb.Dense(1, bias=False),
        dtype=dtype,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# Round trips.


@st.composite
def networks(draw):
    def ones_and_zeros(shape):
        size = math.prod(shape)
        bits = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        return np.reshape(bits, shape)

    parametrised = st.floats(0, 1e300, exclude_min=True).flatmap(
        lambda c: st.sampled_from([fb.relu(-c), fb.leaky_relu(c), fb.elu(c), fb.celu(c)])
    )
    n_in = draw(st.integers(1, 4))
    size, layers, depth = n_in, [], draw(st.integers(1, 4))
    for k in range(depth):
        n_out = draw(st.integers(1, 4))
        bias = draw(st.booleans())
        layers.append(
            fb.Dense(
                n_out,
                draw(st.sampled_from([*activations.NAMES, CUBE]) | parametrised),
                bias=bias,
                mask=draw(st.sampled_from([None, ones_and_zeros((size, n_out))])),
                bias_mask=ones_and_zeros((n_out,)) if bias and draw(st.booleans()) else None,
                trainable=draw(st.sampled_from([True, False, ones_and_zeros((size, n_out))])),
                init=draw(st.sampled_from(["auto", "glorot", "he", "lecun", "zeros"])),
                dropout=draw(st.floats(0, 1, exclude_max=True)) if k < depth - 1 else 0,
            )
        )
        size = n_out
    return fb.Network(n_in, *layers, dtype=draw(st.sampled_from(["float32", "float64"])))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def equal(a, b):
    """As ==, with NaN equal to itself and numbers of the same type and sign."""
    return repr(a) == repr(b)


@given(net=networks(), data=st.data())
def test_networks_come_back(net, data, tmp_path):
    path = tmp_path / "net.safetensors"
    bits = data.draw(st.binary(min_size=net.n_params * 8, max_size=net.n_params * 8))
    params = np.frombuffer(bits, net.dtype)[: net.n_params]  # any NaN, subnormals, infinities
    meta = data.draw(st.dictionaries(st.text(max_size=9).filter(str.isidentifier), values))
    meta = {f"x{key}": value for key, value in meta.items()}
    fb.save(path, net, params, **meta)
    loaded = fb.load(path, activations=[CUBE])
    assert loaded.net == net and hash(loaded.net) == hash(net)
    assert same_bits(loaded.params, params)
    assert loaded.state is None and equal(loaded.meta, meta)
    with np.errstate(all="ignore"):
        assert np.array_equal(loaded.net.free, net.free)


@pytest.mark.backend
def test_predictions_come_back(backend, dtype, path, rng):
    net, X = network(dtype), rng.standard_normal((5, 4))
    params = net.init(2)
    fb.save(path, net, params)
    loaded = fb.load(path)
    assert same_bits(loaded.net.forward(loaded.params, X), net.forward(params, X))


def test_result_is_a_named_tuple(path):
    net = network()
    fb.save(path, net, net.init(0), {"step": 3}, title="x")
    loaded = fb.load(path)
    assert isinstance(loaded, SavedNetwork)
    net2, params, state, meta = loaded
    assert net2 == net and (params == net.init(0)).all()
    assert state == {"step": 3} and meta == {"title": "x"}
    params[0] = 7  # the array of the caller
    assert params.flags.aligned and params.flags.c_contiguous


def test_masked_entries_come_back_as_they_were(path):
    net = fb.Network(2, fb.Dense(1, mask=[[0], [1]]))
    fb.save(path, net, [np.nan, 1.0, -0.0])
    assert same_bits(fb.load(path).params, np.array([np.nan, 1.0, -0.0]))


STATES = {
    "none": None,
    "empty": {},
    "values": {"step": 3, "rng": {"state": {"inc": 2**127, "x": [1.5, None, "é\ud800"]}}},
    "arrays": {k: np.arange(6).astype(k).reshape(2, 3) for k in ("f2", "f4", "f8", "u1", "i8")},
    "bool": {"flags": np.array([True, False])},
    "0-d and empty": {"t": np.array(3.5), "none": np.empty((0, 4), np.int32)},
    "odd names": {"": np.zeros(1), "params": np.ones(1), "a.b/c é": np.ones(2), "x": "tensor"},
    "special": {"m": np.array([np.nan, -np.inf, -0.0, 5e-324])},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_states_come_back(state, path):
    net = network()
    fb.save(path, net, net.init(0), state)
    loaded = fb.load(path).state
    if state is None:
        assert loaded is None
        return
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        if isinstance(value, np.ndarray):
            assert same_bits(loaded[key], value) and loaded[key].flags.writeable
        else:
            assert loaded[key] == value


@pytest.mark.parametrize("layout", ["F", "every second", "byte-swapped", "read-only"])
def test_layouts_of_arrays(layout, path):
    A = np.arange(12.0).reshape(3, 4)
    B = {"F": np.asfortranarray(A), "every second": np.repeat(A, 2, axis=1)[:, ::2]}.get(layout, A)
    if layout == "byte-swapped":
        B = A.astype(">f8")
    elif layout == "read-only":
        B = A.copy()
        B.flags.writeable = False
    net = fb.Network(2, fb.Dense(4))
    fb.save(path, net, B.ravel()[::1], {"B": B})
    _, params, state, _ = fb.load(path)
    assert same_bits(params, A.ravel()) and same_bits(state["B"], A)


def test_parameters_of_other_types_are_converted(path):
    net = fb.Network(1, fb.Dense(1), dtype="float32")
    fb.save(path, net, [0.1, 2])
    assert same_bits(fb.load(path).params, np.array([0.1, 2], np.float32))


def test_file_is_ordinary_safetensors(path):
    net = network("float32")
    fb.save(path, net, net.init(0), {"m": np.arange(3)})
    arrays = load_file(path)
    matrices = {"layers.0.mask", "layers.1.bias_mask", "layers.1.trainable"}
    assert arrays.keys() == matrices | {"params", "state.m"}
    assert same_bits(arrays["params"], net.init(0))
    for name in matrices:
        _, k, attribute = name.split(".")
        assert arrays[name].dtype == np.uint8
        assert np.array_equal(arrays[name], getattr(net.layers[int(k)], attribute))


def test_equal_networks_give_equal_files(tmp_path):
    net = network()
    contents = set()
    for k in range(4):
        fb.save(tmp_path / str(k), net, net.init(0), {"b": np.ones(3), "a": np.ones(3)}, x=1, y=2)
        contents.add((tmp_path / str(k)).read_bytes())
    assert len(contents) == 1


def test_another_process_reads_it(path):
    net = network()
    fb.save(path, net, net.init(0))
    program = (
        "import sys, fastbp as fb; loaded = fb.load(sys.argv[1]); "
        "print(repr(loaded.net)); print(loaded.params.tobytes().hex())"
    )
    command = [sys.executable, "-c", program, str(path)]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(fb.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == f"{net!r}\n{net.init(0).tobytes().hex()}\n"


def test_safetensors_is_imported_at_first_use():
    program = "import sys, fastbp as fb; fb.save; fb.load; print('safetensors' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(fb.__file__).parents[1])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"


# User-defined activations.


def test_user_defined_activations_are_returned(path):
    square = fb.Activation("square", lambda z: z * z, lambda z: 2 * z)
    net = fb.Network(2, fb.Dense(3, CUBE), fb.Dense(2, "tanh"), fb.Dense(1, square))
    fb.save(path, net, net.init(0))
    assert fb.load(path, activations=[square, CUBE]).net == net
    assert fb.load(path, activations=(a for a in (square, CUBE, fb.relu(3.0)))).net == net
    with pytest.raises(ValueError, match=r"layer 0 .*'cube' of the user's own.*activations=\[it\]"):
        fb.load(path)
    with pytest.raises(ValueError, match=r"layer 2 .*'square'"):
        fb.load(path, activations=[CUBE])


def test_activations_are_checked(path):
    net = network()
    fb.save(path, net, net.init(0))
    other = fb.Activation("cube", lambda z: z, lambda z: 1.0)
    assert fb.load(path, activations=CUBE).net == net
    assert fb.load(path, activations=[CUBE, CUBE]).net == net
    with pytest.raises(ValueError, match="two that are named 'cube'"):
        fb.load(path, activations=[CUBE, other])
    for wrong in ("cube", [cube], ["cube"]):
        with pytest.raises(TypeError, match="activations holds"):
            fb.load(path, activations=wrong)


def test_parametrised_activations_are_all_known():
    from fastbp.io import files as _model

    constants = {name for name in activations.NAMES if callable(getattr(activations, name, None))}
    assert set(_model.PARAMETRISED) == constants


# What cannot be saved.


class Thing:
    def __repr__(self):  # part of a test's name, which must not change from run to run
        return "Thing()"


@pytest.mark.parametrize(
    "value",
    [np.float32(1), np.arange(3), {1: 2}, {"a": {None: 1}}, [{2}], b"x", 1j, Thing(), [[Thing()]]],
    ids=repr,
)
def test_values_that_json_does_not_give_back(value, path):
    net = network()
    with pytest.raises(TypeError, match=r"expected (None, bool|keys of type str)"):
        fb.save(path, net, net.init(0), note=value)
    if not isinstance(value, np.ndarray):
        with pytest.raises(TypeError, match=r"state\['note'\]"):
            fb.save(path, net, net.init(0), {"note": value})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("dtype", ["complex128", "object", "U3", "M8[s]", "V4"])
def test_arrays_that_cannot_be_stored(dtype, path):
    net = network()
    with pytest.raises(TypeError, match=r"state\['m'\] has dtype"):
        fb.save(path, net, net.init(0), {"m": np.zeros(2, dtype)})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("state", [[1], "x", {1: 2}, np.zeros(3)])
def test_states_that_are_no_dict_of_names(state, path):
    net = network()
    with pytest.raises(TypeError, match="expected a dict with keys of type str"):
        fb.save(path, net, net.init(0), state)


def test_arguments_are_checked(path):
    net = network()
    with pytest.raises(fb.ShapeError, match=r"params has shape \(3,\)"):
        fb.save(path, net, [1, 2, 3])
    with pytest.raises(TypeError, match="complex"):
        fb.save(path, net, net.init(0) + 1j)
    with pytest.raises(TypeError, match=r"net is .*expected a fastbp\.Network"):
        fb.save(path, [4, 1], net.init(0))
    with pytest.raises(TypeError):
        fb.save(net, net, net.init(0))
    assert list(path.parent.iterdir()) == []


# Where the file goes.


@pytest.mark.parametrize("kind", [str, pathlib.Path, os.fsencode])
def test_kinds_of_paths(kind, path):
    net = network()
    fb.save(kind(path), net, net.init(0))
    assert fb.load(kind(path)).net == net
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["x", "no ending", ".hidden", "ünï.st", "n" * 250])
def test_names_are_taken_as_they_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = network()
    fb.save(name, net, net.init(0))
    assert fb.load(name).net == net and os.listdir() == [name]


def test_missing_folders_and_files(tmp_path):
    net = network()
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere of .* does not exist"):
        fb.save(tmp_path / "nowhere" / "net", net, net.init(0))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        fb.load(tmp_path / "net")
    for function in (fb.load, lambda p: fb.save(p, net, net.init(0))):
        with pytest.raises(IsADirectoryError, match="is a folder"):
            function(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file(failing, error, path, monkeypatch):
    net = network()
    fb.save(path, net, net.init(0))
    before = path.read_bytes()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(type(error)):
            fb.save(path, net, net.init(1))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    fb.save(path, net, net.init(1))
    assert same_bits(fb.load(path).params, net.init(1))


@pytest.mark.skipif(sys.platform == "win32", reason="permissions and links are POSIX's")
def test_permissions_are_those_of_a_new_file(path):
    net = network()
    before = os.umask(0o027)
    try:
        fb.save(path, net, net.init(0))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="permissions and links are POSIX's")
def test_links_are_followed(tmp_path, path):
    link, net = tmp_path / "link", network()
    link.symlink_to(path.name)
    fb.save(link, net, net.init(0))
    assert link.is_symlink() and fb.load(path).net == net


@pytest.mark.skipif(sys.platform == "win32", reason="permissions and links are POSIX's")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_modes_are_kept(mode, path):
    net = network()
    path.touch()
    path.chmod(mode)
    fb.save(path, net, net.init(0))
    assert stat.S_IMODE(path.stat().st_mode) == mode and fb.load(path).net == net


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX's")
def test_devices_and_pipes_stay(tmp_path):
    net = network()
    fb.save(os.devnull, net, net.init(0))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    pipe, copy = tmp_path / "pipe", tmp_path / "copy"
    os.mkfifo(pipe)
    with subprocess.Popen(["cp", pipe, copy]) as reader:
        fb.save(pipe, net, net.init(0))
    assert reader.returncode == 0 and stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert same_bits(fb.load(copy).params, net.init(0))


KILLED = """
import os, signal, sys
import fastbp as fb
net = fb.Network.mlp([2, 1])
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
fb.save(sys.argv[1], net, net.init(0))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_no_remains_of_killed_saves(path):
    net = network()
    fb.save(path, net, net.init(0))
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, path], timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert len(list(path.parent.iterdir())) == 2  # those of the first are gone too
    fb.save(path, net, net.init(1))
    assert list(path.parent.iterdir()) == [path]
    assert same_bits(fb.load(path).params, net.init(1))


def test_a_save_leaves_the_temporary_files_of_those_at_work(path):
    net = network()
    with replacing(str(path)) as file:
        file.write(b"not yet")
        fb.save(path.parent / "other", net, net.init(0))
        assert len(list(path.parent.iterdir())) == 2
    assert path.read_bytes() == b"not yet"


# Files that are not ours.


def header_and_data(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def framed(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def saved(path):
    net = network()
    fb.save(path, net, net.init(0), {"m": np.arange(3.0), "step": 4}, title="x")
    return path.read_bytes()


def refused(path, content, message=None):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        fb.load(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
    assert not isinstance(caught.value, UnicodeError)
    return str(caught.value)


def test_every_truncation_is_noticed(saved, path):
    for size in range(0, len(saved), 7):
        refused(path, saved[:size], "only a part of one")
    refused(path, saved + b"\0", "only a part of one")


FOREIGN = {
    "empty": b"",
    "text": b"weights = [1, 2, 3]\n" * 20,
    "pickle": b"\x80\x04\x95" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "absurd header": struct.pack("<Q", 2**62) + bytes(100),
    "header beyond the file": struct.pack("<Q", 10**7) + b"{}",
    "not JSON": struct.pack("<Q", 8) + b"{]}     ",
    "nested": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "not UTF-8": struct.pack("<Q", 8) + b'{"\xff":1}',
    "huge tensor": framed({"p": {"dtype": "F64", "shape": [2**62, 4], "data_offsets": [0, 8]}}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files(content, path):
    refused(path, content, "not a safetensors file.*expected a file that fastbp.save wrote")


def test_safetensors_files_of_other_programs(path):
    refused(path, serialized({"weight": np.zeros(3)}), "of another program")
    refused(path, serialized({"weight": np.zeros(3)}, {"format": "pt"}), "of another program")


def tampered(content, change):
    """The file with its description changed in place."""
    header, data = header_and_data(content)
    description = json.loads(header["__metadata__"]["fastbp"])
    change(description)
    header["__metadata__"]["fastbp"] = json.dumps(description)
    return framed(header, data)


def test_tampering_that_changes_nothing_is_no_fault(saved, path):
    path.write_bytes(tampered(saved, lambda d: None))
    assert fb.load(path).net == network()


def test_newer_formats(saved, path):
    def change(d):
        d.update(format_version=2, fastbp_version="9.1", surprise=1)

    message = refused(path, tampered(saved, change), "'9.1' in version 2 .* at most 1; update")
    assert "damaged" not in message


def set_layer(k, **fields):
    return lambda d: d["network"]["layers"][k].update(fields)


def set_network(**fields):
    return lambda d: d["network"].update(fields)


def set_top(**fields):
    return lambda d: d.update(fields)


HUGE = 10**400
TAMPERINGS = {
    "field missing": lambda d: d.pop("meta"),
    "field unknown": set_top(x=1),
    "version missing": lambda d: d.pop("format_version"),
    "version 0": set_top(format_version=0),
    "version of a wrong type": set_top(format_version="1"),
    "version True": set_top(format_version=True),
    "fastbp version": set_top(fastbp_version=1),
    "network no dict": set_top(network=[]),
    "meta no dict": set_top(meta=[]),
    "state no dict": set_top(state=[]),
    "state lacks a field": set_top(state={"values": {}}),
    "state left out": set_top(state=None),
    "state's array left out": set_top(state={"values": {}, "arrays": []}),
    "state's array twice": set_top(state={"values": {}, "arrays": ["m", "m"]}),
    "state's array also a value": set_top(state={"values": {"m": 1}, "arrays": ["m"]}),
    "state's array no name": set_top(state={"values": {}, "arrays": [["m"]]}),
    "state's array unknown": set_top(state={"values": {}, "arrays": ["m", "n"]}),
    "dtype": set_network(dtype="float16"),
    "other dtype": set_network(dtype="float32"),
    "dtype of a wrong type": set_network(dtype=None),
    "n_in other": set_network(n_in=3),
    "n_in 0": set_network(n_in=0),
    "n_in negative": set_network(n_in=-4),
    "n_in float": set_network(n_in=4.0),
    "n_in True": set_network(n_in=True),
    "n_in large": set_network(n_in=2**62),
    "n_in huge": set_network(n_in=HUGE),
    "layers no list": set_network(layers={}),
    "no layers": set_network(layers=[]),
    "layer no dict": lambda d: d["network"]["layers"].append(1),
    "layer too many": lambda d: d["network"]["layers"].append(d["network"]["layers"][-1]),
    "layer left out": lambda d: d["network"]["layers"].pop(),
    "layers swapped": lambda d: d["network"]["layers"].reverse(),
    "layer lacks a field": lambda d: d["network"]["layers"][2].pop("init"),
    "layer has one more": set_layer(2, pickle="cos\nsystem"),
    "n_out other": set_layer(2, n_out=3),
    "n_out large": set_layer(2, n_out=2**62),
    "n_out huge": set_layer(0, n_out=HUGE),
    "n_out string": set_layer(0, n_out="3"),
    "activation unknown": set_layer(0, activation="tan"),
    "activation of a wrong type": set_layer(0, activation=["tanh"]),
    "activation internal": set_layer(0, activation="relu_z"),
    "constant where there is none": set_layer(0, constant=1.0),
    "constant out of range": set_layer(2, constant=-1.0),
    "constant NaN": set_layer(1, constant=float("nan")),
    "constant string": set_layer(1, constant="0"),
    "init unknown": set_layer(0, init="normal"),
    "dropout out of range": set_layer(0, dropout=1.5),
    "dropout NaN": set_layer(0, dropout=float("nan")),
    "dropout of the last layer": set_layer(3, dropout=0.5),
    "bias left out": set_layer(2, bias=False),
    "bias 1": set_layer(2, bias=1),
    "mask left out": set_layer(0, mask=None),
    "mask without tensor": set_layer(1, mask="tensor"),
    "mask string": set_layer(1, mask="all"),
    "mask True": set_layer(1, mask=True),
    "trainable left out": set_layer(1, trainable=True),
    "trainable null": set_layer(2, trainable=None),
    "trainable string": set_layer(2, trainable="no"),
}


@pytest.mark.parametrize("change", TAMPERINGS.values(), ids=TAMPERINGS)
def test_tampered_descriptions(change, saved, path):
    message = refused(path, tampered(saved, change))
    assert "the file was damaged or changed" in message


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "1" * 5000, '{"a": NaN'])
def test_descriptions_that_are_none(text, saved, path):
    header, data = header_and_data(saved)
    header["__metadata__"]["fastbp"] = text
    refused(path, framed(header, data), "the file was damaged or changed")


def change_tensor(name, array):
    def change(content):
        arrays = dict(load_file_of(content))
        arrays.pop(name, None)
        if array is not None:
            arrays[name] = array
        header, _ = header_and_data(content)
        return serialized(arrays, header["__metadata__"])

    return change


def load_file_of(content):
    from safetensors.numpy import load

    return load(content)


TENSORS = {
    "params missing": ("params", None),
    "params of another length": ("params", np.zeros(5)),
    "params a matrix": ("params", np.zeros((network().n_params, 1))),
    "params of another type": ("params", np.zeros(network().n_params, np.float32)),
    "mask missing": ("layers.0.mask", None),
    "mask of another shape": ("layers.0.mask", np.zeros((3, 4), np.uint8)),
    "mask of another type": ("layers.0.mask", np.zeros((4, 3), bool)),
    "mask with 2": ("layers.0.mask", np.full((4, 3), 2, np.uint8)),
    "bias mask with 255": ("layers.1.bias_mask", np.full(3, 255, np.uint8)),
    "one too many": ("layers.2.mask", np.ones((3, 2), np.uint8)),
    "state missing": ("state.m", None),
    "state too many": ("state.n", np.zeros(1)),
}


@pytest.mark.parametrize(("name", "array"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit(name, array, saved, path):
    message = refused(path, change_tensor(name, array)(saved))
    assert "the file was damaged or changed" in message


def test_arrays_of_strange_types(saved, path):
    header, data = header_and_data(saved)
    header["state.m"].update(dtype="BF16", shape=[12])
    refused(
        path, framed(header, data), r"state\.m has type BF16, expected F64, .*damaged or changed"
    )


def test_claims_of_size_are_not_believed(path, monkeypatch):
    """A description of 2^40 parameters beside a tensor of 3: nothing of that size is made."""
    net = fb.Network(2, fb.Dense(1))
    fb.save(path, net, [1.0, 2.0, 3.0])
    saved, made = path.read_bytes(), []
    monkeypatch.setattr(fb.Network, "__init__", lambda *a, **k: made.append(a))
    wide = tampered(saved, lambda d: d["network"].update(n_in=2**40))
    refused(path, wide, rf"params has shape \(3,\).*expected \({2**40 + 1},\)")
    deep = tampered(saved, lambda d: d["network"].update(layers=d["network"]["layers"] * 10_000))
    refused(path, deep, "params has shape")
    assert made == []


@settings(max_examples=300)
@given(data=st.data())
def test_any_changed_byte_of_the_header_is_refused_or_harmless(data, tmp_path):
    """Random damage gives a network with the file's parameters or a ValueError, nothing else."""
    path = tmp_path / "net.safetensors"
    net = network()
    fb.save(path, net, net.init(0), {"m": np.arange(3.0), "step": 4}, title="x")
    content = bytearray(path.read_bytes())
    end = len(content) - 8 * (net.n_params + 3)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        loaded = fb.load(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert loaded.params.shape == (loaded.net.n_params,)
