"""Abdomens made of formulas: tissue maps with liver, spleen, kidneys, aorta and a lesion, no two alike.

Everything is drawn in patient millimetres (x to the left, y to posterior, z to superior) and then warped by smooth
random fields, so the same seed gives the same patient on any grid. Needs nothing but numpy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from ssmsam_research.synthetic.shapes import Space, ellipsoid, join, meet, tube

LABELS = {"liver": 1, "spleen": 2, "right kidney": 3, "left kidney": 4, "aorta": 5, "lesion": 6}


class Tissue(IntEnum):
    """What a voxel is made of. 1 to 6 are also the labels; three more belong to a labelled organ."""

    OUTSIDE = 0
    LIVER = 1
    SPLEEN = 2
    RIGHT_CORTEX = 3
    LEFT_CORTEX = 4
    AORTA = 5
    LESION = 6
    LIVER_VESSEL = 7
    RIGHT_MEDULLA = 8
    LEFT_MEDULLA = 9
    SKIN = 10
    FAT = 11
    MUSCLE = 12
    COMPACT_BONE = 13
    SPONGY_BONE = 14
    CARTILAGE = 15
    CEREBROSPINAL_FLUID = 16
    CORD = 17
    LUNG = 18
    LUNG_VESSEL = 19
    HEART = 20
    ARTERY = 21
    VEIN = 22
    BILE = 23
    GUT_WALL = 24
    GUT_FLUID = 25
    GAS = 26
    STOOL = 27
    PANCREAS = 28
    URINE = 29
    TABLE = 30


_LABEL_OF = np.zeros(len(Tissue), np.uint8)
_LABEL_OF[1:7] = np.arange(1, 7)
_LABEL_OF[[Tissue.LIVER_VESSEL, Tissue.RIGHT_MEDULLA, Tissue.LEFT_MEDULLA]] = 1, 3, 4


def labels_of(tissue: np.ndarray) -> np.ndarray:
    """A tissue map of any shape -> the labels of :data:`LABELS`, uint8, 0 elsewhere."""
    return _LABEL_OF[tissue]


def draw_anatomy(seed: int, *, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """One patient: (slices, rows, columns) uint8 of :class:`Tissue`.

    Slices go from feet to head, rows from front to back, columns from the patient's right to left (an LPS grid);
    the grid's centre lies in front of the first lumbar vertebra. ``spacing_mm`` is along (slice, row, column).
    About 350 mm across and 240 mm high shows all organs whole.
    """
    rng = np.random.default_rng(seed)
    space = Space(rng, shape, spacing_mm)
    wall = _body(space)
    diaphragm = _chest(space, wall)
    _spine_and_muscles(space, wall)
    _bowel(space, wall)
    _stomach_and_pancreas(space, wall, diaphragm)
    _kidneys(space)
    _spleen(space, wall, diaphragm)
    liver = _liver(space, wall, diaphragm)
    _great_vessels(space)
    _liver_vessels(space)
    _lesion(space, liver)
    return space.tissue


def _body(s: Space) -> np.ndarray:
    """Skin, fat and the muscular wall with ribs. Returns the depth inside the wall in mm (negative outside it)."""
    waist = 1 - 0.05 / (1 + ((s.z + s.vary(40, 15)) / 55) ** 2)
    wide, deep = s.vary(150, 7), s.vary(104, 7)
    x, y = s.x / waist / wide, s.y / waist / deep
    radius = 0.6 * np.sqrt(x**2 + y**2) + 0.4 * np.sqrt(np.sqrt((x**2) ** 2 + (y**2) ** 2)) + 1e-6
    depth = np.sqrt(s.x**2 + s.y**2 + 1) * (1 / radius - 1)
    depth -= np.where(s.y > 0, 7 / (1 + (s.x / 14) ** 2), 0)  # the groove over the spine
    fat = np.clip(s.vary(16, 8) + 3.5 * s.field(80), 4, None)
    medial = np.where(s.y > 0, 1 / (1 + ((s.x / 58) ** 2) ** 2), 0)
    muscle = s.vary(11, 2) + 1.5 * s.field(60) + s.vary(27, 4) * medial
    wall = depth - fat - muscle
    s.paint(Tissue.SKIN, depth > 0)
    s.paint(Tissue.FAT, depth > 2.2)
    septa = np.abs(s.field(22)) > 0.07
    s.paint(Tissue.MUSCLE, (depth > fat) & (wall < 0) & septa)
    _ribs(s, wall)
    below = (s.y - (deep + 16 + s.x**2 / 900)) / 3.5
    s.paint(Tissue.TABLE, (np.abs(below) < 1) & (np.abs(s.x) < 165), over=Tissue.OUTSIDE)
    return wall


def _ribs(s: Space, wall: np.ndarray) -> None:
    course = s.z - 0.5 * s.y + s.vary(0, 12)
    across = (course % 31 - 15.5) / 6.5
    within = np.sqrt(across**2 + ((wall + 6) / 4.2) ** 2)
    chest = (course > -20) & (wall < 0)
    s.paint(Tissue.CARTILAGE, (within < 1) & chest & (s.y < -45) & (s.z > 5 - 0.7 * np.abs(s.x) + 60))
    s.paint(Tissue.COMPACT_BONE, (within < 1) & chest & (s.y > -45) & (np.abs(s.x) > 25))
    s.paint(Tissue.SPONGY_BONE, (within < 0.6), over=Tissue.COMPACT_BONE)
    wing = np.sqrt(((wall + 7) / 5) ** 2 + (np.clip(s.z + s.vary(100, 6), 0, None) / 8) ** 2)
    iliac = (np.abs(s.x) > 55) & (s.y > -35)
    s.paint(Tissue.COMPACT_BONE, (wing < 1) & iliac)
    s.paint(Tissue.SPONGY_BONE, (wing < 0.6) & iliac)


def _chest(s: Space, wall: np.ndarray) -> np.ndarray:
    """Lungs, diaphragm and heart. Returns the height of the diaphragm in mm over every voxel's (x, y)."""
    back = np.clip(s.y, 0, None) / 90
    right = s.vary(92, 8) - 70 * (((s.x + 70) / 95) ** 2 + ((s.y + 5) / 105) ** 2) - 45 * back**2
    left = s.vary(84, 8) - 70 * (((s.x - 68) / 92) ** 2 + ((s.y + 5) / 105) ** 2) - 45 * back**2
    diaphragm = np.maximum(right, left)
    inside = wall > 0
    s.paint(Tissue.MUSCLE, inside & (s.z > diaphragm - 3))
    lung = inside & (s.z > diaphragm)
    s.paint(Tissue.LUNG, lung)
    s.paint(Tissue.LUNG_VESSEL, lung & (s.field(16) ** 2 + s.field(16) ** 2 < 0.018))
    middle = ellipsoid(s, (6, 14, 120), (42, 40, 120))
    s.paint(Tissue.FAT, lung & (middle < 0))
    heart = ellipsoid(s, (s.vary(22, 6), s.vary(-32, 6), s.vary(128, 6)), (62, 50, 42))
    s.paint(Tissue.FAT, inside & (heart < 7) & (s.z > diaphragm))
    s.paint(Tissue.HEART, inside & (heart < 0) & (s.z > diaphragm))
    return diaphragm


