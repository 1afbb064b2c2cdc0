"""A Dockerfile as stages of instructions, and its steps taken without Docker, in one folder.

All stages share the folder: what one copies from another at the same path is there already.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from dockerfile_parse import DockerfileParser

from tests.deployment.files import DOCKERFILE
from tests.server.process import ROOT

NOT_RUN = ("groupadd", "useradd", "apt-get")
"""Programs that change the machine itself."""

IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
"""What .dockerignore keeps out of the folders that are copied."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """The value as JSON, where it is in the exec form, or split at spaces."""
        if self.value.startswith("["):
            return list(map(str, json.loads(self.value)))
        return self.value.split()


@dataclass
class Stage:
    """What stands from one FROM to the next."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Return the instructions of a name."""
        return [each for each in self.instructions if each.name == name]

    def one(self, name: str) -> str:
        """Return the value of the one instruction of a name."""
        (found,) = self.all(name)
        return found.value

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        words = [word for each in self.all("ENV") for word in each.words]
        return dict(word.split("=", 1) for word in words)


def stages() -> list[Stage]:
    """Return the stages of the Dockerfile."""
    found: list[Stage] = []
    for each in DockerfileParser(fileobj=BytesIO(DOCKERFILE.read_bytes())).structure:
        name, value = each["instruction"], each["value"]
        if name == "FROM":
            found.append(Stage(value.partition(" AS ")[2]))
        elif found and name != "COMMENT":
            found[-1].instructions.append(Instruction(name, value))
    return found


def copied(instruction: Instruction) -> tuple[list[str], str]:
    """Return what a COPY copies from the context, and where to."""
    *sources, target = [word for word in instruction.words if not word.startswith("--")]
    return ([] if "--from=" in instruction.value else sources), target


class Build:
    """The steps of the Dockerfile, taken in a folder that stands for the image's root."""

    PLACES = ("/src", "/wheels", "/opt/curvserve", "/data")

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root = root
        self.environment = dict(environment)

    def here(self, text: str) -> str:
        """Return a text with the image's paths as they are here."""
        for place in self.PLACES:
            text = re.sub(rf"(?<![\w.]){place}(?=[/:\s\"']|$)", f"{self.root}{place}", text)
        return text

    def take(self, stage: Stage, without: tuple[str, ...] = ()) -> Path:
        """Take the steps of a stage, and return the folder that it ends in.

        Args:
            stage: the stage.
            without: instructions that are left out.
        """
        folder = self.root
        for each in stage.instructions:
            if each.name in without:
                continue
            if each.name == "WORKDIR":
                folder = Path(self.here(each.value))
                folder.mkdir(parents=True, exist_ok=True)
            elif each.name == "COPY":
                sources, target = copied(each)
                for source in sources:
                    _copy(ROOT / source, folder / target)
            elif each.name == "RUN" and not any(program in each.value for program in NOT_RUN):
                self.run(each.value, folder)
        return folder

    def run(self, command: str, folder: Path) -> None:
        """Run a command of the image in a folder."""
        subprocess.run(self.here(command), shell=True, check=True, cwd=folder, env=self.environment)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=IGNORED)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def tracked(folder: str) -> set[str]:
    """Return the files of a folder that git keeps."""
    names = subprocess.check_output(["git", "ls-files", folder], cwd=ROOT, text=True)
    return {name for name in names.splitlines() if os.path.exists(ROOT / name)}
