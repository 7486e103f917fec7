"""The examples train both ways, report, and leave pictures behind."""

import pytest

pytest.importorskip("matplotlib", reason="the examples draw pictures")

# Losses of equal gradients drift apart only where a product over all steps rounds a potential to
# the other side of a threshold: one spike of thousands, far below a hundredth in these few batches.
# A wrong gradient moves the loss by as much as training does, which is tenths.
LOSS_TOLERANCE = 0.05
PNG = b"\x89PNG\r\n"


def check(result, chance):
    assert result.last_loss < result.first_loss
    assert result.loss_difference < LOSS_TOLERANCE
    assert result.accuracy_eager > chance
    assert result.accuracy_compiled > chance
    assert result.speedup == result.seconds_eager / result.seconds_compiled
    assert len(result.pictures) == 2
    assert all(path.read_bytes().startswith(PNG) for path in result.pictures)


KINDS = ["LIF", "LIF, 3 soft sweeps", "dynamic decay", "PSN"]


def check_rows(rows):
    """Each kind of neuron fires, learns, and was timed."""
    assert [row.label for row in rows] == KINDS
    for row in rows:
        assert row.last_loss < row.first_loss, row
        assert 0.0 < row.rate < 1.0, row
        assert 0.0 <= row.accuracy <= 1.0
        assert row.seconds > 0.0


@pytest.mark.slow
def test_sequential_digits_are_read_by_four_kinds_of_neurons(capsys):
    """Rows of digits: a table of accuracy, firing rate and time."""
    pytest.importorskip("sklearn", reason="the digits come with it")
    import sequential_digits

    results = sequential_digits.main(["--epochs", "2", "--widths", "8"])

    check_rows(results[8])
    assert "row by row" in capsys.readouterr().out
    x, mask, labels = next(iter(sequential_digits.load(1).test()))
    assert x.shape == (64, len(labels), 1)
    assert mask.shape == x.shape[:2]


@pytest.mark.slow
def test_digits_are_read_by_queues_of_spikes(capsys):
    """Three ways to train, three to run, in one table."""
    pytest.importorskip("sklearn", reason="the digits come with it")
    import asynchronous

    rows = asynchronous.main(["--epochs", "3"])

    trained = ["layered", "async", "layered, then async"]
    assert [row.trained for row in rows] == [way for way in trained for _ in range(3)]
    assert all(row.accuracy > 0.3 for row in rows)
    assert all(row.spikes > 0 for row in rows)
    assert "forward steps" in capsys.readouterr().out


@pytest.mark.slow
def test_vowels_are_told_apart_by_four_kinds_of_neurons(capsys):
    """Speakers by their vowels: the readout sees no padding."""
    pytest.importorskip("aeon", reason="the recordings come with it")
    import vowels

    check_rows(vowels.main(["--epochs", "2"]))
    assert "firing rate" in capsys.readouterr().out
    x, mask, _ = next(iter(vowels.load().test()))
    assert x.shape[0] == vowels.STEPS
    assert (x[mask == 0] == 0).all()
    assert mask.sum(0).min() >= 7


@pytest.mark.slow
def test_speech_is_learned_online(capsys):
    """Three rules learn; the steps of a recording keep less for backward than all of them."""
    pytest.importorskip("aeon", reason="the recordings come with it")
    import online_speech

    rows = online_speech.main(["--epochs", "3"])

    assert [row.label for row in rows] == list(online_speech.WAYS)
    assert all(row.losses[-1] < row.losses[0] for row in rows)
    assert all(row.accuracy > 0.3 for row in rows)
    assert rows[2].saved < rows[0].saved / 8
    assert "kept for backward" in capsys.readouterr().out


