"""The parts of a synthetic scan: grids, tubes, trees, nodules, noise, anatomy."""

import numpy as np
import pytest
from scipy import ndimage, spatial

from luna_monai.synthetic.anatomy import build_thorax, draw_body
from luna_monai.synthetic.candidates import NEGATIVE_SHARES, PLACE_SHARES, collect_places, paint_nodules
from luna_monai.synthetic.lookalikes import paint_blob, paint_patch, paint_sheet
from luna_monai.synthetic.nodules import Nodule, draw_nodule, paint_nodule
from luna_monai.synthetic.painting import Canvas, paint_tubes
from luna_monai.synthetic.sampling import Grid, SliceSampler, smooth_noise
from luna_monai.synthetic.scan import ScanOptions, generate_scan
from luna_monai.synthetic.setting import draw_acquisition, draw_setting
from luna_monai.synthetic.tissue import lung_texture, scanner_noise
from luna_monai.synthetic.vessels import airways_beside, draw_tubes, grow_tree


@pytest.fixture
def rng():
    return np.random.default_rng(5)


GRID = Grid((-20.0, -20.0, -20.0), (0.5, 0.5, 1.0), (41, 81, 81))


def paint(rng, **changes):
    """Paint a nodule of 12 mm in lung and return the volume and what is reported of it."""
    volume = np.full(GRID.shape, -850, dtype=np.float32)
    row, _ = paint_nodule(rng, Canvas(volume, GRID, 0.5), np.zeros(3), Nodule(**{"radius": 6.0, **changes}))
    return volume, row


def test_acquisitions_are_distributed_as_in_luna16():
    rng = np.random.default_rng(0)
    drawn = [draw_acquisition(rng, 512, None) for _ in range(3000)]
    in_plane = np.array([a.spacing[0] for a in drawn])
    along = np.array([a.spacing[2] for a in drawn])
    slices = np.array([a.shape[0] for a in drawn])
    # The 5th, 50th and 95th percentile of LUNA16's 888 headers.
    np.testing.assert_allclose(np.percentile(in_plane, [5, 50, 95]), [0.557, 0.703, 0.833], atol=0.03)
    assert np.percentile(along, 50) == 1.25
    assert np.mean(along == 2.5) == pytest.approx(0.32, abs=0.03)
    assert np.percentile(slices * along, 50) == pytest.approx(318, abs=5)
    assert np.mean([a.flipped for a in drawn]) == pytest.approx(14 / 888, abs=0.01)
    assert all(a.spacing[0] == a.spacing[1] for a in drawn)


@pytest.mark.parametrize("seed", range(3))
def test_the_aorta_has_no_flat_end_in_the_lung(seed):
    rng = np.random.default_rng(seed)
    body = draw_body(rng)
    low, high = (-body.width - 12, -body.depth - 12, -12), (body.width + 12, body.depth + 26, body.height + 8)
    grid = Grid.covering(np.array(low), np.array(high), 3.0)
    lung = build_thorax(rng, body, grid).lung < 0
    x, y, z = grid.axes()
    around = np.hypot(x - 20, y - body.spine_y + 16) < 25
    ends = ~lung[:-1] & lung[1:] & around & (z[:-1] > 0.45 * body.height)
    assert ends.sum(axis=(1, 2)).max() * 9 < 300  # mm²; a cut through the whole vessel is 400 and more


def test_sampler_reproduces_a_smooth_field():
    voxels = Grid((10.0, 12.0, -5.0), (-0.7, -0.7, 1.1), (9, 20, 24))
    low, high = voxels.box
    coarse = Grid.covering(low - 3, high + 3, 3.0)
    x, y, z = coarse.axes()
    field = (2 * x - y + 0.5 * z + 0.01 * x * y).astype(np.float32)
    sampler = SliceSampler(coarse, voxels)
    vx, vy = voxels.axis(0)[None, :], voxels.axis(1)[:, None]
    for index, vz in enumerate(voxels.axis(2)):
        expected = 2 * vx - vy + 0.5 * vz + 0.01 * vx * vy
        np.testing.assert_allclose(sampler.slice(field, index), expected, atol=1e-3)


