# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Crops to train on: what decides them, and whether their truth is true."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_list import SceneList
from toy_training import boxes_of

from lsst.meas.maskrcnn.images.normalize import LuptonSettings, ZScoreSettings, normalize
from lsst.meas.maskrcnn.network.psf import PSF_UNIT
from lsst.meas.maskrcnn.train import dataset as dataset_module
from lsst.meas.maskrcnn.train.augment import AugmentSettings
from lsst.meas.maskrcnn.train.dataset import BatchSource, CropSettings, CropSource
from lsst.meas.maskrcnn.train.scene_cuts import split_scene
from lsst.meas.maskrcnn.train.scene_sources import SceneFiles, SceneSource
from lsst.meas.maskrcnn.train.targets import make_target
from lsst.meas.maskrcnn.train.training_scene import TrainingScene, masked_boxes, read_scene, write_scene

SHAPE = (150, 210)

CHANGED = AugmentSettings(
    flux_probability=1.0,
    flux_range=(0.8, 1.25),
    depth_probability=1.0,
    depth_range=(0.5, 2.0),
    noise_probability=0.1,
    blur_probability=0.25,
)
"""All that changes pixels."""

QUIET = AugmentSettings(
    turns=False, flux_probability=1.0, flux_range=(1.0 - 1e-9, 1.0), band_flux_scatter=0.0
)
"""Leaves the pixels as they are, but is not known to."""


