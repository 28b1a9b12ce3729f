"""The audio example: its data, its files, and what it claims, on small sizes."""

import math
import sys
import wave
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import rnnkit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import audio
import audio_data
import audio_report


@pytest.fixture(autouse=True, scope="module")
def plain():
    """The example sets its number of threads, and kernels in the interpreter would be slow."""
    threads = torch.get_num_threads()
    with rnnkit.backend("torch"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("audio") / "new"
    return audio.main(["--quick", "--out", str(out)]), out


def test_mu_law_keeps_every_class():
    classes = torch.arange(256)
    values = audio_data.decode(classes)
    assert_close(audio_data.encode(values), classes, rtol=0, atol=0)
    assert (values.diff() > 0).all()
    assert_close(values[[0, 255]], torch.tensor([-1.0, 1.0]))
    # The formula at one point, by hand: f(0.1) = ln(26.5) / ln(256) is 0.591, level 202.85.
    assert audio_data.encode(torch.tensor(0.1)) == 203
    assert abs(audio_data.decode(torch.tensor(203)) - (256 ** (151 / 255) - 1) / 255) < 1e-6


def test_mu_law_is_close_and_clamps():
    x = torch.linspace(-1, 1, 4001, dtype=torch.double)
    error = (audio_data.decode(audio_data.encode(x)) - x).abs()
    # Half a level of f, times the slope of its inverse, (1 + mu |x|) ln(1 + mu) / mu at most.
    slope = (1 + 255 * (x.abs() + error)) * math.log(256) / 255
    assert (error <= slope / 255 + 1e-6).all()
    assert audio_data.encode(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_the_floor_is_the_entropy_of_the_noise():
    """An estimate by counting: many draws of the noise on top of the same sound."""
    generator = torch.Generator().manual_seed(0)
    music = audio_data.improvise(1, 20, generator)
    noise = audio_data.NOISE * torch.randn(20000, 20, generator=generator)
    drawn = audio_data.encode(music.clean + noise)
    entropies = [audio_data.unigram_bits(column) for column in drawn.T]
    assert abs(audio_data.floor_bits(music) - sum(entropies) / 20) < 0.02


def test_unigram_bits():
    assert audio_data.unigram_bits(torch.tensor([[1, 1, 7, 9]])) == pytest.approx(1.5)


def test_music_is_the_notes_that_are_told():
    generator = torch.Generator().manual_seed(0)
    music = audio_data.scale(8000, generator)
    assert music.notes[:, ::1000].tolist() == [[0, 1, 2, 3, 3, 2, 1, 0]] * 2
    found = audio_report.shares(music.clean, music.notes)
    assert found.asked > 0.99
    assert found.others < 0.01
    wrong = audio_report.shares(music.clean, (music.notes + 1) % len(audio_data.NOTES))
    # The fifth partial of the first note and the third of the last lie 12 Hz apart.
    assert wrong.asked < 0.03
    assert wrong.others > 0.97
    flute, reed = (audio_report.timbre(row, music.notes[0]) for row in music.clean)
    assert flute == pytest.approx([0.835, 0.165, 0, 0, 0], abs=0.01)
    assert reed == pytest.approx([0.71, 0, 0.232, 0, 0.058], abs=0.01)
    told = music.conditions
    assert told["local_condition"].shape == (2, 4, 8000)
    assert told["global_condition"].tolist() == [[1, 0], [0, 1]]


def test_melodies_start_at_any_moment():
    """A row from a later start is the same music, later."""
    melody, players = torch.tensor([[2, 0, 1]]), torch.tensor([1])
    noise = torch.zeros(1, 2500)
    whole = audio_data.play(melody, players, torch.tensor([0]), noise)
    late = audio_data.play(melody, players, torch.tensor([700]), noise[:, :1800])
    assert_close(late.clean, whole.clean[:, 700:], rtol=0, atol=0)
    assert_close(late.classes, whole.classes[:, 700:], rtol=0, atol=0)


def test_training_learns(quick):
    (bits, unigram, floor), _ = quick[0].trained, quick[1]
    end = sum(bits[-10:]) / 10
    assert len(bits) == audio.QUICK.updates
    assert bits[0] > unigram - 0.5
    assert floor < end < unigram - 1.5


def test_what_is_generated_has_its_energy_at_the_tones(quick):
    shares = quick[0].shares
    assert list(shares) == ["trained on", "generated", "white noise"]
    assert shares["trained on"].asked > 0.98
    # Half a minute of sound is all that the small model has heard.
    assert shares["generated"].asked > 2 * shares["white noise"].asked
    assert shares["generated"].asked > shares["generated"].others
    assert quick[0].sounds.shape == (2, audio.QUICK.generated)
    assert quick[0].sounds.abs().max() <= 1


def test_files(quick):
    report, out = quick
    assert (out / "audio.png").read_bytes().startswith(b"\x89PNG")
    for i, instrument in enumerate(audio_data.INSTRUMENTS):
        with wave.open(str(out / f"{instrument}.wav")) as file:
            form = file.getnchannels(), file.getsampwidth(), file.getframerate()
            assert form == (1, 2, 8000)
            assert file.getnframes() == audio.QUICK.generated
            frames = file.readframes(file.getnframes())
        samples = torch.frombuffer(bytearray(frames), dtype=torch.int16) / 32767
        assert_close(samples, report.sounds[i], rtol=0, atol=1 / 32767)


def test_output(tmp_path, capsys, monkeypatch):
    tiny = audio.QUICK._replace(layers=2, residual=4, skip=4, updates=3, length=50)
    monkeypatch.setattr(audio, "QUICK", tiny)
    first = audio.main(["--quick", "--out", str(tmp_path), "--seed", "3"])
    printed = capsys.readouterr().out
    for words in ("by class frequencies", "update     3:", "white noise", "flute", f"{tmp_path}"):
        assert words in printed
    again = audio.main(["--quick", "--out", str(tmp_path), "--seed", "3"])
    assert_close(again.sounds, first.sounds, rtol=0, atol=0)
    with pytest.raises(SystemExit):
        audio.main(["--fast"])
    assert "--fast" in capsys.readouterr().err


@pytest.mark.slow
def test_the_full_run(tmp_path):
    report = audio.main(["--out", str(tmp_path)])
    bits, _, floor = report.trained
    assert sum(bits[-50:]) / 50 < floor + 0.3
    assert report.shares["generated"].asked > 0.9
    assert report.shares["generated"].others < 0.01
    for rows in report.timbres.values():
        assert rows["generated"] == pytest.approx(rows["trained on"], abs=0.1)
