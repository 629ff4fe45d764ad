from __future__ import annotations

from pathlib import Path

import pytest


def test_only_yes_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_app, capsys) -> None:
    monkeypatch.setenv("SSMSAM_CACHE", str(tmp_path))
    monkeypatch.setenv("MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "dicom"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    kept, gone = tmp_path / "heads" / "one.safetensors", tmp_path / "embeddings" / "ab" / "level0.npy"
    for path in (kept, gone):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(2_000_000))
    assert load_app("purge").main([]) == 0
    assert "2.0 MB        1 files  embeddings" in capsys.readouterr().out
    assert gone.exists()
    assert load_app("purge").main(["--yes"]) == 0
    assert "Removed 2.0 MB." in capsys.readouterr().out
    assert kept.exists() and not gone.exists()
