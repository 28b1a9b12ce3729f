"""Melodies of two made-up instruments, as sound and as the classes of the mu-law."""

import math
import wave
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RATE = 8000
CLASSES = 256
MU = CLASSES - 1
# C4, E flat, F sharp and A: of their first five partials no two are closer than 10 Hz.
NOTES = (261.63, 311.13, 369.99, 440.0)
# Amplitudes of the partials, at 1, 2, 3, ... times a note's frequency.
INSTRUMENTS = {"flute": (0.45, 0.2, 0.0, 0.0, 0.0), "reed": (0.35, 0.0, 0.2, 0.0, 0.1)}
PARTIALS = 5
NOTE = 1000  # samples of a note, an eighth of a second
DECAY = 800  # samples in which a note falls by e
NOISE = 0.01


def encode(x: Tensor) -> Tensor:
    """Classes 0 .. 255 (int64) of x in [-1, 1], of any shape.

    van den Oord et al.: "WaveNet", 2016 (arXiv:1609.03499), section 2.2:
    f(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu), mu = 255, rounded to the nearest of 256 levels.
    """
    f = x.sign() * torch.log1p(MU * x.abs()) / math.log1p(MU)
    return ((f.clamp(-1, 1) + 1) / 2 * MU).round().long()


def decode(classes: Tensor) -> Tensor:
    """The value in [-1, 1] (float32) in the middle of each class: the inverse of f."""
    f = 2 * classes.float() / MU - 1
    return f.sign() * torch.expm1(f.abs() * math.log1p(MU)) / MU


def one_hot(classes: Tensor) -> Tensor:
    """(N, L) to (N, 256, L), float32."""
    return F.one_hot(classes, CLASSES).mT.float()


class Music(NamedTuple):
    """Rows of melodies.

    clean: (N, L), without noise; classes: (N, L), of the sound with noise.
    notes: (N, L), which of NOTES sounds; instruments: (N,), which of INSTRUMENTS plays.
    """

    clean: Tensor
    classes: Tensor
    notes: Tensor
    instruments: Tensor

    @property
    def conditions(self) -> dict[str, Tensor]:
        """What a WaveNet is told: the note of each step, and the instrument."""
        return {
            "local_condition": F.one_hot(self.notes, len(NOTES)).mT.float(),
            "global_condition": F.one_hot(self.instruments, len(INSTRUMENTS)).float(),
        }


def play(melodies: Tensor, instruments: Tensor, start: Tensor, noise: Tensor) -> Music:
    """Melodies (N, M), notes of NOTES, from the sample `start` (N,) on.

    noise: (N, L), of standard deviation 1. Every note starts at phase zero.
    """
    step = start[:, None] + torch.arange(noise.shape[1])
    notes, age = melodies.gather(1, step // NOTE), step % NOTE
    phase = 2 * math.pi * torch.tensor(NOTES)[notes] * age / RATE
    partials = torch.tensor([*INSTRUMENTS.values()])[instruments]
    order = torch.arange(1, PARTIALS + 1)
    tones = (partials[:, None] * torch.sin(order * phase[..., None])).sum(2)
    clean = torch.exp(-age / DECAY) * tones
    return Music(clean, encode(clean + NOISE * noise), notes, instruments)


def improvise(rows: int, L: int, generator: torch.Generator) -> Music:
    """Random notes by random instruments, from a random moment on."""
    notes = torch.randint(len(NOTES), (rows, L // NOTE + 2), generator=generator)
    players = torch.randint(len(INSTRUMENTS), (rows,), generator=generator)
    start = torch.randint(NOTE, (rows,), generator=generator)
    return play(notes, players, start, torch.randn(rows, L, generator=generator))


def scale(L: int, generator: torch.Generator) -> Music:
    """Up and down all notes, once by each instrument."""
    up = torch.arange(len(NOTES))
    rows = len(INSTRUMENTS)
    melody = torch.cat([up, up.flip(0)]).repeat(L // NOTE + 1).expand(rows, -1)
    zeros = torch.zeros(rows, dtype=torch.long)
    return play(melody, torch.arange(rows), zeros, torch.randn(rows, L, generator=generator))


def unigram_bits(classes: Tensor) -> float:
    """Bits a sample of a model that knows how often each class comes, and nothing else."""
    p = torch.bincount(classes.flatten(), minlength=CLASSES).double() / classes.numel()
    return float(torch.special.entr(p).sum() / math.log(2))


def floor_bits(music: Music) -> float:
    """Bits a sample of a model that knows all but the noise: no model can do with fewer."""
    edges = decode(torch.arange(CLASSES - 1) + 0.5)
    bits = []
    for row in music.clean:
        below = torch.special.ndtr((edges - row[:, None]).double() / NOISE)
        p = F.pad(F.pad(below, (0, 1), value=1.0), (1, 0)).diff(dim=1)
        bits.append(torch.special.entr(p).sum(1).mean() / math.log(2))
    return float(torch.stack(bits).mean())


def write_wav(path: Path, sound: Tensor) -> None:
    """One channel of 16 bits; sound (L,) in [-1, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (sound.clamp(-1, 1) * 32767).round().short()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.numpy().astype("<i2").tobytes())