def test_noise_is_smooth_and_about_unit_variance(rng):
    noise = smooth_noise(rng, (60, 60, 60), (12, 12, 12))
    assert 0.6 < noise.std() < 1.2
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.4 * noise.std()


def test_scanner_noise_has_its_kernel(rng):
    soft = scanner_noise(rng, (0.7, 0.7, 1.25), 0.3, 1.25)
    sharp = scanner_noise(rng, (0.7, 0.7, 1.25), 0.7, 1.25)

    def neighbours(noise):
        return float((noise * np.roll(noise, 1, axis=2)).mean())

    assert soft.std() == pytest.approx(1, abs=1e-3)
    assert neighbours(soft) > neighbours(sharp) + 0.2
    low_dose = scanner_noise(rng, (0.7, 0.7, 1.25), 0.7, 1.25, streaks=6.0)
    assert low_dose.std() == pytest.approx(1, abs=1e-3)
    assert neighbours(low_dose) > neighbours(sharp) + 0.1


def test_emphysema_makes_holes(rng):
    step = (0.7, 0.7, 1.25)
    healthy, ill = lung_texture(rng, step, 15, 10, 0.0), lung_texture(rng, step, 15, 10, 0.8)
    assert np.mean(ill < -60) > 0.05
    assert np.mean(healthy < -60) < 0.01


@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0])
def test_tube_keeps_its_cross_section(radius):
    # Blur spreads a tube, but does not change the area of its cross-section.
    cover = np.zeros(GRID.shape, dtype=np.float32)
    points = np.column_stack([np.zeros(400), np.full(400, 0.2), np.linspace(-22, 22, 400)])
    paint_tubes(cover, GRID, points, np.full(400, radius), 0.6)
    assert cover.max() <= 1
    area = cover[20].sum() * 0.25
    assert area == pytest.approx(np.pi * radius**2, rel=0.12)
    assert cover[20, 40, 40] == pytest.approx(1 - np.exp(-(radius**2) / (2 * 0.36)), abs=0.07)


def test_tubes_beyond_the_volume_are_cut_off():
    cover = np.zeros(GRID.shape, dtype=np.float32)
    points = np.array([[-20.5, 0, 0], [0, 21, 0], [0, 0, 60.0]])
    paint_tubes(cover, GRID, points, np.full(3, 2.0), 0.5)
    assert cover[20, 40, 0] > 0.9
    assert cover[20, 80, 40] > 0.9
    assert cover[:, :, 5:-5].sum() == pytest.approx(cover[:, 70:, 5:-5].sum())


def test_tree_reaches_every_leaf_and_is_one_piece(rng):
    leaves = rng.uniform(-50, 50, (300, 3))
    root = np.array([0.0, 0.0, -80.0])
    tree = grow_tree(rng, root, leaves, 0.4, 3.0)
    ends = {tuple(point) for point in tree.end}
    assert spatial.KDTree(tree.end).query(leaves)[0].max() < 1e-6
    assert all(tuple(start) in ends or np.array_equal(start, root) for start in tree.start)
    assert tree.start_radius.max() == pytest.approx(0.4 * 300 ** (1 / 3), rel=0.01)
    assert (tree.end_radius <= tree.start_radius * 1.001).all()
    airways = airways_beside(tree.where(tree.leaves > 20), 0.4, 3.0)
    artery = tree.where(tree.leaves > 20)
    gap = np.linalg.norm(airways.end - artery.end, axis=1)
    assert (gap > 0.8 * airways.end_radius).all()


def test_nodule_has_the_diameter_and_center_that_are_reported(rng):
    for radius, shape in ((2.0, None), (4.0, None), (9.0, None), (4.0, 10), (7.0, 200)):
        volume, row = paint(rng, radius=radius, shape=shape)
        share = np.clip((volume + 850) / 880, 0, 1)
        assert row[3] == pytest.approx(2 * (3 * share.sum() * 0.25 / (4 * np.pi)) ** (1 / 3), rel=0.06)
        assert row[3] == pytest.approx(2 * radius, rel=0.2)
        axes = GRID.axis(0)[None, None], GRID.axis(1)[None, :, None], GRID.axis(2)[:, None, None]
        center = [float((share * axis).sum() / share.sum()) for axis in axes]
        np.testing.assert_allclose(row[:3], center, atol=0.3)