def _spine_and_muscles(s: Space, wall: np.ndarray) -> None:
    y = s.spine
    for side in (-1, 1):
        flare = np.clip((30 - s.z) / 140, 0, 1)  # the psoas grows downwards
        psoas = np.sqrt(
            ((s.x - side * (30 + 14 * flare)) / (6 + 20 * flare)) ** 2 + ((s.y - y - 4) / (8 + 16 * flare)) ** 2
        )
        s.paint(Tissue.MUSCLE, (psoas < 1) & (flare > 0))
        lumborum = ellipsoid(s, (side * 66, y + 24, -50), (20, 8, 75))
        s.paint(Tissue.MUSCLE, lumborum < 0)
        crus = tube(s, [(side * 22, y - 12, -20), (side * 20, y - 24, 30), (side * 14, y - 34, 70)], [4, 6, 5])
        s.paint(Tissue.MUSCLE, (crus < 0) & (wall > 0))
    level = (s.z + s.vary(0, 15)) % 34
    body = np.sqrt((s.x / s.vary(23, 1.5)) ** 2 + ((s.y - y) / s.vary(18, 1.5)) ** 2) - 0.06 * np.abs(level - 17) / 17
    disc = level < 8
    s.paint(Tissue.CARTILAGE, (body < 1) & disc)
    s.paint(Tissue.COMPACT_BONE, (body < 1) & ~disc)
    s.paint(Tissue.SPONGY_BONE, (body < 0.9) & (level > 9.5) & (level < 32.5))
    arch = np.sqrt((s.x / 17) ** 2 + ((s.y - y - 27) / 15) ** 2)
    spine = (np.abs(s.x) < 4.5) & (s.y > y + 36) & (s.y < y + 58) & (level > 4) & (level < 27)
    wings = (np.abs(s.y - y - 26) < 4) & (np.abs(s.x) < 42) & (level > 14) & (level < 24)
    s.paint(Tissue.SPONGY_BONE, ((arch < 1) & (s.y > y + 14) & (level > 3)) | spine | wings)
    s.paint(Tissue.COMPACT_BONE, (arch > 0.8) & (arch < 1) & (s.y > y + 14) & (level > 3))
    canal = np.sqrt((s.x / 10.5) ** 2 + ((s.y - y - 25) / 8) ** 2)
    s.paint(Tissue.CEREBROSPINAL_FLUID, canal < 1)
    s.paint(Tissue.CORD, canal < 0.5)


