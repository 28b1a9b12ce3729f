"""What the sound of a trained WaveNet shows: where its energy lies, and pictures of it."""

from pathlib import Path
from typing import NamedTuple

import torch
from audio_data import CLASSES, INSTRUMENTS, NOTE, NOTES, PARTIALS, RATE, Music, decode
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# A window of a note's length has bins of 8 Hz, and its own peak is two of them wide on each side.
WIDTH = 2.0 * RATE / NOTE


class Shares(NamedTuple):
    """Of the energy of all notes: in the partials of the note asked for, and of the others."""

    asked: float
    others: float


class Trained(NamedTuple):
    """Bits a sample while training, and what a model without history and one with all knowledge
    have."""

    bits: list[float]
    unigram: float
    floor: float


class Report(NamedTuple):
    """All that a run found out.

    sounds, scale: what was generated and what was to be played, (instruments, L) each.
    """

    trained: Trained
    scale: Music
    sounds: Tensor
    shares: dict[str, Shares]
    timbres: dict[str, dict[str, list[float]]]


def spectra(sound: Tensor) -> Tensor:
    """Energies (N, notes, bins) of each note of sound (N, L), L a multiple of NOTE."""
    notes = sound.unflatten(1, (-1, NOTE)) * torch.hann_window(NOTE)
    return torch.fft.rfft(notes).abs().square()


def near(frequency: float) -> Tensor:
    """Which bins belong to a tone."""
    return (torch.fft.rfftfreq(NOTE, 1 / RATE) - frequency).abs() <= WIDTH


def shares(sound: Tensor, notes: Tensor) -> Shares:
    """How the energy of sound (N, L) lies to the partials of notes (N, L), each NOTE long."""
    energy = spectra(sound)
    combs = torch.stack(
        [torch.stack([near(k * f) for k in range(1, PARTIALS + 1)]).any(0) for f in NOTES]
    )
    asked = combs[notes[:, ::NOTE]]
    others = combs.any(0) & ~asked
    total = energy.sum()
    return Shares(*(float((energy * where).sum() / total) for where in (asked, others)))


def timbre(sound: Tensor, notes: Tensor) -> list[float]:
    """Of the energy at the partials of sound (L,), the share of each."""
    energy = spectra(sound[None])[0]
    found = torch.stack(
        [
            torch.stack([(row * near(k * NOTES[note])).sum() for k in range(1, PARTIALS + 1)])
            for row, note in zip(energy, notes[::NOTE].tolist(), strict=True)
        ]
    ).sum(0)
    return (found / found.sum()).tolist()


def compare(music: Music, sounds: Tensor, generator: torch.Generator) -> dict[str, Shares]:
    """Shares of the music, of what was generated for it, and of white noise."""
    whole = sounds.shape[1] // NOTE * NOTE
    notes = music.notes[:, :whole]
    rows = {
        "trained on": decode(music.classes),
        "generated": sounds,
        "white noise": torch.randn(sounds.shape, generator=generator),
    }
    return {name: shares(row[:, :whole], notes) for name, row in rows.items()}


def timbres(music: Music, sounds: Tensor) -> dict[str, dict[str, list[float]]]:
    """By instrument, the timbre of the music and of what was generated."""
    whole = sounds.shape[1] // NOTE * NOTE
    rows = {"trained on": decode(music.classes), "generated": sounds}
    return {
        instrument: {
            name: timbre(row[i, :whole], music.notes[i, :whole]) for name, row in rows.items()
        }
        for i, instrument in enumerate(INSTRUMENTS)
    }


def draw(path: Path, report: Report) -> None:
    """Spectrograms on top, trained on and generated; the training below."""
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[1, 0.8])
    rows = {"trained on": decode(report.scale.classes), "generated": report.sounds}
    first = None
    for i, instrument in enumerate(INSTRUMENTS):
        for j, (name, sound) in enumerate(rows.items()):
            first = figure.add_subplot(grid[0, 2 * i + j], sharex=first, sharey=first)
            draw_spectrogram(first, sound[i])
            first.set(title=f"{instrument}, {name}", xlabel="seconds")
            if i + j == 0:
                first.set(ylabel="Hz")
    draw_bits(figure.add_subplot(grid[1, :2]), report.trained)
    draw_sound(figure.add_subplot(grid[1, 2:]), report)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def draw_spectrogram(axes: Axes, sound: Tensor) -> None:
    """Decibels below the loudest, of windows of 256 samples."""
    found = torch.stft(sound, 512, 100, 256, torch.hann_window(256), return_complex=True).abs()
    decibels = 20 * torch.log10(found / found.max() + 1e-9)
    extent = (0, len(sound) / RATE, 0, RATE / 2)
    axes.imshow(
        decibels.numpy(),
        extent=extent,
        vmin=-45,
        vmax=0,
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
    )
    axes.set_ylim(0, 2500)


def draw_bits(axes: Axes, trained: Trained) -> None:
    """Cross-entropy by update, between what is trivial and what is possible."""
    smooth = torch.tensor(trained.bits).unfold(0, min(10, len(trained.bits)), 1).mean(1)
    axes.plot(smooth, color="#1b7a3d", label="WaveNet (mean of ten updates)")
    axes.axhline(trained.unigram, color="#a01c1c", ls="--", label="class frequencies alone")
    axes.axhline(trained.floor, color="0.4", ls=":", label="the noise's entropy: the floor")
    axes.set(title=f"Cross-entropy, {CLASSES} classes", xlabel="update", ylabel="bits a sample")
    axes.set_ylim(0, None)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def draw_sound(axes: Axes, report: Report) -> None:
    """Some milliseconds from the middle of the second note."""
    start = NOTE + NOTE // 2
    part = slice(start, start + 160)
    milliseconds = torch.arange(160) / RATE * 1000
    for i, (instrument, color) in enumerate(zip(INSTRUMENTS, ("#4060c0", "#e07000"), strict=True)):
        axes.plot(milliseconds, report.sounds[i, part], color=color, label=instrument)
    axes.set(title="Generated: 20 ms of the second note", xlabel="milliseconds", ylim=(-0.6, 0.8))
    axes.legend(fontsize="small", loc="upper right")
    axes.grid(alpha=0.3)
