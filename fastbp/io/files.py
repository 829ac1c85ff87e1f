"""`save` and `load`: a network and its parameters as a safetensors file.

Such a file is a JSON header and plain arrays; nothing in it is ever executed. The header's metadata
have one entry, "fastbp", which is JSON again, the description (CONTENT): two versions, the network,
the state's values and the meta values of the caller. The tensors are "params", the layers' 0/1
matrices as uint8 ("layers.0.mask") and the state's arrays ("state.NAME"). `load` checks the file
against all this before it allocates anything of a size that the file claims.
"""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..common.files import replacing
from ..common.release import version
from ..networks.activations import Activation, activation, celu, elu, leaky_relu, relu
from ..networks.dense import Dense
from ..networks.network import Network

FORMAT = "fastbp"
VERSION = 1

# The fields of the description, of its parts, and their types. A field of MATRICES is the string
# TENSOR if a tensor of the file has its value.
NONE = type(None)
CONTENT = {
    "format_version": int, "fastbp_version": str, "network": dict, "state": dict | NONE,
    "meta": dict,
}  # fmt: skip
NETWORK = {"dtype": str, "n_in": int, "layers": list}
LAYER = {
    "n_out": int, "activation": str, "constant": float | NONE, "bias": bool, "init": str,
    "dropout": float, "mask": str | NONE, "bias_mask": str | NONE, "trainable": bool | str,
}  # fmt: skip
STATE = {"values": dict, "arrays": list}
MATRICES = ("mask", "bias_mask", "trainable")
TENSOR = "tensor"

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
PARAMETRISED: dict[str, Callable[[float], Activation]] = {
    "relu": relu, "leaky_relu": leaky_relu, "elu": elu, "celu": celu,
}  # fmt: skip


class SavedNetwork(NamedTuple):
    """The content of a file: ``net, params, state, meta = fb.load(path)``.

    Attributes
    ----------
    net : Network
    params : numpy.ndarray (n_params,)
        In the network's dtype.
    state : dict or None
        The state that `save` received.
    meta : dict
        The other keyword arguments of `save`.
    """

    net: Network
    params: np.ndarray
    state: dict[str, Any] | None
    meta: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    net: Network,
    params: Any,
    state: dict[str, Any] | None = None,
    **meta: Any,
) -> None:
    """Write a network and its parameters to a file.

    The file is a safetensors file [1]_. It is written under another name in the same folder and
    then renamed in one step, so that `path` is always a complete file, the old or the new one. It
    has the mode of the old one. A device or a pipe is written to and not replaced.

    Parameters
    ----------
    path : str or os.PathLike
    net : Network
        Of a user-defined activation only the name is stored; pass the activation to `load`.
    params : array_like (n_params,)
        Stored bit by bit in the network's dtype.
    state : dict, optional
        Arrays of real numbers or bool, and values as in `meta`, by name.
    **meta
        Further values to store: None, bool, int, float, str, and lists, tuples (which `load`
        returns as lists) and dicts with keys of type str of these.

    Raises
    ------
    ShapeError
        If `params` has another length.
    TypeError
        If `net` is no network, or for values that cannot be stored.
    FileNotFoundError, IsADirectoryError, OSError
        If the folder is missing, `path` is a folder, or writing fails; an old file then stays as
        it was.

    References
    ----------
    .. [1] https://huggingface.co/docs/safetensors

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> net = fb.Network.mlp([2, 3, 1])
    >>> params = net.init(seed=0)
    >>> fb.save("net.safetensors", net, params, rows=150, columns=["age", "height"])
    >>> net2, params2, state, meta = fb.load("net.safetensors")
    >>> net2 == net, np.array_equal(params2, params), state, meta["columns"]
    (True, True, None, ['age', 'height'])
    """
    from safetensors.numpy import save as serialized

    if not isinstance(net, Network):
        raise TypeError(f"net is {net!r}, expected a fastbp.Network")
    tensors = {"params": net.checked_vector(params)} | _matrices(net)
    stored = None
    if state is not None:
        arrays, values = _split(state)
        tensors |= {f"state.{name}": array for name, array in arrays.items()}
        stored = {"values": values, "arrays": list(arrays)}
    _require_json("meta", meta)
    content = {
        "format_version": VERSION,
        "fastbp_version": version(),
        "network": _described(net),
        "state": stored,
        "meta": meta,
    }
    # One entry: safetensors writes several in random order, and the same call writes the same file.
    data = serialized(tensors, {FORMAT: json.dumps(content)})
    with replacing(os.fsdecode(path)) as file:
        file.write(data)


