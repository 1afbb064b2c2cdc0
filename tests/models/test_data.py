"""The images to train from: the bundled digits and real MNIST."""

import hashlib
import re
from importlib import resources
from pathlib import Path

import numpy
import pytest
import torch
from torchvision import transforms

from curvserve.data import load_digits, load_mnist, normalise
from curvserve.data.normalise import normalise_colours
from tests.gpu import on_gpu
from tests.models.idx import write_mnist


def test_the_digits_look_like_mnist() -> None:
    images, labels = load_digits("train")
    assert (images.dtype, images.shape) == (torch.uint8, (1500, 1, 28, 28))
    assert (labels.dtype, labels.shape) == (torch.int64, (1500,))
    assert images.max() > 200 and images.min() == 0


def test_no_digit_is_in_both_parts_and_none_is_lost() -> None:
    parts = [load_digits(part)[0].flatten(1) for part in ("train", "test")]
    distinct = [{row.numpy().tobytes() for row in part} for part in parts]
    assert [len(part) for part in parts] == [1500, 297]
    assert not distinct[0] & distinct[1]


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_class_has_its_share_in_each_part(part: str) -> None:
    labels = load_digits(part)[1]
    assert torch.bincount(labels, minlength=10).min() >= 0.07 * len(labels)


def test_another_part_is_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'test'"):
        load_digits("validation")  # type: ignore[arg-type]  # wrong on purpose


def test_the_attribution_names_the_very_file_that_is_bundled() -> None:
    folder = resources.files("curvserve.data")
    digest = hashlib.sha256(folder.joinpath("digits.gz").read_bytes()).hexdigest()
    text = folder.joinpath("ATTRIBUTION.md").read_text()
    assert digest in text
    assert re.search("Alpaydin.*Kaynak", text) and "CC BY 4.0" in text


def test_normalise_gives_the_bits_of_torchvisions_transforms() -> None:
    images, _ = load_digits("test")
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    expected = torch.stack([steps(image.permute(1, 2, 0).numpy()) for image in images])
    assert torch.equal(normalise(images), expected)


def test_mnist_is_read_from_its_idx_files(tmp_path: Path) -> None:
    images = numpy.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=numpy.uint8)
    labels = numpy.arange(7, dtype=numpy.uint8)
    write_mnist(tmp_path, train=(images, labels), test=(images[:2], labels[:2]))
    found, classes = load_mnist(tmp_path, "train")
    assert torch.equal(found, torch.from_numpy(images)[:, None])
    assert classes.tolist() == labels.tolist() and classes.dtype == torch.int64
    assert len(load_mnist(tmp_path, "test")[0]) == 2


def test_a_folder_without_mnist_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "MNIST" / "raw"))):
        load_mnist(tmp_path, "train")


@on_gpu
def test_a_gpu_normalises_to_the_bits_of_a_cpu() -> None:
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(normalise(grey.cuda()).cpu(), normalise(grey))
    colours, of = grey.expand(1, 3, 16, 16), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert torch.equal(
        normalise_colours(colours.cuda(), *of).cpu(), normalise_colours(colours, *of)
    )
