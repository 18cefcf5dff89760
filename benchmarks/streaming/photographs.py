"""Folders of JPEG files like photographs, made from random numbers or from photographs of your own."""

from pathlib import Path

import numpy as np
from PIL import Image

from dl.errors import UserError

CLASSES = ("first", "second", "third", "fourth")
HEIGHT, WIDTH = 375, 500  # pixels; the common size of ImageNet's files
QUALITY = 90


def photograph(seed: int) -> Image.Image:
    """Returns a picture with the spectrum of a photograph: its amplitudes fall with the frequency.

    The sizes vary by up to an eighth, as those of photographs do.
    """
    rng = np.random.default_rng(seed)
    height, width = (int(size * rng.uniform(0.875, 1.125)) for size in (HEIGHT, WIDTH))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    phases = rng.uniform(0.0, 2.0 * np.pi, (3, *frequency.shape))
    pixels = np.fft.irfft2(np.exp(1j * phases) / frequency, s=(height, width))
    pixels = (pixels[:1] + 0.3 * pixels).transpose(1, 2, 0)  # colours vary less than brightness
    low, high = np.quantile(pixels, (0.01, 0.99))
    return Image.fromarray((np.clip((pixels - low) / (high - low), 0.0, 1.0) * 255).astype(np.uint8))


def write_folder(
    folder: Path, num_files: int, photographs: Path | None = None, num_different: int = 100
) -> int:
    """Writes `num_files` JPEG files in a folder for each class, and returns their size in bytes.

    Args:
      folder: a new folder.
      num_files: number of files, each a file of its own on the disk.
      photographs: folder of JPEG files to copy. `None` means pictures that `photograph` makes.
      num_different: number of different pictures that are made.

    Raises:
      UserError: the folder has no photographs.
    """
    if photographs is not None:
        contents = [path.read_bytes() for path in sorted(photographs.rglob("*.jpg"))]
        if not contents:
            raise UserError(f"{photographs} holds no file NAME.jpg; give a folder of JPEG photographs")
    else:
        contents = []
        for seed in range(min(num_different, num_files)):
            path = folder.with_suffix(".jpg")
            photograph(seed).save(path, quality=QUALITY)
            contents.append(path.read_bytes())
            path.unlink()
    total = 0
    for number in range(num_files):
        path = folder / CLASSES[number % len(CLASSES)] / f"{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        total += path.write_bytes(contents[number % len(contents)])
    return total
