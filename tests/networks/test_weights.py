import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medvol.core import UnsafeFileError, WeightsError
from medvol.networks import apply_weights, load_weights


class Marker:
    """Unpickling this creates a file: the proof that code ran."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def small_network():
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Linear(4, 2))


def saved(content, **kwargs):
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


def write_safetensors(path, tensors):
    table, blobs, at = {}, [], 0
    for name, value in tensors.items():
        blob = value.numpy().tobytes()
        table[name] = {"dtype": "F32", "shape": list(value.shape),
                       "data_offsets": [at, at + len(blob)]}  # fmt: skip
        blobs.append(blob)
        at += len(blob)
    header = json.dumps(table | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"".join(blobs))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "network"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_that_was_saved_is_the_state_that_is_loaded(tmp_path, wrap, prefix):
    state = {prefix + name: value for name, value in small_network().state_dict().items()}
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "model.pt")
    loaded = load_weights(tmp_path / "model.pt")
    assert list(loaded) == [name.removeprefix(prefix) for name in state]
    assert all(torch.equal(loaded[n.removeprefix(prefix)], v) for n, v in state.items())


def test_safetensors_holds_the_same_state(tmp_path):
    state = {"a": torch.randn(2, 3), "b.c": torch.randn(()), "empty": torch.zeros(0, 4)}
    write_safetensors(tmp_path / "w.safetensors", state)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def faulty_files(tmp_path):
    state = small_network().state_dict()
    whole = saved(state)
    flipped = bytearray(whole)
    at = whole.find(state["0.weight"].numpy().tobytes())
    flipped[at + 7] ^= 0x01
    nan, inf = (dict(state, **{"2.bias": torch.tensor([1.0, x])}) for x in (np.nan, np.inf))
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), script)
    compressed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(compressed, "w") as sink:
        for info in source.infolist():
            sink.writestr(info.filename, source.read(info), zipfile.ZIP_DEFLATED)
    trap = Marker(tmp_path / "code_ran")
    return {
        "pickled code": (saved({"w": trap}), UnsafeFileError, "could run code"),
        "old pickled code": (
            saved({"w": trap}, _use_new_zipfile_serialization=False), UnsafeFileError, "run code"),
        "plain pickle": (pickle.dumps({"w": trap}), UnsafeFileError, "could run code"),
        "whole network": (saved(small_network()), UnsafeFileError, "Sequential"),
        "numpy scalar": (saved({"w": np.float64(1)}), UnsafeFileError, "numpy"),
        "torchscript": (script.getvalue(), UnsafeFileError, "TorchScript"),
        "compressed": (compressed.getvalue(), UnsafeFileError, "compressed"),
        "expanded": (saved({"w": torch.zeros(1).expand(10**12)}), UnsafeFileError, "more values"),
        "nan": (saved(nan), WeightsError, r"2\.bias holds NaN"),
        "infinite": (saved(inf), WeightsError, r"2\.bias holds NaN or infinity"),
        "half": (whole[: len(whole) // 2], WeightsError, "not a whole checkpoint"),
        "no end": (whole[:-20], WeightsError, "not a whole checkpoint"),
        "old and cut": (
            saved(state, _use_new_zipfile_serialization=False)[:-8], WeightsError, "not a whole"),
        "flipped bit": (bytes(flipped), WeightsError, "damaged"),
        "empty file": (b"", WeightsError, "not a whole checkpoint"),
        "empty dict": (saved({}), WeightsError, "no weights"),
        "empty nested dict": (saved({"state_dict": {}}), WeightsError, "no weights"),
        "list": (saved([torch.ones(1)]), WeightsError, "list"),
        "number": (saved({"epoch": 3}), WeightsError, "'epoch' is int"),
        "meta": (saved({"w": torch.ones(2, device="meta")}), WeightsError, "not a dense"),
        "page": (b"<html>404</html>", WeightsError, "not a torch checkpoint"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\n", WeightsError, "git lfs pull"),
        "zip of text": (_zip_of_text(), WeightsError, "not a whole checkpoint"),
    }  # fmt: skip


def _zip_of_text():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


def test_every_faulty_file_is_one_line_that_names_it_and_no_code_runs(tmp_path):
    cases = faulty_files(tmp_path)
    assert len(cases) == 23
    for name, (content, error, words) in cases.items():
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        with pytest.raises(error, match=words) as raised:
            load_weights(path)
        assert "\n" not in str(raised.value), name
        assert "model.pt" in str(raised.value), name
    assert not (tmp_path / "code_ran").exists()


def test_missing_file_is_one_line_that_names_it(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pt: no such weights file"):
        load_weights(tmp_path / "absent.pt")


@given(cut=st.floats(0, 0.999))
def test_no_truncated_file_loads(tmp_path, cut):
    whole = saved(small_network().state_dict())
    (tmp_path / "cut.pt").write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(WeightsError, match=r"cut\.pt"):
        load_weights(tmp_path / "cut.pt")


@given(cut=st.floats(0, 0.999))
def test_no_truncated_safetensors_loads(tmp_path, cut):
    write_safetensors(tmp_path / "w.safetensors", {"a": torch.ones(3, 3), "b": torch.ones(2)})
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_weights(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "EVIL", "shape": [1], "data_offsets": [0, 4]},
        [1, 2],
    ],
)
def test_safetensors_that_lies_about_its_tensors_is_rejected(tmp_path, row):
    header = json.dumps({"a": row}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0" * 4
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_weights(tmp_path / "w.safetensors")


def test_applied_weights_give_the_source_networks_output():
    torch.manual_seed(0)
    source, target = nn.Linear(4, 2), nn.Linear(4, 2)
    report = apply_weights(target, source.state_dict())
    x = torch.randn(3, 4)
    assert torch.equal(source(x), target(x))
    assert report.loaded == ("weight", "bias")
    assert report.share == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.weight"), r"1 missing \(0\.weight\)"),
        (lambda s: s.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (lambda s: s.update({"2.bias": torch.ones(5)}), r"2\.bias \(5,\) against \(2,\)"),
        (lambda s: s.clear(), "8 missing"),
    ],
)
def test_weights_that_do_not_fit_are_rejected_and_change_nothing(change, words):
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: torch.full_like(v, 7) for name, v in network.state_dict().items()}
    change(state)
    with pytest.raises(WeightsError, match=words):
        apply_weights(network, state)
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())


def test_allowed_head_keeps_its_own_values_and_is_reported():
    network, source = small_network(), small_network()
    head = network[2].weight.clone()
    state = source.state_dict() | {"2.weight": torch.ones(9, 4), "2.bias": torch.ones(9)}
    report = apply_weights(network, state, allow_missing=["2.*"])
    assert report.skipped == ("2.weight", "2.bias")
    assert torch.equal(network[2].weight, head)
    assert torch.equal(network[0].weight, source[0].weight)


def test_files_without_batch_counters_are_complete():
    network = small_network()
    state = {n: v for n, v in network.state_dict().items() if "num_batches" not in n}
    assert apply_weights(network, state).skipped == ("1.num_batches_tracked",)


def test_half_precision_file_fills_a_single_precision_network():
    network = nn.Linear(4, 2)
    apply_weights(network, {n: torch.ones_like(v).half() for n, v in network.state_dict().items()})
    assert network.weight.dtype == torch.float32
    assert bool((network.weight == 1).all())


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(("table", "n_bytes", "fault"), [
    ({"a": TENSOR, "b": {**TENSOR, "data_offsets": [4, 12]}}, 12, "overlap"),
    ({"a": {**TENSOR, "data_offsets": [8, 16]}}, 16, "hole"),
    ({"a": TENSOR}, 16, "16 bytes of tensors"),
    ({"a": {**TENSOR, "shape": "2"}}, 8, "whole number"),
    ({"a": {**TENSOR, "shape": [2.0]}}, 8, "whole number"),
    ({"a": {**TENSOR, "shape": [-2]}}, 8, "does not fit"),
    ({"a": {**TENSOR, "dtype": "X9"}}, 8, "X9"),
    ('{"a": 1, "a": 2}', 0, "twice"), ("[" * 20_000, 0, "recursion"), ("[1]", 0, "not a whole"),
])  # fmt: skip
def test_safetensors_that_breaks_its_format_is_rejected(tmp_path, table, n_bytes, fault):
    head = (table if isinstance(table, str) else json.dumps(table)).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(n_bytes))
    with pytest.raises(WeightsError, match=rf"odd\.safetensors.*{fault}"):
        load_weights(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_runs_a_command_is_named_as_such(tmp_path, is_zip):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'PWNED'}",)

    torch.save({"a": Evil()}, tmp_path / "m.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UnsafeFileError, match=r"m\.pt: needs posix\.system.*could run code"):
        load_weights(tmp_path / "m.pt")
    assert not (tmp_path / "PWNED").exists()
