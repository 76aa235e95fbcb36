"""Where nodules and candidates lie."""

import numpy as np
from numpy.typing import NDArray
from scipy import spatial

from luna_monai.errors import LunaError
from luna_monai.synthetic.nodules import DIAMETER_MM, draw_micronodule, draw_nodule, paint_nodule
from luna_monai.synthetic.painting import Canvas
from luna_monai.synthetic.sampling import Points
from luna_monai.synthetic.setting import Setting
from luna_monai.synthetic.vessels import Tubes

#: Where nodules sit, as shares, under the names of what :func:`collect_places` gives.
PLACE_SHARES = {
    "lung": 0.36,
    "small vessel": 0.16,
    "wall": 0.24,
    "mediastinum": 0.08,
    "diaphragm": 0.04,
    "fissure": 0.06,
    "bronchus": 0.06,
}
_ON_SURFACE = ("wall", "mediastinum", "diaphragm")

#: Shares of the draws of negative candidates. In whole thoraxes, fewer remain of kinds with few places.
NEGATIVE_SHARES = {
    "nodule": 0.11,  # where nodules sit too, so that the place tells nothing
    "branching": 0.16,  # where vessels branch or cross
    "vessel": 0.16,  # along vessels, many of which are seen end-on
    "bronchus": 0.06,  # walls of airways
    "wall": 0.12,  # pleura, ribs and their cartilage
    "mediastinum": 0.08,  # the lungs' inner surface, hila
    "diaphragm": 0.06,
    "fissure": 0.03,
    "finding": 0.12,  # plaques, scars, collapsed lung, infiltrates, lymph nodes
    "lung": 0.06,  # anywhere in the lungs
    "body": 0.01,  # anywhere in the body
    "gas": 0.02,  # stomach and colon below the diaphragm
    "outside": 0.01,  # skin, cloth, table, air
}
# LUNA16 has 1,351 hits on 1,186 nodules: its detectors found some of them twice.
_SECOND_HITS = 165 / 1186
# A diameter, from the volume that is not hidden, in radii of the nodule: half of its volume.
_VISIBLE = 1.6
# LUNA16 merges candidates that are closer than this (Setio et al. 2017).
_MERGED_MM = 5.0
_ATTEMPTS = 100


def collect_places(rng: np.random.Generator, setting: Setting, tubes: Tubes) -> dict[str, Points]:
    """Collect positions in view where nodules, lookalikes and negatives may lie.

    Args:
        rng: source of randomness.
        setting: the scan's frame.
        tubes: vessels and airways.

    Returns:
        Positions (n, 3), (x, y, z) in mm, under the names of ``NEGATIVE_SHARES``, ``finding`` excepted, of small
        vessels that a nodule may touch, and of ribs.
    """
    thorax = setting.thorax
    grid, lung, cavity, diaphragm = thorax.grid, thorax.lung, thorax.cavity, thorax.diaphragm
    surface = np.abs(lung) < 1.5
    branching = (tubes.vessels.leaves > 1) & (tubes.vessels.end_radius > 0.6)
    points, radii, _ = tubes.vessels.where(tubes.vessels.start_radius > 0.6).sample(3.0)
    taken = rng.random(len(points)) < np.clip(radii / 3, 0, 1)
    vessel, small_vessel = points[taken], points[radii < DIAMETER_MM[0] / 2]
    in_lung = grid.value_at(lung, tubes.vessels.end) < 4
    # The oblique fissure runs near this plane; candidates only need its neighborhood.
    inner = grid.points_where(lung < -8)
    rise = inner[:, 2] - (0.41 * thorax.body.height + 0.95 * inner[:, 1])
    pools = {
        "branching": tubes.vessels.end[branching & in_lung],
        "vessel": vessel[grid.value_at(lung, vessel) < 4],
        "small vessel": small_vessel[grid.value_at(lung, small_vessel) < -2],
        "bronchus": tubes.airways.end,
        "wall": grid.points_where(surface & (np.abs(cavity) < 5)),
        "rib": grid.points_where(surface & (thorax.bone < 6)),
        "mediastinum": grid.points_where(surface & (cavity < -14) & (diaphragm > 10)),
        "diaphragm": grid.points_where(surface & (np.abs(diaphragm) < 2)),
        "fissure": inner[np.abs(rise) < 5],
        "lung": grid.points_where(lung < -5),
        "body": grid.points_where((lung > 8) & (thorax.skin < 0)),
        "gas": grid.points_where((lung > 4) & (thorax.skin < -5) & (thorax.soft_hu < -200)),
        "outside": grid.points_where(thorax.skin > -3),
    }
    return {name: points[_in_reach(setting, points)] for name, points in pools.items()}


def _in_reach(setting: Setting, points: Points) -> NDArray[np.bool_]:
    """Return which points (n, 3) can be candidates: inside the volume and, in a targeted scan, away from its faces."""
    # Crops are moved inside the volume. A targeted scan has lung at its faces, where candidates would be off-center.
    index = setting.slices.to_index(points)
    margin = np.zeros(3) if setting.whole_thorax else np.array([8.0, 24.0, 24.0])
    return np.all((index >= margin) & (index <= np.array(setting.slices.shape) - 1 - margin), axis=1)


def _place(rng: np.random.Generator, setting: Setting, place: str, radius: float, places: dict[str, Points]) -> Points:
    """Choose a nodule's position (1, 3), or none (0, 3) when the view has no such place."""
    points = places[place][setting.slices.contains(places[place], min(radius, 6.0))]
    if len(points) == 0:
        return points
    point = points[[rng.integers(len(points))]] + rng.uniform(-1.2, 1.2, 3)
    if place in _ON_SURFACE:
        # From broad contact to a touch.
        point -= setting.thorax.normal(point) * radius * rng.uniform(0.25, 1.05)
    elif place in ("small vessel", "bronchus"):
        way = rng.normal(size=3)
        point += way / np.linalg.norm(way) * radius * rng.uniform(0.0, 1.0)
    return point


