"""The methods that learn from labelled slices, by the names under which servers and programs offer them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.registry import load_target_decoder
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.ssm.registry import load_ssm_decoder

SSM_SAM = "ssm_sam"

DECODERS: Mapping[str, Callable[..., TargetDecoder]] = {FEWSHOT: load_target_decoder, SSM_SAM: load_ssm_decoder}
"""Method -> what loads its decoder, with the arguments of :func:`ssmsam.encoders.registry.load_encoder`."""