def _bowel(s: Space, wall: np.ndarray) -> None:
    """Small bowel as the tubes where two fields vanish together, the colon as a frame around it."""
    room = (wall > 4) & (s.y < s.spine - 26) & (s.z < s.vary(20, 8))
    thick = np.sqrt(s.field(30) ** 2 + s.field(30) ** 2)
    content = s.field(45)
    s.paint(Tissue.GUT_WALL, room & (thick < 0.85), over=Tissue.FAT)
    s.paint(Tissue.GUT_FLUID, room & (thick < 0.5), over=Tissue.GUT_WALL)
    s.paint(Tissue.GAS, room & (thick < 0.42) & (content > 1.5), over=Tissue.GUT_FLUID)
    vessels = np.sqrt(s.field(20) ** 2 + s.field(20) ** 2) < 0.13
    s.paint(Tissue.VEIN, room & vessels & (s.z < 40), over=Tissue.FAT)
    flank = s.vary(100, 4)
    course = [(-flank, 12, -140), (-flank, 8, -35), (-62, -58, -40), (0, -74, -48), (58, -64, -20), (88, -8, 18)]
    colon = tube(s, [*course, (flank, 22, -10), (flank, 20, -140)], [21, 23, 18, 16, 16, 15, 13, 13])
    colon += 2.5 * np.abs(s.field(26)) - 1
    inside = wall > 2
    s.paint(Tissue.GUT_WALL, (colon < 0) & inside)
    stool = (colon < -3) & inside
    s.paint(Tissue.STOOL, stool)
    s.paint(Tissue.GAS, stool & (s.field(14) + 0.8 * s.field(50) - s.y / 120 > 1.2))


def _stomach_and_pancreas(s: Space, wall: np.ndarray, diaphragm: np.ndarray) -> None:
    fundus = ellipsoid(s, (s.vary(58, 5), s.vary(-8, 6), s.vary(66, 6)), (36, 42, 36))
    corpus = ellipsoid(s, (s.vary(40, 5), s.vary(-48, 6), s.vary(32, 6)), (30, 25, 40))
    antrum = ellipsoid(s, (s.vary(2, 5), s.vary(-58, 5), s.vary(8, 6)), (36, 17, 17))
    stomach = join(join(fundus, corpus, 18), antrum, 18) + 2.5 * s.field(28)
    stomach = meet(meet(stomach, 4 - wall, 6), s.z - diaphragm + 5, 6)
    s.paint(Tissue.GUT_WALL, stomach < 0)
    s.paint(Tissue.GUT_FLUID, stomach < -4.5)
    s.paint(Tissue.GAS, (stomach < -4.5) & (s.y < s.vary(-52, 10)))
    duodenum = tube(s, [(-30, -48, 5), (-46, -22, -4), (-44, -6, -42), (-8, s.spine - 38, -56)], [12, 12, 12, 10])
    s.paint(Tissue.GUT_WALL, duodenum + 1.5 * s.field(20) < 0)
    s.paint(Tissue.GUT_FLUID, duodenum + 1.5 * s.field(20) < -4)
    course = [(-30, -18, -14), (-8, -26, 4), (28, -14, 14), (62, 10, s.vary(28, 5))]
    pancreas = tube(s, course, [14, 10, 10, 8]) + 1.8 * s.field(11)
    s.paint(Tissue.PANCREAS, pancreas < 0)
    s.paint(Tissue.VEIN, tube(s, [(-6, -14, 4), (28, -3, 14), (70, 22, 30)], [4.5, 4, 3.5]) < 0)


