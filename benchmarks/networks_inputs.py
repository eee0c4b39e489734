"""What networks.py feeds to networks whose own data is not at hand: pictures, pages, lines of text, speech
and bytes, drawn from a seed.

They are natural-like, not natural: energy falls with frequency as in photographs and speech, there are edges
and silences, and every channel of a network has something to answer. An accuracy cannot be read from them;
how near two files of one network compute to each other can.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Generator = np.random.Generator
TEXT = "the quick brown fox jumps over lazy dogs while seven wizards brew potions in October 1984 and sell 25"
WORDS = TEXT.split()


def picture(generator: Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth random fields with the spectrum of photographs, and ellipses and beams in front of them; float32
    [channels, height, width], 0..1.
    """
    field = sum(_octave(generator, height, width, channels, 2**level) / 2**level for level in range(1, 7))
    ground = (field - field.min()) / (np.ptp(field) + 1e-9)
    rows, columns = np.mgrid[0:height, 0:width]
    for _ in range(int(generator.integers(4, 10))):
        middle = generator.uniform(0, 1, 2) * (height, width)
        size = generator.uniform(0.05, 0.4, 2) * (height, width)
        turn = generator.uniform(0, np.pi)
        y, x = rows - middle[0], columns - middle[1]
        along, across = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
        inside = (along / size[0]) ** 2 + (across / size[1]) ** 2 < 1
        if generator.random() < 0.4:
            inside = (abs(along) < size[0]) & (abs(across) < size[1])
        colour = generator.uniform(0, 1, (channels, 1))
        shade = 0.7 + 0.3 * ground[:, inside]
        ground[:, inside] = colour * shade
    noise = generator.normal(0, generator.uniform(0, 0.03), ground.shape)
    return (ground + noise).clip(0, 1).astype(np.float32)


def _octave(generator: Generator, height: int, width: int, channels: int, cells: int) -> np.ndarray:
    """Random values on a grid of `cells` squared, enlarged smoothly; float64 [channels, height, width]."""
    grids = generator.standard_normal((channels, cells + 1, cells + 1)).astype(np.float32)
    grids += 2 * generator.standard_normal((1, cells + 1, cells + 1)).astype(np.float32)  # light and shadow
    enlarged = [
        np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)) for grid in grids
    ]
    return np.stack(enlarged).astype(np.float64)


def page(generator: Generator, height: int, width: int) -> np.ndarray:
    """Lines of dark text on light paper, some with a picture between them; float32 [3, height, width], 0..1."""
    lines = max(int(height / generator.uniform(24, 60)), 1)
    written = _written(generator, (width, height), lines, max(int(0.55 * height / lines), 8))
    if generator.random() < 0.3 and min(height, width) >= 64:
        h, w = height // 3, width // 2
        top, left = int(generator.integers(0, height - h)), int(generator.integers(0, width - w))
        written[:, top : top + h, left : left + w] = picture(generator, h, w)
    return written


def turned(generator: Generator, image: np.ndarray) -> np.ndarray:
    """By a quarter, half or no turn if it is square, by half a turn or none else; [channels, height, width]."""
    square = image.shape[1] == image.shape[2]
    quarters = int(generator.integers(4)) if square else 2 * int(generator.integers(2))
    return np.ascontiguousarray(np.rot90(image, quarters, (1, 2)))


def line(generator: Generator, height: int, width: int) -> np.ndarray:
    """One line of text that fills the picture; float32 [3, height, width], 0..1."""
    return _written(generator, (width, height), 1, int(height * generator.uniform(0.45, 0.75)))


def _written(generator: Generator, size: tuple[int, int], lines: int, font_px: int) -> np.ndarray:
    paper, ink = generator.integers(170, 256, 3), generator.integers(0, 100, 3)
    image = Image.new("RGB", size, tuple(map(int, paper)))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(font_px)
    for number in range(lines):
        place = (int(generator.integers(1, 12)), int((number + 0.15) * size[1] / lines))
        words = " ".join(generator.choice(WORDS, int(generator.integers(2, 12))))
        draw.text(place, words, fill=tuple(map(int, ink)), font=font)
    noise = generator.normal(0, generator.uniform(0, 15), (size[1], size[0], 3))
    return ((np.asarray(image) + noise).clip(0, 255) / 255).transpose(2, 0, 1).astype(np.float32)


def speech(generator: Generator, samples: int, rate: int = 16000) -> np.ndarray:
    """A gliding voice through two resonances, hissing consonants and pauses; float32 [samples], -1..1."""
    time = np.arange(samples) / rate
    pitch = generator.uniform(90, 240) * np.exp(0.2 * np.sin(2 * np.pi * generator.uniform(0.5, 3) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = generator.uniform((250, 900), (850, 2600))
    voice = np.zeros(samples)
    for harmonic in range(1, 25):
        frequency = harmonic * pitch
        gain = sum(1 / (1 + ((frequency - centre) / 120) ** 2) for centre in formants) / harmonic**0.5
        voice += np.where(frequency < rate / 2, gain, 0) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * generator.uniform(2, 6) * time + generator.uniform(0, 6)), 0, None)
    hiss = np.diff(generator.standard_normal(samples + 1)) * np.clip(0.4 - syllables, 0, None)
    sound = syllables * voice + 0.3 * hiss + 0.003 * generator.standard_normal(samples)
    return (generator.uniform(0.1, 0.9) * sound / (abs(sound).max() + 1e-9)).astype(np.float32)


def content(generator: Generator, length: int) -> np.ndarray:
    """The bytes of a file of text, numbers or noise; int32 [length], 0..255."""
    kind = generator.integers(3)
    if kind == 0:
        return generator.integers(0, 256, length, dtype=np.int32)
    words = WORDS if kind == 1 else [f"{number:.3f}," for number in generator.standard_normal(50)]
    text = " ".join(generator.choice(words, length // 2 + 1)).encode()
    return np.frombuffer(text[:length].ljust(length), np.uint8).astype(np.int32)


def smooth(generator: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Correlated along the first axis, for features and states; float32, about standard normal."""
    noise = generator.standard_normal(shape)
    for row in range(1, shape[0] if shape else 0):
        noise[row] = 0.8 * noise[row - 1] + 0.6 * noise[row]
    return noise.astype(np.float32)