def _described(net: Network) -> dict[str, Any]:
    """The description's field "network": NETWORK, with a dict LAYER for each layer."""
    layers = []
    for layer in net.layers:
        act, matrices = layer.act, {name: getattr(layer, name) for name in MATRICES}
        layers.append(
            {
                "n_out": layer.n_out,
                "activation": act.name,
                "constant": act.constant if act.functions is None else None,
                "bias": layer.bias,
                "init": layer.init,
                "dropout": layer.dropout,
            }
            | {k: TENSOR if isinstance(v, np.ndarray) else v for k, v in matrices.items()}
        )
    return {"dtype": net.dtype.name, "n_in": net.n_in, "layers": layers}


def _matrices(net: Network) -> dict[str, np.ndarray]:
    """The layers' 0/1 matrices by the names of their tensors."""
    return {
        f"layers.{k}.{name}": value.astype(np.uint8)
        for k, layer in enumerate(net.layers)
        for name in MATRICES
        if isinstance(value := getattr(layer, name), np.ndarray)
    }


def _split(state: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a state and its other values."""
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise TypeError(f"state is {reprlib.repr(state)}, expected a dict with keys of type str")
    arrays, values = {}, {}
    for key, value in state.items():
        if not isinstance(value, np.ndarray):
            _require_json(f"state[{key!r}]", value)
            values[key] = value
            continue
        if value.dtype.name not in DTYPES:
            raise TypeError(
                f"state[{key!r}] has dtype {value.dtype}, expected one of {', '.join(DTYPES)}"
            )
        arrays[key] = np.array(value, value.dtype.newbyteorder("="), order="C")
    return arrays, values


def _require_json(name: str, value: Any) -> None:
    """Raise TypeError for a value that would not return from JSON as it is."""
    if isinstance(value, list | tuple):
        for k, item in enumerate(value):
            _require_json(f"{name}[{k}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name} has the key {key!r}, expected keys of type str")
            _require_json(f"{name}[{key!r}]", item)
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise TypeError(
            f"{name} is {reprlib.repr(value)} of type {type(value).__name__}, expected None, bool, "
            f"int, float, str, or lists and dicts of these; NumPy's numbers and arrays become such "
            f"by .tolist()"
        )


def load(path: str | os.PathLike[str], *, activations: Iterable[Activation] = ()) -> SavedNetwork:
    """Read a file that `save` wrote.

    Parameters
    ----------
    path : str or os.PathLike
    activations : iterable of Activation
        The user-defined activations that the network has, chosen by their names.

    Returns
    -------
    SavedNetwork
        A tuple ``net, params, state, meta``, equal to what was saved, the parameters bit by bit.

    Raises
    ------
    FileNotFoundError, OSError
        If there is no such file or it cannot be read.
    ValueError
        If the file is not one of `save`, has a newer format, is truncated or damaged, or if
        `activations` lacks a user-defined activation of the network.
    TypeError
        If `activations` holds something else.
    """
    from safetensors import SafetensorError, safe_open

    path, user_defined = os.fsdecode(path), _by_name(activations)
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path}, expected one that fastbp.save wrote")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder, expected a file that fastbp.save wrote")
    try:
        with safe_open(path, framework="np") as file:
            return _restored(file, user_defined)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file, or only a part of one ({error}); expected a file "
            f"that fastbp.save wrote"
        ) from None
    except _Unreadable as error:
        raise ValueError(f"{path}: {error}") from None


class _Unreadable(Exception):
    """A file cannot be loaded; the message says why."""


class _Damaged(_Unreadable):
    """A file does not have the content that `save` writes."""

    def __str__(self) -> str:
        return (
            f"{super().__str__()}; the file was damaged or changed after fastbp.save wrote it "
            f"(save the network again), or is of a newer fastbp (update this one)"
        )


def _by_name(activations: Any) -> dict[str, Activation]:
    by_name: dict[str, Activation] = {}
    for act in [activations] if isinstance(activations, Activation | str) else activations:
        if not isinstance(act, Activation):
            raise TypeError(f"activations holds {act!r}, expected fastbp.Activation objects")
        if by_name.setdefault(act.name, act) != act:
            raise ValueError(
                f"activations holds two that are named {act.name!r}, expected one for each name"
            )
    return by_name


def _restored(file: Any, user_defined: dict[str, Activation]) -> SavedNetwork:
    """The content of an open file; `user_defined` has activations by their names."""
    content = _content(file)
    network, stored = content["network"], content["state"]
    _check("the network", network, NETWORK)
    for k, layer in enumerate(network["layers"]):
        _check(f"layer {k}", layer, LAYER)
    if stored is not None:
        _check("the state", stored, STATE)
    _check_names("the file", file.keys(), _names(network["layers"], stored))
    net = _network(file, network, user_defined)
    return SavedNetwork(net, file.get_tensor("params"), _state(file, stored), content["meta"])


def _content(file: Any) -> dict[str, Any]:
    """The description, after a check of its version and outermost fields."""
    text = (file.metadata() or {}).get(FORMAT)
    if text is None:
        raise _Unreadable(
            f"a safetensors file of another program, without {FORMAT!r} in its metadata; expected "
            f"one that fastbp.save wrote (safetensors.numpy.load_file reads its arrays)"
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"the description is not JSON ({error})") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is int and version > VERSION:
        raise _Unreadable(
            f"written by fastbp {reprlib.repr(content.get('fastbp_version'))} in version {version} "
            f"of the format, expected at most {VERSION}; update fastbp"
        )
    _check("the description", content, CONTENT)
    if version != VERSION:
        raise _Damaged(f"format_version is {version}, expected 1 to {VERSION}")
    return content


def _check(what: str, value: Any, fields: dict[str, Any]) -> None:
    """Raise _Damaged unless `value` is a dict of exactly these fields, each of its type."""
    if type(value) is not dict:
        raise _Damaged(f"{what} is {reprlib.repr(value)}, expected a dict")
    _check_names(what, list(value), list(fields))
    for key, kind in fields.items():
        if not _is(value[key], kind):
            wanted = "a positive int" if kind is int else getattr(kind, "__name__", str(kind))
            raise _Damaged(f"{key} of {what} is {reprlib.repr(value[key])}, expected {wanted}")


def _is(value: Any, kind: Any) -> bool:
    if kind is int:  # a size or version: no bool, and none that Python refuses to print
        return type(value) is int and 0 < value < 2**63
    return isinstance(value, kind)


def _check_names(what: str, actual: list[str], expected: list[str]) -> None:
    """Raise _Damaged unless the names are the same, in any order."""
    lacking, unknown = sorted({*expected} - {*actual}), sorted({*actual} - {*expected})
    if lacking or unknown:
        faults = [f"lacks {reprlib.repr(lacking)}"] if lacking else []
        faults += [f"has {reprlib.repr(unknown)}, which it should not"] if unknown else []
        raise _Damaged(f"{what} {' and '.join(faults)}")


def _names(layers: list[Any], stored: dict[str, Any] | None) -> list[str]:
    """The names of the tensors that belong to the description."""
    names = ["params"]
    names += [f"layers.{k}.{m}" for k, v in enumerate(layers) for m in MATRICES if v[m] == TENSOR]
    if stored is not None:
        arrays, values = stored["arrays"], stored["values"]
        if not all(isinstance(name, str) for name in arrays) or len({*arrays, *values}) < len(
            arrays
        ) + len(values):
            raise _Damaged(
                f"the arrays of the state are {reprlib.repr(arrays)}, expected names that nothing "
                f"else in it has"
            )
        names += [f"state.{name}" for name in arrays]
    return names


def _network(file: Any, network: dict[str, Any], user_defined: dict[str, Activation]) -> Network:
    """The network of a description, after a check of the sizes of its tensors."""
    if network["dtype"] not in ("float32", "float64"):
        raise _Damaged(f"dtype is {network['dtype']!r}, expected 'float32' or 'float64'")
    n_in, n_params, layers = network["n_in"], 0, []
    for k, fields in enumerate(network["layers"]):
        n_out = fields["n_out"]
        n_params += n_in * n_out + n_out * fields["bias"]
        shapes = {"mask": [n_in, n_out], "bias_mask": [n_out], "trainable": [n_in, n_out]}
        options = {name: fields[name] for name in LAYER if name not in ("activation", "constant")}
        for name in MATRICES:
            if fields[name] == TENSOR:
                options[name] = _tensor(file, f"layers.{k}.{name}", shapes[name], "uint8")
        act = _activation(k, fields, user_defined)
        with _as_damage(f"layer {k}"):
            layers.append(Dense(activation=act, **options))
        n_in = n_out
    # Before the network allocates anything of this size.
    _tensor(file, "params", [n_params], network["dtype"])
    with _as_damage("the network"):
        return Network(network["n_in"], *layers, dtype=network["dtype"])


@contextlib.contextmanager
def _as_damage(what: str) -> Iterator[None]:
    """Turn ValueError and TypeError into _Damaged."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise _Damaged(f"{what}: {error}") from None


def _activation(k: int, fields: dict[str, Any], user_defined: dict[str, Activation]) -> Activation:
    """The activation of layer k, whose fields are those of LAYER."""
    name, constant = fields["activation"], fields["constant"]
    if constant is None:
        if name not in user_defined:
            raise _Unreadable(
                f"layer {k} has the activation {name!r} of the user's own, which files do not "
                f"hold; make it as fastbp.Activation({name!r}, f, df) and pass "
                f"activations=[it] to fastbp.load"
            )
        return user_defined[name]
    with _as_damage(f"layer {k}"):
        usual = activation(name)
        if usual.constant == constant:
            return usual
        if name not in PARAMETRISED:
            raise ValueError(f"constant is {constant}, but {name!r} has none, expected 0.0")
        return PARAMETRISED[name](constant)


def _tensor(file: Any, name: str, shape: list[int], dtype: str) -> np.ndarray:
    """A tensor of this shape and type."""
    stored = file.get_slice(name)
    if stored.get_shape() != shape or stored.get_dtype() != DTYPES[dtype]:
        raise _Damaged(
            f"{name} has shape {tuple(stored.get_shape())} and type {stored.get_dtype()}, expected "
            f"{tuple(shape)} and {DTYPES[dtype]}"
        )
    return file.get_tensor(name)


def _state(file: Any, stored: dict[str, Any] | None) -> dict[str, Any] | None:
    """The state, its arrays from the tensors "state.NAME"."""
    if stored is None:
        return None
    state = dict(stored["values"])
    for name in stored["arrays"]:
        kind = file.get_slice(f"state.{name}").get_dtype()
        if kind not in DTYPES.values():
            raise _Damaged(f"state.{name} has type {kind}, expected {', '.join(DTYPES.values())}")
        state[name] = file.get_tensor(f"state.{name}")
    return state