def test_what_a_wall_hides_is_not_measured(rng):
    volume = np.full(GRID.shape, -850, dtype=np.float32)
    volume[:, :, :40] = 40
    row, visible = paint_nodule(rng, Canvas(volume, GRID, 0.5), np.zeros(3), Nodule(radius=6.0))
    assert visible
    assert row[3] == pytest.approx(12 / 2 ** (1 / 3), rel=0.1)
    assert row[0] == pytest.approx(6 * 3 / 8, abs=0.7)


@pytest.mark.parametrize(
    ("changes", "low", "high"),
    [
        ({}, 0, 60),
        ({"kind": "ground-glass"}, -760, -450),
        ({"kind": "part-solid"}, -760, 60),
        ({"calcium_hu": 500.0, "calcium": 0.8}, 400, 510),
        ({"cavity": 0.6}, -960, -850),
    ],
)
def test_kinds_of_nodules(rng, changes, low, high):
    volume, _ = paint(rng, **changes)
    center = volume[19:22, 38:43, 38:43]
    assert low <= np.median(center) <= high
    assert volume[0, 0, 0] == -850


@pytest.mark.parametrize(("glass_hu", "expected"), [(-730.0, False), (-640.0, True), (-400.0, True)])
@pytest.mark.parametrize("cavity", [0.0, 0.7])
def test_faint_nodules_are_not_visible(rng, glass_hu, expected, cavity):
    nodule = Nodule(radius=8.0, kind="ground-glass", glass_hu=glass_hu, cavity=cavity)
    volume = np.full(GRID.shape, -850, dtype=np.float32)
    row, visible = paint_nodule(rng, Canvas(volume, GRID, 0.5), np.zeros(3), nodule)
    assert visible is expected
    assert row[3] == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("rays", [{"spicules": 30}, {"strands": 12}])
def test_spicules_and_strands_radiate(rays):
    plain, spiky = (paint(np.random.default_rng(1), **changes)[0] for changes in ({}, rays))
    x, y, z = GRID.axis(0)[None, None], GRID.axis(1)[None, :, None], GRID.axis(2)[:, None, None]
    far = np.sqrt(x**2 + y**2 + z**2) > 8
    assert (plain[far] > -800).sum() == 0
    assert (spiky[far] > -800).sum() > 20


@pytest.mark.parametrize(
    ("structure", "limit"),
    [
        (lambda rng, canvas: paint_patch(rng, canvas, np.zeros(3), 7.0), 0.01),
        (lambda rng, canvas: paint_blob(rng, canvas, np.zeros(3), 20.0, 40.0), 0.01),
        # Its uneven rim touches the box.
        (lambda rng, canvas: paint_sheet(rng, canvas, np.zeros(3), np.array([1.0, 0, 0]), (8, 8, 2), 40.0), 0.05),
        (lambda rng, canvas: paint_nodule(rng, canvas, np.zeros(3), draw_nodule(rng)), 0.01),
    ],
    ids=["patch", "blob", "sheet", "nodule"],
)
def test_no_structure_is_cut_off_at_the_box_in_which_it_is_painted(structure, limit):
    class Recording(Canvas):
        def blend(self, block, share, hu):
            reached.append(max(float(np.take(share, end, axis).mean()) for axis in range(3) for end in (0, -1)))

    reached = []
    grid = Grid((-90.0, -90.0, -90.0), (1.0, 1.0, 1.0), (181, 181, 181))
    canvas = Recording(np.full(grid.shape, -850, dtype=np.float32), grid, 0.5)
    for seed in (*range(40), 84):
        structure(np.random.default_rng(seed), canvas)
    assert max(reached) < limit  # share of a face of the box


