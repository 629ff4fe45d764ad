"""What pyproject.toml cannot say: some sample volumes go into the wheel, from where they stand in the repository."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

SAMPLES = ("ct_01.nii.gz", "mr_04.nii.gz")
"""Those that `ssmsam demo` shows; all five would make the wheel larger than 25 MB."""


class BuildWithSamples(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ("abdomen", "abdomen_labels"):
            target = Path(self.build_lib, "ssmsam", "sample_datasets", folder)
            target.mkdir(parents=True, exist_ok=True)
            for name in SAMPLES:
                copyfile(Path("sample-datasets", folder, name), target / name)


setup(cmdclass={"build_py": BuildWithSamples})
