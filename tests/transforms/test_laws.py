"""Laws over random chains of spatial steps: one resample, alignment, and the way back."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.data.dataloader import DataLoader
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import decollate_batch
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import SpatialPadd
from monai.transforms.post.dictionary import Invertd
from monai.transforms.spatial.dictionary import Flipd, Orientationd, Rotate90d

from medvol.engines import CaseDataset, EpochSampler
from medvol.transforms import RandIntensityd, RandSpatiald, Spacingd

KEYS = ["image", "label"]
SHAPE = (26, 22, 18)
TILT = np.array([[0.966, -0.259, 0], [0.259, 0.966, 0], [0, 0, 1]])


def affine(code, spacing=(1.0, 1.3, 2.0), turn=np.eye(3)):
    directions = np.zeros((3, 3))
    for axis, letter in enumerate(code):
        place = "LRPAIS".index(letter)
        directions[place // 2, axis] = (-1, 1)[place % 2]
    out = np.eye(4)
    out[:3, :3] = turn @ directions * spacing
    out[:3, 3] = (12.0, -30.0, 7.0)
    return out


def world(shape, matrix):
    """World coordinates of every voxel, shape (3, X, Y, Z)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    return np.tensordot(matrix[:3, :3], index, 1) + matrix[:3, 3].reshape(3, 1, 1, 1)


def ramp(matrix, shape=SHAPE):
    """An image whose three channels are the voxel's own world coordinates."""
    return MetaTensor(torch.from_numpy(world(shape, matrix).astype("f4")), matrix)


def step(name, keys, seed):
    random = np.random.default_rng(seed)
    mode = ["nearest" if key == "label" else "bilinear" for key in keys]
    pixdim, size = random.uniform(0.8, 1.6, 3), random.integers(30, 40, 3)
    code = str(random.choice(["RAS", "LPS", "PIR", "SAL"]))
    steps = {
        "orient": lambda: Orientationd(keys, code, labels=None),
        "space": lambda: Spacingd(keys, pixdim, mode=mode, anti_alias=False),
        "flip": lambda: Flipd(keys, spatial_axis=int(random.integers(3))),
        "turn": lambda: Rotate90d(keys, k=1, spatial_axes=(0, 2)),
        "pad": lambda: SpatialPadd(keys, size.tolist(), mode="edge"),
        "move": lambda: RandSpatiald(
            keys, rotate_range=0.2, scale_range=0.1, translate_range_mm=2, padding_mode="border",
            elastic_magnitude_mm=2.5, elastic_spacing_mm=14, spatial_size=(34, 36, 40),
        ),
    }  # fmt: skip
    return steps[name]()


CHAINS = st.lists(st.sampled_from(["orient", "space", "flip", "turn", "pad"]), max_size=3)
STORAGE = st.sampled_from([affine("RAS"), affine("LPS"), affine("PIR"), affine("RAS", turn=TILT)])


@given(CHAINS, st.booleans(), st.booleans(), STORAGE, st.integers(0, 1000))
@settings(max_examples=40)
def test_inverse_of_any_chain_returns_within_half_a_voxel(names, moves, lazy, matrix, seed):
    chain = [step(name, ["image"], seed + i) for i, name in enumerate(names)]
    chain += [step("move", ["image"], seed)] if moves else []
    compose = Compose(chain, lazy=lazy).set_random_state(seed)
    image = ramp(matrix)
    there = compose({"image": image})
    back = compose.inverse(there)["image"]
    assert back.shape == image.shape
    assert torch.allclose(back.affine, image.affine, atol=1e-6)
    gap = np.linalg.inv(matrix[:3, :3]) @ (back - image).numpy().reshape(3, -1)
    middle = np.zeros(SHAPE, bool)
    middle[6:-6, 5:-5, 4:-4] = True  # what the move left inside its output
    assert np.abs(gap[:, middle.ravel()]).max() < 0.5


@given(CHAINS, STORAGE, st.integers(0, 1000))
@settings(max_examples=25)
def test_a_chain_reads_every_voxel_where_its_affine_states(names, matrix, seed):
    assume(names.count("space") < 2)  # the second would mix in the repeated edge of the first
    compose = Compose([step(name, ["image"], seed + i) for i, name in enumerate(names)])
    out = compose({"image": ramp(matrix)})["image"]
    want = world(out.shape[1:], out.affine.numpy())
    low, high = (f(ramp(matrix).numpy().reshape(3, -1), axis=1) for f in (np.min, np.max))
    inside = ((low + 0.01 < want.T) & (high - 0.01 > want.T)).all(-1).T
    turned = not np.allclose(np.abs(matrix[:3, :3]).max(0), np.linalg.norm(matrix[:3, :3], axis=0))
    if turned:  # a tilted grid does not fill its bounding box
        index = np.linalg.inv(matrix) @ np.vstack([want.reshape(3, -1), np.ones(want[0].size)])
        bound = np.asarray(SHAPE).reshape(3, 1) - 1.01
        inside = ((index[:3] > 0.01) & (index[:3] < bound)).all(0).reshape(want.shape[1:])
    assert np.abs(out.numpy() - want)[:, inside].max() < 2e-3


