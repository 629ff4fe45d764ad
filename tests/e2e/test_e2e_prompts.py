"""Points and boxes as the viewers send them, and what the server remembers between two clicks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sample_cases import CT, MR, Truth
from serving import Server
from viewers import Answer, ohif, refused, slicer


def used_slices(answer: Answer) -> set[int]:
    return set(np.flatnonzero(answer.mask.any(axis=(1, 2))).tolist())


def box_round(truth: Truth, label: str, k: int) -> tuple[int, int, int, int]:
    """(i0, i1, j0, j1) of a label on slice ``k``."""
    j, i = np.nonzero(truth.mask(label)[k])
    return int(i.min()), int(i.max()), int(j.min()), int(j.max())


def test_every_layout_of_a_box_means_the_same_box(server: Server, ct: Truth) -> None:
    k = ct.click("liver")[2]
    i0, i1, j0, j1 = box_round(ct, "liver", k)
    layouts: dict[str, dict[str, Any]] = {
        "ascending": {"roi": [i0, i1, j0, j1, k - 2, k + 2], "slice": k},
        "descending": {"roi": [i1, i0, j1, j0, k + 2, k - 2], "slice": k},
        "four": {"roi": [i0, j0, i1, j1], "slice": k},
        "slice in mm": {"roi": [i0, i1, j0, j1, k - 2, k + 2], "slice": 480},
        "no slice": {"roi": [i0, i1, j0, j1, k - 2, k + 2]},
    }
    masks = {
        name: slicer(server.url, "sam_2d", CT, label="liver", foreground=[], client_id=f"box {name}", **roi).mask
        for name, roi in layouts.items()
    }
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, masks["ascending"], err_msg=name)
    found = masks["ascending"][k]
    assert found.any()
    margin = 5
    assert not found[:, : max(0, i0 - margin)].any()
    assert not found[j1 + margin :].any()


def test_an_empty_box_is_no_box(server: Server, ct: Truth) -> None:
    click = ct.click("liver")
    with_it = slicer(server.url, "sam_2d", CT, foreground=[click], slice=click[2], roi=[], client_id="empty box")
    without = slicer(server.url, "sam_2d", CT, foreground=[click], slice=click[2], client_id="no box")
    np.testing.assert_array_equal(with_it.mask, without.mask)


@pytest.mark.parametrize("k", [0, -1])
def test_the_first_and_the_last_slice(server: Server, ct: Truth, k: int) -> None:
    k %= ct.grid.shape[0]
    answer = slicer(server.url, "sam_2d", CT, label="first or last", foreground=[[80, 80, k]], slice=k)
    assert used_slices(answer) == {k}
    assert answer.mask[k, 80, 80] == 1


def test_points_between_voxels(server: Server, ct: Truth) -> None:
    i, j, k = ct.click("liver")
    whole = slicer(server.url, "sam_2d", CT, foreground=[[i, j, k]], slice=k, client_id="whole")
    between = slicer(server.url, "sam_2d", CT, foreground=[[i + 0.2, j - 0.2, k + 0.3]], slice=k, client_id="between")
    assert used_slices(between) == {k}
    assert (whole.mask & between.mask).sum() > 0.8 * whole.mask.sum()


@pytest.mark.parametrize("model", ["sam_2d", "sam_3d"])
@pytest.mark.parametrize("prompts", [{}, {"foreground": [], "background": []}, {"background": [[80, 80, 20]]}])
def test_nothing_to_segment_is_said(server: Server, model: str, prompts: dict[str, Any]) -> None:
    status, detail = refused(server.url, model, CT, label="nothing", client_id=f"nobody {model}", **prompts)
    assert status == 422
    assert "place a point" in detail


def test_negative_clicks_are_kept_to(server: Server, ct: Truth) -> None:
    click = ct.click("liver")
    first = slicer(server.url, "sam_2d", CT, label="liver", foreground=[click], slice=click[2], client_id="negative")
    rows, columns = np.nonzero(first.mask[click[2]])
    far = int(np.hypot(rows - click[1], columns - click[0]).argmax())
    wrong = [int(columns[far]), int(rows[far]), click[2]]
    second = slicer(
        server.url, "sam_2d", CT, label="liver", foreground=[click], background=[wrong], slice=click[2],
        client_id="negative",
    )  # fmt: skip
    assert second.mask[wrong[2], wrong[1], wrong[0]] == 0
    assert second.mask[click[2], click[1], click[0]] == 1


def test_a_deleted_point_is_gone(server: Server, ct: Truth) -> None:
    one, other = ct.click("liver"), ct.click("spleen")
    common = {"label": "liver", "client_id": "deleted point"}
    alone = slicer(server.url, "sam_3d", CT, foreground=[one], **common)
    slicer(server.url, "sam_3d", CT, foreground=[one, other], **common)
    again = slicer(server.url, "sam_3d", CT, foreground=[one], **common)
    np.testing.assert_array_equal(again.mask, alone.mask)


def test_another_label_starts_afresh(server: Server, ct: Truth) -> None:
    liver, spleen = ct.click("liver"), ct.click("spleen")
    fresh = slicer(server.url, "sam_3d", CT, label="spleen", foreground=[spleen], client_id="fresh")
    slicer(server.url, "sam_3d", CT, label="liver", foreground=[liver], client_id="switch")
    switched = slicer(
        server.url, "sam_3d", CT, label="spleen", foreground=[spleen], reset_state=True, client_id="switch"
    )
    np.testing.assert_array_equal(switched.mask, fresh.mask)


def test_viewers_without_names_do_not_mix_images(server: Server, ct: Truth, mr: Truth) -> None:
    on_ct, on_mr = ct.click("liver"), mr.click("liver")
    alone = ohif(server.url, "sam_2d", CT, foreground=[on_ct], background=[])
    ohif(server.url, "sam_2d", MR, foreground=[on_mr], background=[])
    again = ohif(server.url, "sam_2d", CT, foreground=[on_ct], background=[])
    np.testing.assert_array_equal(again.mask, alone.mask)


def test_a_volume_grows_both_ways_and_a_correction_acts_where_it_is(server: Server, ct: Truth) -> None:
    click = ct.click("liver")
    common = {"label": "liver", "client_id": "corrections"}
    first = slicer(server.url, "sam_3d", CT, foreground=[click], **common)
    assert min(used_slices(first)) < click[2] < max(used_slices(first))
    for index in (min(used_slices(first)), max(used_slices(first)), click[2]):
        rows, columns = np.nonzero(first.mask[index] == 0)
        far = int(np.hypot(rows - click[1], columns - click[0]).argmin())  # just outside the mask
        missed = [int(columns[far]), int(rows[far]), index]
        corrected = slicer(server.url, "sam_3d", CT, foreground=[click, missed], **common)
        assert corrected.mask[index, missed[1], missed[0]] == 1
        assert index in corrected.params["slices_prompted"]
        slicer(server.url, "sam_3d", CT, foreground=[click], **common)


def test_z_range_limits_propagation(server: Server, ct: Truth) -> None:
    click = ct.click("liver")
    answer = slicer(
        server.url, "sam_3d", CT, label="liver", foreground=[click], z_range=[click[2] - 2, click[2] + 1],
        client_id="range",
    )  # fmt: skip
    assert used_slices(answer) <= set(range(click[2] - 2, click[2] + 2))
    assert len(used_slices(answer)) > 1


def test_a_second_click_on_a_slice_does_not_run_the_encoder(server: Server, ct: Truth) -> None:
    i, j, k = ct.click("aorta")
    first = slicer(server.url, "sam_2d", CT, label="aorta", foreground=[[i, j, k]], slice=k)
    second = slicer(server.url, "sam_2d", CT, label="aorta", foreground=[[i, j, k], [i + 2, j, k]], slice=k)
    whole = slicer(server.url, "sam_3d", CT, label="aorta", foreground=[[i, j, k]], z_range=[k, k])
    assert first.params["encoded_slices"] == second.params["encoded_slices"] == whole.params["encoded_slices"] > 0