def paint_nodules(
    rng: np.random.Generator,
    setting: Setting,
    canvas: Canvas,
    places: dict[str, Points],
    mean_nodules: float,
    in_view: float,
) -> tuple[Points, Points]:
    """Paint nodules and, apart from them, small or doubtful ones that are no candidates.

    Args:
        rng: source of randomness.
        setting: the scan's frame.
        canvas: the fine voxels.
        places: what :func:`collect_places` gives.
        mean_nodules: mean number of nodules.
        in_view: the part of the lungs that is in view, 0 to 1.

    Returns:
        The nodules and the others (n, 4): position (x, y, z) and diameter, mm, or -1 below 3 mm.
    """
    wanted, doubtful, tiny = rng.poisson([mean_nodules, 1.0 * in_view, 8.0 * in_view])
    found, labels = np.zeros((0, 4)), np.array([], dtype=object)
    names, shares = list(PLACE_SHARES), list(PLACE_SHARES.values())
    drawn = [(label, draw_nodule(rng)) for label in ["nodule"] * wanted + ["doubtful"] * doubtful]
    drawn.sort(key=lambda pair: -pair[1].radius)  # the largest first, as long as there is room
    for label, nodule in drawn + [("tiny", draw_micronodule(rng)) for _ in range(tiny)]:
        for _ in range(20):
            center = _place(rng, setting, str(rng.choice(names, p=shares)), nodule.radius, places)
            fits = setting.thorax.grid.value_at(setting.thorax.lung, center) <= 0.3 * nodule.radius
            if not np.any(fits & _in_reach(setting, center)):
                continue
            gap = np.linalg.norm(found[:, :3] - center, axis=1) - np.maximum(found[:, 3], 3) / 2
            # A nodule in the center of an infiltrate or a scar cannot be distinguished from it.
            inside = np.linalg.norm(places["finding"] - center, axis=1) < nodule.radius + 2
            if np.all(gap > nodule.radius + 3) and not inside.any():
                row, visible = paint_nodule(rng, canvas, center[0], nodule)
                # Readers do not mark what is faint or mostly hidden, and LUNA16 counts nodules from 3 mm on.
                large = row[3] >= max(_VISIBLE * nodule.radius, DIAMETER_MM[0])
                hidden = not (visible and large and _in_reach(setting, row[None, :3])[0])
                found = np.vstack([found, row])
                labels = np.append(labels, "doubtful" if hidden and label == "nodule" else label)
                break
    tries = [_place(rng, setting, str(rng.choice(names, p=shares)), draw_nodule(rng).radius, places) for _ in range(60)]
    points = np.concatenate(tries)
    places["nodule"] = points[_in_reach(setting, points)]
    other = found[labels != "nodule"]
    other[other[:, 3] < DIAMETER_MM[0], 3] = -1.0
    return found[labels == "nodule"], other


def choose_candidates(
    rng: np.random.Generator, setting: Setting, places: dict[str, Points], count: int, nodules: Points, other: Points
) -> Points:
    """Choose candidates: hits on the nodules, and negatives away from them.

    Args:
        rng: source of randomness.
        setting: the scan's frame.
        places: positions (n, 3) under the names of ``NEGATIVE_SHARES``.
        count: how many candidates.
        nodules: position and diameter of the nodules (n, 4), mm.
        other: the same of findings that must be no candidates.

    Returns:
        Candidates (count, 4): position (x, y, z), mm, and 1 for a nodule or 0.

    Raises:
        LunaError: when nodules leave no room for negatives.
    """
    hits = np.repeat(nodules, 1 + (rng.random(len(nodules)) < _SECOND_HITS), axis=0)
    positives = hits[:, :3] + np.clip(rng.normal(0, 0.08, (len(hits), 3)), -0.24, 0.24) * hits[:, 3:]
    positives = positives[setting.slices.contains(positives)][:count]
    wanted = count - len(positives)

    avoid = np.concatenate([nodules, other])
    names = [name for name in NEGATIVE_SHARES if len(places[name])]
    shares = np.array([NEGATIVE_SHARES[name] for name in names])
    chosen = np.zeros((0, 3))
    for _ in range(_ATTEMPTS):
        if len(chosen) >= wanted:
            break
        kinds = rng.choice(len(names), min(2 * (wanted - len(chosen)) + 16, 20_000), p=shares / shares.sum())
        picked = np.stack([places[names[k]][rng.integers(len(places[names[k]]))] for k in kinds])
        picked = picked + rng.normal(0, 1.0, picked.shape)
        clear = _in_reach(setting, picked)
        for finding in avoid:
            clear &= np.linalg.norm(picked - finding[:3], axis=1) > max(float(finding[3]), 2.0) / 2 + 5.0
        chosen = np.concatenate([chosen, picked[clear]])
        if setting.whole_thorax:  # a part of a lung may have no room for that
            pairs = spatial.KDTree(chosen).query_pairs(_MERGED_MM, output_type="ndarray")
            chosen = np.delete(chosen, pairs[:, 1], axis=0)
    if len(chosen) < wanted:
        found = f"no room for {wanted - len(chosen)} of {count} candidates away from {len(nodules)} nodules"
        raise LunaError(f"{found}; ask for fewer candidates or nodules, or more voxels")
    return np.column_stack([np.concatenate([positives, chosen[:wanted]]), np.arange(count) < len(positives)])
