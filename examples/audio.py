"""A WaveNet that plays the notes it is told, sample by sample, on raw audio.

    python examples/audio.py --out build/audio

The paper's model: 256 classes of the mu-law, one-hot, in and out; the note of each step is its
local condition, the instrument its global one. It trains on random melodies that are made here, and
then plays a scale on each instrument, from silence, told nothing but the notes. This prints bits a
sample, and where the energy of what it plays lies; it writes a WAV file an instrument and a figure.
Notes start some milliseconds late: a start is one sample of a thousand, and two minutes are short.
"""

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from audio_data import (
    CLASSES,
    INSTRUMENTS,
    NOTES,
    RATE,
    Music,
    decode,
    encode,
    floor_bits,
    improvise,
    one_hot,
    scale,
    unigram_bits,
    write_wav,
)
from audio_report import Report, Trained, compare, draw, timbres
from torch import Tensor

import rnnkit


class Task(NamedTuple):
    """Sizes of the model and of its training."""

    layers: int = 8
    residual: int = 32
    skip: int = 64
    rows: int = 4
    length: int = 1500  # samples of a row
    updates: int = 1200
    rate: float = 6e-3
    generated: int = RATE  # samples: one second


QUICK = Task(layers=7, skip=32, length=1000, updates=160, rate=1e-2, generated=2000)


def make_model(task: Task) -> rnnkit.WaveNet:
    """One block of layers, which sees 2 ** layers + 1 samples."""
    return rnnkit.WaveNet(
        CLASSES,
        CLASSES,
        task.residual,
        task.skip,
        layers=task.layers,
        blocks=1,
        local_channels=len(NOTES),
        global_channels=len(INSTRUMENTS),
    )


def loss_of(model: rnnkit.WaveNet, music: Music) -> Tensor:
    """Cross-entropy in bits of each sample but the first, given those before it and its note."""
    told = music.conditions
    told["local_condition"] = told["local_condition"][..., 1:]
    scores = model(one_hot(music.classes[:, :-1]), **told)
    return F.cross_entropy(scores, music.classes[:, 1:]) / math.log(2)


def train(task: Task, model: rnnkit.WaveNet, generator: torch.Generator) -> Trained:
    """New melodies at every update; prints the bits now and then."""
    heard = improvise(64, task.length, generator)
    unigram, floor = unigram_bits(heard.classes), floor_bits(heard)
    print(f"Bits a sample: {unigram:.2f} by class frequencies, {floor:.2f} is the noise's entropy")
    optimizer = torch.optim.Adam(model.parameters(), task.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, task.rate, total_steps=task.updates, pct_start=0.1
    )
    bits, start = [], time.perf_counter()
    for update in range(1, task.updates + 1):
        loss = loss_of(model, improvise(task.rows, task.length, generator))
        optimizer.zero_grad()
        loss.backward()
        # Early gradients are large now and then.
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bits.append(loss.item())
        if update % max(1, task.updates // 10) == 0:
            seconds = time.perf_counter() - start
            print(f"  update {update:5}: {bits[-1]:.2f} bits, {seconds:.0f} s", flush=True)
    return Trained(bits, unigram, floor)


def generate(model: rnnkit.WaveNet, music: Music, generator: torch.Generator) -> Tensor:
    """As many samples as the music has, (N, L), told its notes and instruments, from silence."""

    def sample(scores: Tensor) -> Tensor:
        drawn = torch.multinomial(scores.softmax(1), 1, generator=generator)
        return F.one_hot(drawn[:, 0], CLASSES).float()

    rows, length = music.classes.shape
    silence = encode(torch.zeros(rows, 1))
    start = time.perf_counter()
    found = model.generate(one_hot(silence), length, sample=sample, **music.conditions)
    seconds = time.perf_counter() - start
    print(f"Generated {rows} times {length} samples, {seconds / length * 1e3:.2f} ms a step")
    return decode(found.argmax(1))


def run(task: Task, seed: int) -> Report:
    """Train, generate, and print what comes out."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make_model(task)
    trained = train(task, model, generator)
    music = scale(task.generated, generator)
    sounds = generate(model, music, generator)
    report = Report(
        trained, music, sounds, compare(music, sounds, generator), timbres(music, sounds)
    )
    print("Energy at the partials of the note that was asked for, and of the other notes:")
    for name, (asked, others) in report.shares.items():
        print(f"  {name:12} {asked:6.1%} {others:6.1%}")
    print("Energy at a note's five partials:")
    for instrument, rows in report.timbres.items():
        for name, values in rows.items():
            columns = " ".join(f"{value:6.1%}" for value in values)
            print(f"  {instrument:6} {name:12} {columns}")
    return report


def main(argv: list[str] | None = None) -> Report:
    """Read the command line, run, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: some seconds, for tests")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/audio"),
        metavar="DIR",
        help="where to write (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    args = parser.parse_args(argv)
    # Generating gains nothing from a second thread, and loses much when its core is busy.
    torch.set_num_threads(1)
    report = run(QUICK if args.quick else Task(), args.seed)
    for instrument, sound in zip(INSTRUMENTS, report.sounds, strict=True):
        write_wav(args.out / f"{instrument}.wav", sound)
    draw(args.out / "audio.png", report)
    print(f"Wrote {args.out}")
    return report


if __name__ == "__main__":
    main()
