"""The shared cases: expected values from other projects' test suites and from hand derivations."""

import base64
import json
import math
import zlib

import numpy as np
import pytest

import medvol.metrics


def decode(packed):
    raw = zlib.decompress(base64.b64decode(packed.get("z") or packed["u16z"]))
    if "u16z" in packed:
        return np.frombuffer(raw, "<u2").reshape(packed["shape"])
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    return bits[: math.prod(packed["shape"])].reshape(packed["shape"]).astype(bool)


def call(case, check):
    function = getattr(medvol.metrics, check["metric"])
    inputs = dict(case["inputs"])
    if "pred" in inputs:
        spacing = inputs.get("spacing")
        masks = (decode(inputs["pred"]), decode(inputs["ref"]))
        return function(*masks, spacing, **check.get("params", {}))
    return function(**inputs, **check.get("params", {}))


def as_floats(value):
    return [float(v) for v in value] if isinstance(value, list | tuple) else [float(value)]


def test_every_shared_case_has_its_expected_value(shared_data):
    table = json.loads((shared_data / "metric_cases.json").read_text())
    wrong, checked = [], 0
    for case in table["cases"]:
        for check in case["checks"]:
            got = call(case, check)
            if "field" in check:
                assert got[check["field"]] is getattr(got, check["field"])
                got = got[check["field"]]
            checked += 1
            want = pytest.approx(
                as_floats(check["expected"]), abs=check["atol"], rel=check["rtol"], nan_ok=True
            )
            if as_floats(got) != want:
                wrong.append((case["id"], check, got))
    assert not wrong
    assert checked == 481
