"""OHIF's page with the script that the server adds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ssmsam.server.clients.ohif import PAGE, index_with_script, own_file, replaces_its_screen
from ssmsam.server.routes import pages
from ssmsam.server.routes.common import the_app


class FolderApp:
    """An app over a folder."""

    def datastore(self) -> SimpleNamespace:
        return SimpleNamespace(files=SimpleNamespace(remote=False))


def test_the_script_is_added_once_and_the_page_stays_as_it_is(tmp_path: Path) -> None:
    index = tmp_path / "index.html"
    index.write_text("<html><head><title>é</title></head><body>x</body></html>", encoding="utf-8")
    page = index_with_script(index)
    assert page.count("/ohif/ssmsam/main.js") == 1 and page.endswith("</head><body>x</body></html>") and "é" in page
    bare = tmp_path / "bare.html"
    bare.write_text("no head")
    assert index_with_script(bare) == "no head"


def test_the_bundled_page_takes_the_script() -> None:
    assert "/ohif/ssmsam/main.js" in index_with_script(pages.OHIF / "index.html")


@pytest.mark.parametrize("path", ["ssmsam/../ohif.py", "ssmsam/", "ssmsam", "main.js", "ssmsam/nothing.js"])
def test_nothing_else_is_ours(path: str) -> None:
    assert own_file(path) is None
    assert own_file("ssmsam/main.js") == PAGE / "main.js"


def test_everything_that_the_script_imports_is_there() -> None:
    text = "".join(file.read_text() for file in PAGE.glob("*.js"))
    assert text.count("from './") >= 3
    assert all(f"from './{name}'" in text for name in ("bar.js", "server.js", "viewer.js"))
    assert "http://" not in text and "https://" not in text, "nothing is loaded from elsewhere"


def test_on_a_folder_of_files_the_page_says_how_to_go_on() -> None:
    app = FastAPI()
    app.include_router(pages.router)
    app.dependency_overrides[the_app] = FolderApp
    answer = TestClient(app).get("/ohif/")
    assert answer.status_code == 200 and "make serve-dicom" in answer.text and "http://testserver/" in answer.text
    script = TestClient(app).get("/ohif/ssmsam/main.js")
    assert script.status_code == 200 and "javascript" in script.headers["content-type"]


def test_the_panel_is_known_by_what_it_sends() -> None:
    assert replaces_its_screen({"restore_label_idx": False})
    assert replaces_its_screen({"restore_label_idx": False, "viewer": "ohif", "client_id": "ohif-1"})
    assert not replaces_its_screen({"restore_label_idx": False, "client_id": "a script"})
    assert not replaces_its_screen({"viewer": "ohif", "client_id": "ohif-1"})