@pytest.mark.parametrize("air", [{"bronchi": 3}, {"bubbles": 6}])
def test_air_inside_a_nodule(air):
    plain, airy = (paint(np.random.default_rng(1), **changes)[0] for changes in ({}, air))
    assert (airy[plain > -100] < -300).sum() > 3


def test_diameters_are_about_even_over_their_logarithm():
    rng = np.random.default_rng(2)
    drawn = [draw_nodule(rng) for _ in range(4000)]
    diameters = np.array([2 * nodule.radius for nodule in drawn])
    assert 3 <= diameters.min() < diameters.max() <= 33
    shares = np.histogram(diameters, [3, 6, 12, 24, 33.1])[0] / len(diameters)
    np.testing.assert_allclose(shares, [0.18, 0.33, 0.33, 0.16], atol=0.03)
    assert 0.4 < np.mean([nodule.shape is not None for nodule in drawn]) < 0.7
    calcified = [nodule for nodule in drawn if nodule.calcium > 0]
    assert {nodule.radius > 7.5 for nodule in calcified if nodule.calcium > 0.6} == {False}
    assert {nodule.radius > 7.5 for nodule in calcified} == {False, True}


def test_thorax_has_two_lungs_of_human_size(rng):
    body = draw_body(rng)
    grid = Grid((-190.0, -150.0, -30.0), (3.0, 3.0, 3.0), (110, 110, 128))
    thorax = build_thorax(rng, body, grid)
    lung = thorax.lung < 0
    sizes = sorted(np.bincount(ndimage.label(lung)[0].ravel())[1:] * 27)
    assert all(1.0e6 < size < 4.0e6 for size in sizes[-2:])  # cubic mm: 1 to 4 litres
    assert sum(sizes[:-2]) < 1e5
    assert thorax.bone[lung].min() > -1.5
    assert thorax.skin[lung].max() < -8
    assert np.percentile(thorax.soft_hu[(thorax.skin < -5) & ~lung & (thorax.diaphragm > 5)], 3) > -140
    assert (thorax.soft_hu[thorax.skin > 60] < -990).all()


def test_scan_looks_like_a_chest_ct():
    scan = generate_scan(np.random.SeedSequence(3), ScanOptions(96, None, 200, 4.0))
    voxels = scan.voxels
    lung = voxels[(voxels > -1000) & (voxels < -600)]
    assert lung.size > 0.1 * voxels.size
    assert -920 < np.median(lung) < -780
    assert np.mean((voxels > -150) & (voxels < 150)) > 0.1
    assert 200 < voxels.max() <= 3071
    assert voxels.min() >= -1024
    assert (scan.candidates[:, 3] == 0).sum() == 200 - (scan.candidates[:, 3] == 1).sum()


def test_shares_add_up():
    assert sum(NEGATIVE_SHARES.values()) == pytest.approx(1)
    assert sum(PLACE_SHARES.values()) == pytest.approx(1)


def test_no_nodule_is_painted_inside_another_finding():
    rng = np.random.default_rng(1)
    setting = draw_setting(rng, 160, 80)
    places = collect_places(rng, setting, draw_tubes(rng, setting))
    middle = np.median(places["lung"][:, 0])
    canvas = Canvas(np.full(setting.fine.shape, -850, dtype=np.float32), setting.fine, 0.5)
    places["finding"] = places["lung"][places["lung"][:, 0] < middle]
    painted = np.concatenate(paint_nodules(rng, setting, canvas, places, 20.0, 0.5))
    assert len(painted) > 4
    assert painted[:, 0].min() > middle - 3


def test_windows_of_a_targeted_scan_are_centred_on_their_nodules():
    # A window is moved inside the volume; near a face it would show its nodule at the rim.
    hits = []
    for seed in range(4):
        scan = generate_scan(np.random.SeedSequence(seed), ScanOptions(112, 64, 40, 6.0))
        rows = scan.annotations[:, :3]
        hits += list((rows - scan.origin) / (np.array(scan.spacing) * scan.direction))
    index = np.array(hits)
    assert len(index) > 5
    assert (index >= [24, 24, 8]).all()
    assert (index <= [111 - 24, 111 - 24, 63 - 8]).all()