@pytest.mark.slow
def test_language_model_runs_step_by_step_as_it_does_at_once(capsys):
    """The steps of a stream are the parallel form: the same spikes, logits within the tolerance."""
    import language

    result = language.main(["--steps", "6", "--length", "400"])

    assert result.bits_after < result.bits_before
    for dtype, found in result.agreement.items():
        assert found.length == 400
        assert found.spikes == 400 * 2 * 96
        assert found.flips == 0, dtype
        assert found.difference <= language.TOLERANCE[dtype]
    assert "of 76800" in capsys.readouterr().out


@pytest.mark.slow
def test_speech_trains_serial_and_compiled(tmp_path, capsys):
    """The network with one loop over time learns, compiled as well as not, and shows its plan."""
    pytest.importorskip("aeon", reason="the recordings come with it")
    import speech

    result = speech.main(["--epochs", "3", "--seed", "1", "--out", str(tmp_path)])

    check(result, chance=1 / speech.SPEAKERS)
    assert "speech.py" in capsys.readouterr().out


@pytest.mark.slow
def test_speech_is_recognised_in_c(tmp_path, capsys):
    """The exported programs give the answers of PyTorch; a spike on the threshold may tip one."""
    pytest.importorskip("aeon", reason="the recordings come with it")
    import deploy_speech

    torch_row, floats, whole = deploy_speech.main(["--epochs", "3", "--out", str(tmp_path)])

    assert torch_row.same_answers == 370
    assert torch_row.accuracy > 0.5
    assert floats.same_answers >= 368
    assert abs(floats.accuracy - torch_row.accuracy) <= 2 / 370
    assert whole.same_answers >= 340
    assert whole.weights < floats.weights / 3
    assert "370 recordings" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train_as_one_does(capsys):
    """Both ranks have the losses of the one process."""
    pytest.importorskip("sklearn", reason="the digits come with it")
    import two_processes

    one, first, second = two_processes.main(["--updates", "4"]).values()

    assert first.losses == second.losses == pytest.approx(one.losses, abs=LOSS_TOLERANCE)
    assert one.losses[-1] < one.losses[0]
    assert "rank 1 of two" in capsys.readouterr().out


def test_digits_trains_serial_and_compiled(tmp_path, capsys):
    """The network with a loop per layer learns, compiled as well as not, and shows its plan."""
    pytest.importorskip("sklearn", reason="the digits come with it")
    import digits

    result = digits.main(["--epochs", "1", "--seed", "1", "--out", str(tmp_path)])

    check(result, chance=1 / digits.DIGITS)
    assert "test accuracy" in capsys.readouterr().out


def test_speech_pads_batches_and_masks_the_padding():
    """Each batch is as long as its longest sequence, and the mask counts the steps of each."""
    pytest.importorskip("aeon", reason="the recordings come with it")
    import speech

    data = speech.Speech()
    batches = list(speech.pad_batches(data.train, data.train_labels, speech.torch.arange(60)))
    lengths = [len(sequence) for sequence in data.train[:60]]

    assert [x.shape[0] for (x, _), _ in batches] == [max(lengths[:30]), max(lengths[30:])]
    assert [int(n) for (_, mask), _ in batches for n in mask.sum(0)] == lengths


def test_speech_readout_does_not_see_the_padding():
    """A sequence gives the same logits alone and padded in a batch."""
    pytest.importorskip("aeon", reason="the recordings come with it")
    import speech

    data = speech.Speech()
    speech.torch.manual_seed(0)
    model = speech.SpeechNet()
    ((x, mask), _) = next(iter(speech.pad_batches(data.test, data.test_labels, range_of(2))))
    together = model(x, mask)
    apart = [
        model(*next(iter(speech.pad_batches([sequence], data.test_labels[:1], range_of(1))))[0])
        for sequence in data.test[:2]
    ]

    assert x.shape[0] > min(len(sequence) for sequence in data.test[:2])
    # A product over another number of rows may round its sums in another order.
    speech.torch.testing.assert_close(together, speech.torch.cat(apart), rtol=0, atol=1e-5)


def range_of(n):
    import torch

    return torch.arange(n)