def _kidneys(s: Space) -> None:
    sides = (
        (-1, s.vary(-34, 8), Tissue.RIGHT_CORTEX, Tissue.RIGHT_MEDULLA),
        (1, s.vary(-18, 8), Tissue.LEFT_CORTEX, Tissue.LEFT_MEDULLA),
    )
    for side, height, cortex, medulla in sides:
        x, y, size = side * s.vary(62, 4), s.spine + s.vary(4, 4), s.vary(1.0, 0.09)
        lean = (side * 0.22, -0.16)  # the upper pole lies further in and further back
        centre, radii = (x, y, height), (27 * size, 23 * size, 54 * size)
        kidney = ellipsoid(s, centre, radii, lean=lean) + 1.6 * s.field(26)
        around = ellipsoid(s, centre, tuple(r + 9 for r in radii), lean=lean)
        s.paint(Tissue.FAT, around + 2 * s.field(30) < 0)
        s.paint(cortex, kidney < 0)
        s.paint(medulla, (kidney < -6) & (kidney > -17) & (s.field(13) > -0.1))
        hilum = (x - side * 17 * size, y - 6, height)
        sinus = ellipsoid(s, hilum, (17 * size, 10, 22 * size), lean=lean) + 1.8 * s.field(10)
        s.paint(Tissue.FAT, (sinus < 0) & (around < 0))
        s.paint(Tissue.URINE, sinus < -6.5)
        course = [(side * 10, s.spine - 27, height + 6), (x - side * 34, y - 12, height), hilum]
        s.paint(Tissue.VEIN, tube(s, course, [4.5, 4.5, 3]) < 0)


def _spleen(s: Space, wall: np.ndarray, diaphragm: np.ndarray) -> None:
    size = s.vary(1.0, 0.1)
    centre = (s.vary(92, 3), s.vary(36, 4), s.vary(44, 6))
    outer = ellipsoid(s, centre, (46 * size, 62 * size, 56 * size), lean=(0.1, -0.1))
    hollow = ellipsoid(s, (s.vary(44, 3), s.vary(8, 4), 42), (43, 45, 70))
    spleen = meet(meet(outer, -hollow, 10), meet(3 - wall, s.z - diaphragm + 5, 8), 8)
    s.paint(Tissue.SPLEEN, spleen + 1.8 * s.field(24) < 0)


def _liver(s: Space, wall: np.ndarray, diaphragm: np.ndarray) -> np.ndarray:
    """Liver with fissure and gallbladder. Returns its signed distance in mm, roughly, negative inside."""
    size = s.vary(1.0, 0.06)
    right = ellipsoid(s, (s.vary(-74, 4), s.vary(0, 5), s.vary(34, 5)), (80 * size, 92 * size, 97 * size))
    left = ellipsoid(s, (s.vary(0, 8), s.vary(-50, 5), s.vary(54, 6)), (s.vary(62, 10), 34, s.vary(34, 5)))
    lobes = join(right, left, 22)
    under = 0.52 * (s.x + s.vary(40, 5)) + 0.30 * (s.y + 8) - 0.80 * (s.z + s.vary(15, 6))
    liver = meet(meet(lobes, under, 16), meet(3 - wall, s.z - diaphragm + 5, 8), 8)
    fissure = 4 - ellipsoid(s, (-16, -62, 22), (3.5, 26, 34), lean=(0.1, 0))
    liver = meet(liver, fissure, 6) + 2.2 * s.field(30)
    s.paint(Tissue.LIVER, (liver < 0) & ~s.is_any(Tissue.RIGHT_CORTEX, Tissue.RIGHT_MEDULLA))
    gall = ellipsoid(s, (s.vary(-44, 4), s.vary(-42, 5), s.vary(2, 5)), (14, 19, 23), lean=(0.2, -0.4))
    s.paint(Tissue.GUT_WALL, gall < 2)
    s.paint(Tissue.BILE, gall < 0)
    return liver