def make_scene(
    positions=((30, 40), (75, 100), (120, 170), (60, 160), (110, 50)),
    seed: int = 0,
    peak: float = 300.0,
    **changes,
) -> TrainingScene:
    """Round stars and long galaxies in two bands, on a sky of sigma 2 and 3."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    light = np.zeros((2, *SHAPE))
    masks, origins, labels, peaks = [], [], [], []
    for number, (y0, x0) in enumerate(positions):
        star = number % 2 == 0
        profile = np.exp(
            -0.5 * (((y - y0) / (2.0 if star else 3.0)) ** 2 + ((x - x0) / (2.0 if star else 7.0)) ** 2)
        )
        flux = peak * np.array([1.0, 1.5 if star else 0.5])
        light += flux[:, None, None] * profile
        mask = profile > (0.005 if star else 0.08)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        masks.append(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        origins.append((rows[0], columns[0]))
        labels.append(1 if star else 2)
        peaks.append(flux)
    sky = np.array([4.0, 9.0])[:, None, None]
    values = {
        "noiseless": light.astype(np.float32),
        "variance": (sky + light / 10.0).astype(np.float32),
        "valid": np.ones(SHAPE, bool),
        "labels": np.array(labels, np.int64),
        "peak_flux": np.array(peaks, np.float32).reshape(-1, 2),
        "origins": np.array(origins, np.int32).reshape(-1, 2),
        "masks": masks,
        "psf_fwhm": np.array([4.7, 4.7], np.float32),
        "positions": np.array(positions, np.float32).reshape(-1, 2),
        "mask_levels": (0.005, 0.08),
    }
    return TrainingScene(**{**values, **changes})


def make_source(scenes=None, **changes) -> CropSource:
    settings = changes.pop("settings", CropSettings(size=64))
    if not isinstance(scenes, SceneSource):
        scenes = SceneList(scenes or [make_scene()])
    return CropSource(scenes, LuptonSettings(), settings, **{"seed": 1, **changes})


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and all(
        torch.equal(x[key], y[key]) for x, y in zip(a[1], b[1], strict=True) for key in x
    )


# ---- scenes


def test_scenes_are_read_as_written(tmp_path: Path) -> None:
    scene = make_scene()
    ignore = np.array([True, False, False, True, False])
    image = (scene.noiseless + np.random.default_rng(1).normal(0, 2, scene.noiseless.shape)).astype(
        np.float32
    )
    scene = dataclasses.replace(scene, image=image, ignore=ignore)
    scene.valid[10:14, 30:70] = False
    write_scene(scene, tmp_path / "a.npz")
    back = read_scene(tmp_path / "a.npz")
    # Half precision costs a hundredth of the noise on the sky, and less of a source than its noise.
    for name in ("noiseless", "image"):
        np.testing.assert_allclose(getattr(back, name), getattr(scene, name), rtol=6e-4, atol=0.01)
    np.testing.assert_allclose(back.variance, scene.variance, rtol=1e-3)
    for name in ("valid", "labels", "peak_flux", "origins", "psf_fwhm", "ignore", "positions"):
        np.testing.assert_array_equal(getattr(back, name), getattr(scene, name))
    assert (back.noisy, back.mask_levels) == (True, (0.005, 0.08))
    for one, other in zip(back.masks, scene.masks, strict=True):
        np.testing.assert_array_equal(one, other)
    # About half of what it would be in single precision.
    assert (tmp_path / "a.npz").stat().st_size < 0.6 * (scene.noiseless.nbytes * 3)


@pytest.mark.parametrize("level", [5e3, 1e7])
def test_precision_is_kept_where_it_is_needed(tmp_path: Path, level: float) -> None:
    """On a sky that is still there, and beyond the range of half precision."""
    scene = make_scene()
    scene.noiseless[:] += level
    write_scene(scene, tmp_path / "a.npz")
    np.testing.assert_array_equal(read_scene(tmp_path / "a.npz").noiseless, scene.noiseless)


def test_a_scene_without_sources_or_extras(tmp_path: Path) -> None:
    scene = dataclasses.replace(make_scene(()), psf_fwhm=None, positions=None, mask_levels=None, noisy=False)
    write_scene(scene, tmp_path / "a.npz")
    back = read_scene(tmp_path / "a.npz")
    assert back.masks == []
    assert not back.noisy
    assert back.psf_fwhm is back.positions is back.mask_levels is back.image is back.ignore is None
    ((image,), (target,)) = make_source([back]).crops(range(1))
    assert target["masks"].shape == (0, *image.shape[1:])
    assert target["boxes"].shape == target["ignore_boxes"].shape == (0, 4)


def test_pieces_hold_each_pixel_and_each_source_once() -> None:
    # The second source lies on the seam between two rows of pieces, the last one on that between columns.
    scene = make_scene(positions=((30, 40), (73, 100), (120, 170), (40, 104)))
    pieces = split_scene(scene, 110)
    assert [piece.valid.shape for piece in pieces] == [(75, 105)] * 4
    top, bottom = (np.concatenate([a.variance, b.variance], axis=2) for a, b in (pieces[:2], pieces[2:]))
    np.testing.assert_array_equal(np.concatenate([top, bottom], axis=1), scene.variance)
    wanted = sorted(
        (*(piece.positions[k] + (75 * (number // 2), 105 * (number % 2))), piece.labels[k])
        for number, piece in enumerate(pieces)
        for k in np.flatnonzero(~piece.ignore)
    )
    assert wanted == sorted((*position, label) for position, label in zip(scene.positions, scene.labels))
    # What lies on the other side is not held against the network.
    assert sum(np.count_nonzero(piece.ignore) for piece in pieces) >= 2
    areas = sum(np.count_nonzero(mask) for piece in pieces for mask in piece.masks)
    assert areas == sum(np.count_nonzero(mask) for mask in scene.masks)
    for piece in pieces:
        for mask, origin in zip(piece.masks, piece.origins, strict=True):
            assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()
            assert (origin >= 0).all() and (origin + mask.shape <= piece.valid.shape).all()
    assert split_scene(scene, 210) == [scene]
    with pytest.raises(ValueError, match="size"):
        split_scene(scene, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noiseless": None}, "needs an image"),
        ({"noisy": False, "image": np.zeros((2, *SHAPE), np.float32)}, "not noisy"),
        ({"valid": np.ones((5, 5), bool)}, r"valid has shape \(5, 5\)"),
        ({"ignore": np.zeros(2, bool)}, "ignore has shape"),
        ({"masks": []}, "0 masks for 5 labels"),
    ],
)
def test_scenes_are_checked(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_scene(**changes)


def test_masked_boxes_hold_the_masked_pixels_once() -> None:
    rng = np.random.default_rng(4)
    valid = rng.random((40, 70)) > 0.1
    valid[10:25, 20:60] = False
    valid[:, 66:] = False
    count = np.zeros(valid.shape, int)
    boxes = masked_boxes(valid)
    for y0, x0, y1, x1 in boxes:
        count[y0:y1, x0:x1] += 1
    np.testing.assert_array_equal(count, ~valid)
    assert masked_boxes(np.ones((4, 5), bool)).shape == (0, 4)
    np.testing.assert_array_equal(masked_boxes(np.zeros((4, 5), bool)), [[0, 0, 4, 5]])


# ---- what decides a crop


@pytest.mark.parametrize("augment", [AugmentSettings(), CHANGED])
def test_a_crop_depends_on_seed_and_number_only(augment: AugmentSettings) -> None:
    scenes = [make_scene(), make_scene(((50, 50), (90, 150)))]
    source = make_source(scenes, augment=augment, psf_channels=True)
    assert isinstance(source, BatchSource)
    batch = source.crops(range(12, 16))
    # Alone, in another order, from a source that keeps nothing, and from a copy such as a process gets.
    uncached = CropSettings(size=64, cache_mb=0.0)
    fresh = make_source(scenes, augment=augment, psf_channels=True, settings=uncached)
    for k in (2, 0, 3, 1):
        assert same(fresh.crops([12 + k]), ([batch[0][k]], [batch[1][k]]))
    assert same(copy.deepcopy(source).crops(range(12, 16)), batch)
    other = make_source(scenes, augment=augment, psf_channels=True, seed=2).crops(range(12, 16))
    assert not any(torch.equal(a, b) for a, b in zip(batch[0], other[0], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(batch[0], source.crops(range(16, 20))[0], strict=True))


def test_threads_get_the_same() -> None:
    source = make_source(augment=CHANGED, settings=CropSettings(size=64, cache_mb=1.0))
    expected = source.crops(range(12))
    found = {}

    def work(k: int) -> None:
        found[k] = source.crops([k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(12):
        assert same(found[k], ([expected[0][k]], [expected[1][k]]))


def test_every_scene_comes_once_in_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "_SCENES_AT_ONCE", 3)
    scenes = [make_scene(((40, 40),) * (k + 1)) for k in range(7)]
    settings = CropSettings(size=512, crops_per_scene=2)
    source = make_source(scenes, settings=settings)
    assert source.n_images == 14
    counts = np.array([len(target["labels"]) for target in source.crops(range(42))[1]]).reshape(3, 14)
    np.testing.assert_array_equal(np.sort(counts, axis=1), [np.repeat(np.arange(1, 8), 2)] * 3)
    assert len({tuple(epoch) for epoch in counts.tolist()}) > 1
    for epoch in counts:
        # Three scenes in turn, twice, and the last one alone.
        for block in (epoch[:6], epoch[6:12], epoch[12:].repeat(3)):
            np.testing.assert_array_equal(block[:3], block[3:])
        assert len(set(epoch[:3])) == len(set(epoch[6:9])) == 3


def test_images_are_normalised_once_if_nothing_changes_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(name, flux, *args, **kwargs):
        calls.append(flux.shape)
        return normalize(name, flux, *args, **kwargs)

    monkeypatch.setattr(dataset_module, "normalize", counted)
    source = make_source([make_scene(), make_scene(((20, 20),))])
    source.crops(range(40))
    assert calls == [(2, *SHAPE)] * 2


def test_describe() -> None:
    """It is JSON, and says what differs."""
    source = make_source()
    plain = json.loads(json.dumps(source.describe()))
    assert plain["crops"]["size"] == 64
    assert plain["scenes"]["count"] == 1
    augmented = make_source(augment=AugmentSettings.published()).describe()
    assert {key for key in plain if plain[key] != json.loads(json.dumps(augmented))[key]} == {"augment"}
    assert make_source([make_scene(((20, 20),))]).describe()["scenes"] != plain["scenes"]


def test_scenes_are_identified_by_their_contents(tmp_path: Path) -> None:
    """Other pixels of the same shape are other scenes; files of the same contents are the same."""
    scene = make_scene()
    folders = [tmp_path / name for name in ("one", "same", "other", "mask")]
    for folder in folders:
        folder.mkdir()
    write_scene(scene, folders[0] / "a.npz")
    write_scene(scene, folders[1] / "a.npz")
    scene.noiseless[0, 3, 4] += 10.0
    write_scene(scene, folders[2] / "a.npz")
    scene.noiseless[0, 3, 4] -= 10.0
    scene.masks[0] = ~scene.masks[0]
    write_scene(scene, folders[3] / "a.npz")
    sizes = {(folder / "a.npz").stat().st_size for folder in folders}
    assert len(sizes) == 1
    for make in (SceneFiles, lambda paths: SceneList([read_scene(path) for path in paths])):
        one, same_one, other, mask = (make([folder / "a.npz"]).describe() for folder in folders)
        assert one == same_one
        assert len({item["digest"] for item in (one, other, mask)}) == 3


# ---- pixels


def test_unaugmented_crops_are_cut_from_the_normalised_image() -> None:
    scene = make_scene(noisy=False)
    settings = CropSettings(size=64)
    source = make_source([scene], settings=settings, augment=AugmentSettings(turns=False))
    whole = normalize(LuptonSettings(), scene.noiseless, scene.variance, scene.valid).image
    windows = np.lib.stride_tricks.sliding_window_view(whole[0], (64, 64))
    for image in source.crops(range(4))[0]:
        rows, columns = np.nonzero(
            np.isclose(windows[:, :, 0, 0], float(image[0, 0, 0]), rtol=1e-3, atol=1e-5)
        )
        found = [
            (y, x)
            for y, x in zip(rows, columns, strict=True)
            if np.allclose(whole[:, y : y + 64, x : x + 64], image.numpy(), rtol=1e-3, atol=1e-5)
        ]
        assert len(found) == 1


def test_an_image_of_its_own_is_taken_as_it_is() -> None:
    scene = make_scene()
    image = (scene.noiseless + np.random.default_rng(1).normal(0, 2, scene.noiseless.shape)).astype(
        np.float32
    )
    settings = CropSettings(size=512)
    plain = AugmentSettings(turns=False)
    for noiseless in (scene.noiseless, None):
        kept = dataclasses.replace(scene, image=image, noiseless=noiseless)
        ((crop,), _) = make_source([kept], settings=settings, augment=plain).crops(range(1))
        expected = normalize(LuptonSettings(), image, scene.variance, scene.valid).image
        np.testing.assert_allclose(crop.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_parts_are_normalised_as_the_whole_would_be() -> None:
    """Up to the error of the sky level that comes from a sample."""
    scene = make_scene(noisy=False)
    expected = normalize(LuptonSettings(), scene.noiseless, scene.variance, scene.valid).image
    ((crop,), _) = make_source([scene], settings=CropSettings(size=512), augment=QUIET).crops(range(1))
    np.testing.assert_allclose(crop.numpy(), expected, rtol=0.01, atol=2e-3)
    # Pixels that are not usable are zero there as well.
    scene.valid[40:50, 60:90] = False
    ((crop,), _) = make_source([scene], settings=CropSettings(size=512), augment=QUIET).crops(range(1))
    assert not crop[:, 40:50, 60:90].any()
    assert crop[:, 30:40, 60:90].any()


@pytest.mark.parametrize(
    "how",
    [
        ZScoreSettings(),
        LuptonSettings(background="local"),
        LuptonSettings(scale_unit="percentile", scale=99.9),
        LuptonSettings(noise_source="pixels"),
    ],
)
def test_other_normalisations_use_the_whole_scene(how: LuptonSettings | ZScoreSettings) -> None:
    scene = make_scene(noisy=False)
    expected = normalize(how, scene.noiseless.copy(), scene.variance, scene.valid).image
    source = CropSource(SceneList([scene]), how, CropSettings(size=64), 1, augment=QUIET)
    windows = np.lib.stride_tricks.sliding_window_view(expected, (64, 64), axis=(1, 2))
    for image in source.crops([0, 1])[0]:
        assert (windows == image.numpy()[:, None, None]).all(axis=(0, 3, 4)).sum() == 1


def test_noise_differs_from_crop_to_crop_and_its_depth_from_group_to_group() -> None:
    augment = AugmentSettings(turns=False, depth_probability=1.0, depth_range=(0.2, 5.0))
    source = make_source(settings=CropSettings(size=512), augment=augment)
    images = source.crops(range(8))[0]
    for one, other in zip(images[::2], images[1::2], strict=True):
        assert not torch.equal(one, other)
    # The stretch goes with the noise: its scatter is the same at any depth, and sources stand out the less.
    scatter = [float(np.subtract(*np.quantile(image[0], [0.75, 0.25]))) for image in images]
    np.testing.assert_allclose(scatter, scatter[0], rtol=0.05)
    peaks = [float(image[0].max()) for image in images]
    np.testing.assert_allclose(peaks[::2], peaks[1::2], rtol=0.2)
    assert max(peaks) > 1.3 * min(peaks)


def test_the_network_gets_the_width_of_the_blurred_psf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "_PSF_KNOWN", 1.0)
    monkeypatch.setattr(dataset_module, "_PSF_JITTER", 0.0)
    augment = AugmentSettings(blur_probability=1.0, blur_range=(1.5, 1.5))
    settings = CropSettings(size=64)
    ((image,), _) = make_source(settings=settings, augment=augment, psf_channels=True).crops(range(1))
    width = float(image[2, 0, 0]) * PSF_UNIT
    np.testing.assert_allclose(width, np.sqrt(4.7**2 + (2.3548 * 1.5) ** 2), rtol=0.005)


# ---- truth


@pytest.mark.parametrize("augment", [AugmentSettings(), QUIET, CHANGED])
def test_truth_lies_on_its_sources(augment: AugmentSettings) -> None:
    """Turned, flipped and cut as the pixels are: the light is where the masks are."""
    source = make_source(settings=CropSettings(size=100), augment=augment)
    seen = 0
    for image, target in zip(*source.crops(range(24)), strict=True):
        masks = target["masks"].numpy()
        assert masks.shape[1:] == image.shape[1:]
        assert masks.dtype == np.uint8
        np.testing.assert_array_equal(target["boxes"], boxes_of(masks))
        assert target["boxes"].dtype == target["ignore_boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        elsewhere = image[0].numpy()[~masks.any(axis=0)]
        for mask, label in zip(masks, target["labels"].tolist(), strict=True):
            light = image[0].numpy()[mask == 1]
            assert light.mean() > np.median(elsewhere) + 0.2
            if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
                continue
            rows, columns = mask.any(axis=1).sum(), mask.any(axis=0).sum()
            assert (max(rows, columns) > 1.5 * min(rows, columns)) == (label == 2)
            seen += 1
    assert seen > 10


def test_crops_are_turned_and_flipped_in_all_ways() -> None:
    source = make_source([make_scene(noisy=False)], settings=CropSettings(size=512))
    still = dict(settings=CropSettings(size=512), augment=AugmentSettings(turns=False))
    plain = make_source([make_scene(noisy=False)], **still).crops(range(1))[0][0].numpy()
    kinds = {
        (k, flip): np.rot90(plain, k, (1, 2))[..., :: -1 if flip else 1] for k in range(4) for flip in (0, 1)
    }
    seen = set()
    for image in source.crops(range(60))[0]:
        found = [key for key, kind in kinds.items() if np.array_equal(kind, image.numpy())]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 8


def cut_target(position: tuple[float, float], shape: tuple[int, int] = (20, 10), **changes):
    """Target of the crop of rows 0 to 63 of a narrow scene with one source."""
    valid = np.ones((64, 64), bool)
    y0, x0 = (int(position[0] - shape[0] / 2), int(position[1] - shape[1] / 2))
    mask = np.ones(shape, bool)[max(-y0, 0) :, max(-x0, 0) :]
    values = {
        "noiseless": np.zeros((1, 64, 64), np.float32),
        "variance": np.ones((1, 64, 64), np.float32),
        "valid": valid,
        "labels": np.array([1]),
        "peak_flux": np.array([[100.0]], np.float32),
        "origins": np.array([[max(y0, 0), max(x0, 0)]], np.int32),
        "masks": [mask],
        "positions": np.array([position], np.float32),
    }
    settings = changes.pop("settings", CropSettings(size=32, min_peak_snr=5.0))
    scene = TrainingScene(**{**values, **changes})
    source = CropSource(
        SceneList([scene]), LuptonSettings(), settings, 1, augment=AugmentSettings(turns=False)
    )
    realized = source._realize(0)
    return make_target(
        realized.truth, realized.wanted, realized.growth, (0, 0, 32, 32), 0, False, settings.min_area
    )


def test_sources_at_the_edge_of_a_crop() -> None:
    """Kept if their position or enough of the mask is inside, else ignored."""
    whole = cut_target((12.0, 15.0))
    np.testing.assert_array_equal(whole["boxes"], [[10, 2, 20, 22]])
    assert len(whole["ignore_boxes"]) == 0
    # The position is just inside, and just outside.
    kept = cut_target((31.0, 15.0))
    np.testing.assert_array_equal(kept["boxes"], [[10, 21, 20, 32]])
    # 7 of 20 rows are inside, then 5.
    kept = cut_target((35.0, 15.0))
    np.testing.assert_array_equal(kept["boxes"], [[10, 25, 20, 32]])
    left_out = cut_target((37.0, 15.0))
    assert len(left_out["boxes"]) == len(left_out["masks"]) == 0
    np.testing.assert_array_equal(left_out["ignore_boxes"], [[10, 27, 20, 32]])
    # Beyond the crop there is nothing.
    assert len(cut_target((50.0, 15.0))["ignore_boxes"]) == 0
    # A few pixels are too few, whatever the share.
    few = cut_target((31.4, 31.4), shape=(4, 4))
    assert len(few["boxes"]) == 0
    assert len(few["ignore_boxes"]) == 1


def test_what_is_ignored() -> None:
    """Faint, flagged and masked, neither to be found nor to be called wrong."""
    for changes in (
        {"peak_flux": np.array([[4.9]], np.float32)},
        {"ignore": np.array([True])},
        {"settings": CropSettings(size=32, min_area=201)},
    ):
        target = cut_target((12.0, 15.0), **changes)
        assert len(target["boxes"]) == 0
        np.testing.assert_array_equal(target["ignore_boxes"], [[10, 2, 20, 22]])
    # Without noise nothing is faint.
    target = cut_target((12.0, 15.0), peak_flux=np.array([[4.9]], np.float32), noisy=False)
    assert len(target["boxes"]) == 1
    valid = np.ones((64, 64), bool)
    valid[:, 30:40] = False
    target = cut_target((12.0, 15.0), valid=valid)
    np.testing.assert_array_equal(target["ignore_boxes"], [[30, 0, 32, 32]])
    assert len(target["boxes"]) == 1


def test_the_limit_follows_the_noise() -> None:
    """A source of peak S/N 10 is asked for at half of that noise, not at three times it."""
    scene = make_scene(((70, 100),), peak=20.0)  # a star: peak 20 on sigma 2, 30 on 3
    for depth, expected in ((0.5, 1), (1.9, 1), (2.1, 0), (3.0, 0)):
        augment = AugmentSettings(depth_probability=1.0, depth_range=(depth, depth))
        _, (target,) = make_source(
            [scene], settings=CropSettings(size=512, min_peak_snr=5.0), augment=augment
        ).crops(range(1))
        assert len(target["boxes"]) == expected
        assert len(target["ignore_boxes"]) == 1 - expected
    # Fainter by half, twice the limit.
    augment = AugmentSettings(flux_probability=1.0, flux_range=(0.4, 0.4), band_flux_scatter=0.0)
    _, (target,) = make_source(
        [scene], settings=CropSettings(size=512, min_peak_snr=5.0), augment=augment
    ).crops(range(1))
    assert len(target["boxes"]) == 0


def test_masks_grow_with_the_blur() -> None:
    augment = AugmentSettings(turns=False, blur_probability=1.0, blur_range=(1.2, 1.2))
    source = make_source(settings=CropSettings(size=512), augment=augment)
    _, (target,) = source.crops(range(1))
    _, (plain,) = make_source(settings=CropSettings(size=512), augment=AugmentSettings(turns=False)).crops(
        range(1)
    )
    scene = make_scene()
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for k, ((y0, x0), label) in enumerate(zip(scene.positions, scene.labels, strict=True)):
        widths = (2.0, 2.0) if label == 1 else (3.0, 7.0)
        sy, sx = (np.hypot(width, 1.2) for width in widths)
        true = np.exp(-0.5 * (((y - y0) / sy) ** 2 + ((x - x0) / sx) ** 2)) > (0.005 if label == 1 else 0.08)
        iou = []
        for masks in (plain["masks"], target["masks"]):
            mask = masks[k].numpy() == 1
            iou.append((true & mask).sum() / (true | mask).sum())
        # These have no wings, and grow a little less than is reckoned with.
        assert iou[1] > max(0.85, iou[0] + 0.02)
    np.testing.assert_array_equal(target["boxes"], boxes_of(target["masks"].numpy()))


# ---- refusals


def test_no_scenes() -> None:
    with pytest.raises(ValueError, match="no training scenes"):
        SceneFiles([])


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"crops_per_scene": 0}, {"cache_mb": -1.0}, {"min_peak_snr": -1.0}]
)
def test_crop_settings_are_checked(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CropSettings(**wrong)


def test_names_of_the_scenes_of_crops(tmp_path: Path) -> None:
    for k in range(3):
        write_scene(make_scene(((40, 40),) * (k + 1)), tmp_path / f"patch_{k}.npz")
    source = make_source(SceneFiles(tmp_path.glob("*.npz")), settings=CropSettings(size=512))
    counts = [f"patch_{len(target['labels']) - 1}" for target in source.crops(range(6))[1]]
    assert source.names(range(6)) == counts