@given(CHAINS, STORAGE, st.integers(0, 1000), st.booleans())
@settings(max_examples=25)
def test_image_and_label_stay_aligned(names, matrix, seed, lazy):
    random = np.random.default_rng(seed)
    label = torch.from_numpy(np.kron(random.integers(0, 4, (1, 7, 6, 5)), np.ones((1, 4, 4, 4))))
    label = label[:, : SHAPE[0], : SHAPE[1], : SHAPE[2]].to(torch.uint8)
    data = {"image": MetaTensor(label.float(), matrix), "label": MetaTensor(label, matrix)}
    chain = [step(n, KEYS, seed + i) for i, n in enumerate(names)] + [step("move", KEYS, seed)]
    out = Compose(chain, lazy=lazy).set_random_state(seed)(data)
    image, moved = out["image"].numpy(), out["label"].numpy()
    assert set(np.unique(moved)) <= set(np.unique(label))
    flat = np.ones(moved.shape, bool)  # away from borders both must read the same value
    for axis in (1, 2, 3):
        for shift in (-1, 1):
            flat &= np.roll(moved, shift, axis) == moved
    flat[:, [0, -1]] = flat[:, :, [0, -1]] = flat[..., [0, -1]] = False
    assert flat.mean() > 0.1
    agree = np.abs(image - moved)[flat] < 0.5
    assert agree.mean() > 0.97


def test_a_lazy_chain_resamples_once_and_is_sharper_than_two_resamples():
    random = np.random.default_rng(0)
    noise = torch.from_numpy(random.normal(size=(1, *SHAPE)).astype("f4"))
    image = MetaTensor(noise, affine("LPS"))
    plain, lazy = (
        Compose([
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", 0.9, anti_alias=False),
            RandSpatiald("image", spatial_size=(24, 24, 24)),
        ], lazy=flag).set_random_state(3)({"image": image})["image"]
        for flag in (False, True)
    )  # fmt: skip
    assert torch.allclose(plain.affine, lazy.affine, atol=1e-9)
    assert lazy.std() > 1.15 * plain.std()
    correlation = np.corrcoef(plain.numpy().ravel(), lazy.numpy().ravel())[0, 1]
    assert correlation > 0.85
    assert not lazy.pending_operations
    assert [op["class"] for op in lazy.applied_operations][-2:] == ["Spacingd", "RandSpatiald"]


def test_monai_finishes_a_lazy_spacing_with_our_mode():
    label = MetaTensor(torch.randint(0, 5, (1, *SHAPE)).to(torch.uint8), affine("RAS"))
    out = Compose([Spacingd("x", 0.7, mode="nearest")], lazy=True)({"x": label})["x"]
    assert set(out.unique().tolist()) <= {0, 1, 2, 3, 4}


def test_predictions_return_to_the_source_grid_through_a_batch():
    chain = Compose([
        Orientationd("image", "RAS", labels=None),
        Spacingd("image", 1.1),
        RandSpatiald("image", prob=0, spatial_size=(40, 40, 40)),
    ])  # fmt: skip
    sources = [{"image": ramp(affine("LPS", spacing=(1, 1, s)))} for s in (1.5, 2.0)]
    loader = DataLoader([chain(source) for source in sources], batch_size=2)
    batch = next(iter(loader))
    batch["pred"] = batch["image"] * 2
    invert = Invertd("pred", chain, orig_keys="image", nearest_interp=False, to_tensor=True)
    for source, item in zip(sources, decollate_batch(batch), strict=True):
        pred = invert(item)["pred"]
        assert pred.shape == source["image"].shape
        assert torch.allclose(pred.affine, source["image"].affine, atol=1e-6)
        gap = (pred / 2 - source["image"])[:, 2:-2, 2:-2, 2:-2].abs().max()
        assert gap < 0.05


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_samples(workers):
    cases = [
        {"image": MetaTensor(torch.full((1, 12, 10, 8), float(i)).cumsum(1))} for i in range(5)
    ]

    def epochs(count):
        moves = Compose([
            RandSpatiald("image", elastic_magnitude_mm=1, elastic_spacing_mm=6),
            RandIntensityd("image", effects={"noise": (0.8, 0.1, 1.0)}),
        ])  # fmt: skip
        dataset = CaseDataset(cases, Compose([]), moves, seed=3)
        loader = DataLoader(
            dataset, sampler=EpochSampler(dataset, shuffle=False), num_workers=count
        )
        return [np.concatenate([np.asarray(b["image"]) for b in loader]) for _ in range(2)]

    alone = epochs(0)
    assert np.array_equal(alone, epochs(workers))
    assert not np.array_equal(alone[0], alone[1])