def _great_vessels(s: Space) -> None:
    y, wide = s.spine, s.vary(1.0, 0.12)
    fork = s.vary(-94, 8)
    for x in (-26, 30):
        s.paint(Tissue.ARTERY, tube(s, [(5, y - 27, fork), (x, y - 24, fork - 34), (x, y, fork - 80)], [7, 6.5, 6]) < 0)
    hepatic = [(-22, y - 24, -140), (-23, y - 25, -20), (-27, y - 38, 40), (-24, y - 46, 92), (-20, y - 52, 130)]
    s.paint(Tissue.VEIN, tube(s, hepatic, [11, 11, 12, 13, 13]) < 0)
    s.paint(Tissue.ARTERY, tube(s, [(7, y - 30, 8), (4, y - 52, -10), (2, y - 58, -95)], [4.5, 4, 3]) < 0)
    s.paint(Tissue.VEIN, tube(s, [(-6, -14, 4), (-9, -22, -20), (-8, -28, -95)], [6, 5.5, 4]) < 0)
    s.paint(Tissue.ARTERY, tube(s, [(8, y - 30, 20), (6, y - 50, 22), (-30, -20, 24)], [4, 4, 2.5]) < 0)
    s.paint(Tissue.VEIN, tube(s, [(-6, -14, 4), (-26, -18, 16), (-46, -14, 28)], [7, 7.5, 7.5]) < 0)
    course = [(5, y - 27, fork), (8, y - 28, -20), (12, y - 28, 50), (17, y - 18, 140)]
    s.paint(Tissue.AORTA, tube(s, course, [9.5 * wide, 10.5 * wide, 11.5 * wide, 12.5 * wide]) < 0)


def _liver_vessels(s: Space) -> None:
    """Portal branches from the hilum and hepatic veins to the vena cava, each ending in random twigs."""
    hilum, cava = (-46.0, -14.0, 28.0), (-24.0, s.back - 46, 88.0)
    ends = [(hilum, (-95, 22, 28)), (hilum, (-92, -34, 12)), (hilum, (-18, -48, 50)), (cava, (-98, 30, 52))]
    for start, end in [*ends, (cava, (-72, -40, 50)), (cava, (2, -52, 66))]:
        tip = tuple(s.vary(v, 8) for v in end)
        s.paint(Tissue.LIVER_VESSEL, tube(s, [start, tip], [7, 4]) < 0, over=Tissue.LIVER)
        for part in (0.4, 0.65, 0.9):
            knot = tuple(a + part * (b - a) for a, b in zip(start, tip, strict=True))
            twig = tuple(s.vary(v, 32) for v in knot)
            s.paint(Tissue.LIVER_VESSEL, tube(s, [knot, twig], [4, 2.2]) < 0, over=Tissue.LIVER)


def _lesion(s: Space, liver: np.ndarray) -> None:
    """One irregular ball well inside the liver."""
    radius = s.vary(13, 4)
    candidates = np.stack([s.rng.uniform(low, high, 4000) for low, high in ((-125, -20), (-70, 75), (-25, 85))], 1)
    index = s.nearest(candidates)
    deep = (liver[index] < -radius - 2) & (s.tissue[index] == Tissue.LIVER)
    if not deep.any():
        deep = (liver[index] < -4) & (s.tissue[index] == Tissue.LIVER)
    if deep.any():
        ball = ellipsoid(s, tuple(candidates[deep][0]), (radius, radius * s.vary(1, 0.15), radius * s.vary(1, 0.15)))
        inside = (ball + 1.6 * s.field(10) < 0) & s.is_any(Tissue.LIVER, Tissue.LIVER_VESSEL)
        s.paint(Tissue.LESION, inside)
