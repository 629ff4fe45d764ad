"""OHIF, as it comes with MONAI Label: how its requests are known, and the script that mends its panel from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.annotation.log import name_of
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.images import OpenImage

PAGE = Path(__file__).parent / "ohif_page"
"""The script and its style, served below ``/ohif/ssmsam/``."""
FOLDER = "ssmsam"

_ADDED = (
    f'<link rel="stylesheet" href="/ohif/{FOLDER}/style.css">'
    f'<script type="module" src="/ohif/{FOLDER}/main.js"></script></head>'
)


def replaces_its_screen(options: Mapping[str, Any]) -> bool:
    """Whether a request comes from OHIF's panel: it drops every segment that an automatic model leaves out, and never
    sees the details of an answer. It is known by what it sends; our script names the viewer beside."""
    return "restore_label_idx" in options and (
        options.get("viewer") == "ohif" or not name_of(str(options.get("client_id") or ""))
    )


def labels_by_number(options: Mapping[str, Any], offered: Sequence[str]) -> list[str]:
    """The labels whose numbers a viewer with class prompts sends; none where it sends none. Raises InvalidRequest."""
    numbers = options.get("label_prompt")
    if not numbers:
        return []
    if not isinstance(numbers, list) or not all(str(n).isdigit() and 0 < int(n) <= len(offered) for n in numbers):
        raise InvalidRequest(f"label_prompt has to be a list of numbers from 1 to {len(offered)}, as in /info/")
    return [offered[int(n) - 1] for n in numbers]


def keep_the_rest(
    studies: AnnotatedStudies,
    image: OpenImage,
    answer: np.ndarray,
    values: dict[str, int],
    *,
    offered: Sequence[str],
    client: str,
) -> None:
    """Add what else is on the screen of a viewer that is about to replace all of it.

    What it asked for without a label cannot be told apart there, so it goes, and nobody can accept it any more.

    Args:
        answer: the label map (slices, rows, columns) that is sent; changed in place.
        values: label -> value in it; changed in place.
        offered: the labels as /info/ counts them.
    """
    found = set(values)
    for label, mask in studies.screen(image.source.image_id, client=client).items():
        if label in found:
            continue
        kept = mask & (answer == 0) if label in offered else np.zeros_like(mask)
        if kept.any():
            values[label] = offered.index(label) + 1
            answer[kept] = values[label]
        if mask.any():
            studies.serve(image.source.image_id, kept, label=label, client=client, plane=image.embeddings.plane)


def own_file(path: str) -> Path | None:
    """A file of ours that belongs to OHIF's page; None where the path names none."""
    folder, _, name = path.partition("/")
    files = PAGE.iterdir() if folder == FOLDER else ()
    return next((file for file in files if file.name == name and file.is_file()), None)


@cache
def index_with_script(index: Path, prefix: str = "") -> str:
    """OHIF's page with our script, below a path prefix. Where the page has no head, it stays as it is."""
    return below(prefix, index.read_text(encoding="utf-8").replace("</head>", _ADDED, 1))


def below(prefix: str, text: str) -> str:
    """A page or script of OHIF whose own paths begin with ``prefix``."""
    for own in ("/ohif/", "/proxy/dicom/"):
        for quote in ("'", '"'):
            text = text.replace(f"{quote}{own}", f"{quote}{prefix}{own}")
    return text


def no_archive_page(server: str) -> str:
    """What to read instead of OHIF where the studies are files: it opens DICOM archives only."""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>ssmsam</title>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 44em; margin: 3em auto; padding: 0 1em">
<h1 style="font-size: 1.3em">OHIF needs a DICOM archive</h1>
<p>This server's studies are a folder of files, and OHIF opens studies of a DICOMweb archive only.</p>
<ul>
<li>To try OHIF on the sample studies, stop this server and run <code>make serve-dicom</code>.</li>
<li>With an archive of your own, start with
<code>monailabel start_server --app ssmsam_app --studies http://ARCHIVE/dicom-web</code>.</li>
<li>To annotate these files, connect 3D Slicer (module <em>MONAI Label</em>) to <code>{escape(server)}</code>.</li>
</ul></body></html>"""
