"""What ``ssm_sam`` adapts from: which starts there are, and going back to an earlier one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ssmsam.fewshot.checkpoint_registry import UnknownCheckpoint
from ssmsam.fewshot.initialisations import SHIPPED, SSM_SAM, Initialisations
from ssmsam.server.routes.common import Annotator, AnyUser, the_app
from ssmsam.service.errors import NotKnown

router = APIRouter(prefix="/starts", tags=["Initialisations"])


@router.get("", summary="All starts, the oldest first; the shipped one answers to that name")
@router.get("/", include_in_schema=False)
def starts(user: AnyUser) -> dict[str, Any]:
    found = _starts()
    return {**_state(found), "starts": {SHIPPED: {}, **found.cards()}}


@router.post("/roll_back", summary="Adapt from the start that was used before; again, and it is undone")
def roll_back(user: Annotator) -> dict[str, Any]:
    found = _starts()
    found.roll_back()
    return _state(found)


@router.post("/{name}/activate", summary="Adapt from a start from now on")
def activate(user: Annotator, name: str) -> dict[str, Any]:
    found = _starts()
    try:
        found.activate(name)
    except UnknownCheckpoint:
        raise NotKnown("start", name, [SHIPPED, *found.cards()]) from None
    return _state(found)


def _state(starts: Initialisations) -> dict[str, Any]:
    state = starts.state
    return {"active": state.active or SHIPPED, "previous": state.previous or SHIPPED}


def _starts() -> Initialisations:
    found = the_app().require_room(SSM_SAM).starts
    assert found is not None
    return found
