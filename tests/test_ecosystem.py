"""Models of other libraries with their layers swapped: their results and gradients do not move."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from layer_variants import assert_same, close, randn, run

import rnnkit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@pytest.fixture
def encodec():
    """transformers' Encodec, small: 2 layers of 16 units in its encoder and in its decoder."""
    transformers = pytest.importorskip("transformers")
    config = transformers.EncodecConfig(
        hidden_size=8,
        num_filters=4,
        upsampling_ratios=[4, 2],
        codebook_size=16,
        target_bandwidths=[12.0, 24.0],
    )
    torch.manual_seed(0)
    model = transformers.EncodecModel(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("codebook.embed"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
    return model


ENCODEC_LSTMS = ["encoder.layers.7.lstm", "decoder.layers.1.lstm"]


@every_dtype
def test_encodec(encodec, dtype):
    """What it makes of sound, codes included; and, past the codes, which have no gradient, the
    gradients of all parameters of the encoder and the decoder."""
    theirs, ours = encodec.to(dtype), copy.deepcopy(encodec.to(dtype))
    report = rnnkit.convert(ours, return_report=True)[1]
    assert list(report.swapped) == ENCODEC_LSTMS and not report.kept
    x = randn(2, 1, 96, dtype=dtype)
    with torch.no_grad():
        expected, found = (m(x, bandwidth=24.0) for m in (theirs, ours))
    assert expected.audio_codes.unique().numel() > 2
    assert torch.equal(found.audio_codes, expected.audio_codes)
    tolerance = TOLERANCES[dtype]
    close(found.audio_values, expected.audio_values, tolerance, "audio")

    def through(model, x):
        return model.decoder(model.encoder(x))

    tensors = {"x": x}
    assert_same(
        run(ours, through, tensors, "default"),
        run(theirs, through, tensors, "default"),
        tolerance,
        tolerance,
    )


@pytest.fixture(scope="module")
def ppo():
    """The example's module."""
    pytest.importorskip("sb3_contrib")
    import recurrent_ppo

    yield recurrent_ppo


# The ways in which sb3-contrib's policy has an LSTM for its critic, and layers.
POLICIES = {
    "two": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "actor": {"enable_critic_lstm": False},
    "layers": {"n_lstm_layers": 2},
}
every_policy = pytest.mark.parametrize("kind", POLICIES)
STEPS, ROWS, HIDDEN = 12, 5, 16


def make_policy(ppo, which, kind, dtype):
    """The same weights each time, larger than at first, lest gradients are too small to tell.

    sb3's features are float32, whatever the policy's dtype.
    """
    from gymnasium.spaces import Box, Discrete
    from stable_baselines3.common.torch_layers import FlattenExtractor

    class Cast(FlattenExtractor):
        def forward(self, observations):
            return super().forward(observations).to(dtype)

    policy = which(
        Box(-3, 3, (4,)),
        Discrete(2),
        lambda _: 1e-3,
        lstm_hidden_size=HIDDEN,
        features_extractor_class=Cast,
        **POLICIES[kind],
    ).to(dtype)
    with torch.no_grad():
        for k, parameter in enumerate(policy.parameters()):
            parameter.copy_(0.5 * randn(*parameter.shape, seed=k, dtype=dtype))
    return policy


def make_batch(layers, dtype):
    """Sequences in which episodes start anywhere, also in the first step, from any states."""
    from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples, RNNStates

    shape, size = (layers, ROWS, HIDDEN), STEPS * ROWS
    states = [tuple(randn(*shape, seed=s + k, dtype=dtype) for k in (0, 1)) for s in (2, 4)]
    starts = torch.rand(ROWS, STEPS) < 0.2
    starts[:, 0] = torch.arange(ROWS) < 2
    mask = torch.arange(STEPS) < torch.randint(1, STEPS + 1, (ROWS, 1))
    unused = torch.zeros(size)
    return RecurrentRolloutBufferSamples(
        observations=torch.randn(size, 4),
        actions=torch.randint(2, (size, 1)),
        old_values=unused,
        old_log_prob=unused,
        advantages=unused,
        returns=unused,
        lstm_states=RNNStates(*states),
        episode_starts=starts.flatten().float(),
        mask=mask.flatten().float(),
    )


def assert_policies_agree(ppo, ours, theirs, data, tolerance):
    found, expected = (ppo.evaluate(policy, data) for policy in (ours, theirs))
    close(found[0], expected[0], tolerance, "values, log probabilities and entropies")
    assert found[1].keys() == expected[1].keys()
    assert any("lstm" in name for name in expected[1])
    for name, gradient in expected[1].items():
        close(found[1][name], gradient, tolerance, f"gradient of {name}")


@every_dtype
@every_policy
def test_recurrent_ppo_converted(ppo, kind, dtype):
    """sb3-contrib's policy, loop over time and all, on our LSTM."""
    theirs = make_policy(ppo, ppo.RecurrentActorCriticPolicy, kind, dtype)
    ours = copy.deepcopy(theirs)
    assert rnnkit.convert(ours) is ours
    assert type(ours.lstm_actor) is rnnkit.LSTM
    assert {type(m).__module__ for m in (ours.lstm_actor, ours.lstm_critic) if m} == {
        "rnnkit.layers.rnn"
    }
    data = make_batch(ours.lstm_actor.num_layers, dtype)
    assert_policies_agree(ppo, ours, theirs, data, TOLERANCES[dtype])


@every_dtype
@every_policy
def test_recurrent_ppo_in_one_call(ppo, kind, dtype):
    """With resets for its loop, and the state after it too."""
    theirs = make_policy(ppo, ppo.RecurrentActorCriticPolicy, kind, dtype)
    ours = make_policy(ppo, ppo.ResetsPolicy, kind, dtype)
    assert type(ours.lstm_actor) is rnnkit.LSTM
    data = make_batch(ours.lstm_actor.num_layers, dtype)
    assert_policies_agree(ppo, ours, theirs, data, TOLERANCES[dtype])
    with torch.no_grad():
        states = [
            policy(data.observations, data.lstm_states, data.episode_starts, deterministic=True)[3]
            for policy in (ours, theirs)
        ]
    for found, expected in zip(*states, strict=True):
        for a, b in zip(found, expected, strict=True):
            close(a, b, TOLERANCES[dtype], "state")


def make_agents(ppo):
    """RecurrentPPO with its own policy and with ours, from the same seeds."""
    options = {
        "learning_rate": 0.05,
        "n_epochs": 2,
        "policy_kwargs": {"lstm_hidden_size": HIDDEN, "optimizer_class": torch.optim.SGD},
    }
    policies = (ppo.RecurrentActorCriticPolicy, ppo.ResetsPolicy)
    return [ppo.make_agent(policy, "CartPole-v1", 32, 2, **options) for policy in policies]


def test_recurrent_ppo_learns_the_same(ppo):
    """Two rollouts of CartPole, and the updates from each, end in the same weights."""
    theirs, ours = make_agents(ppo)
    before = copy.deepcopy(theirs.policy.state_dict())
    for agent in (theirs, ours):
        torch.manual_seed(0)
        agent.set_random_seed(0)
        agent.learn(2 * 64)
    pairs = zip(ours.policy.named_parameters(), theirs.policy.parameters(), strict=True)
    for (name, a), b in pairs:
        close(a.detach(), b.detach(), 1e-5, name)
        assert not torch.equal(b, before[name]), name


def test_recurrent_ppo_pads(ppo):
    """A rollout as RecurrentPPO hands it over: a sequence an episode, padded to the longest."""
    theirs, ours = make_agents(ppo)
    data = ppo.collect(theirs)
    assert not data.mask.bool().all() and data.episode_starts.any()
    ours.policy.load_state_dict(theirs.policy.state_dict())
    assert_policies_agree(ppo, ours.policy, theirs.policy, data, 1e-5)


def test_recurrent_ppo_saves_and_loads(ppo, tmp_path):
    """A file holds weights and the policy's class, which converts itself when it is made."""
    _, agent = make_agents(ppo)
    agent.save(tmp_path / "agent")
    loaded = ppo.RecurrentPPO.load(tmp_path / "agent", device="cpu")
    assert type(loaded.policy) is ppo.ResetsPolicy
    assert type(loaded.policy.lstm_actor) is rnnkit.LSTM
    observations, state, start = [[0.1, 0.2, 0.3, 0.4]], None, None
    for _ in range(3):
        found, expected = (
            a.policy.predict(torch.tensor(observations).numpy(), state, start, deterministic=True)
            for a in (loaded, agent)
        )
        assert (found[0] == expected[0]).all()
        for a, b in zip(found[1], expected[1], strict=True):
            assert (a == b).all()
        state = found[1]


def test_recurrent_ppo_example(ppo, capsys):
    threads = torch.get_num_threads()
    times = ppo.main(["--steps", "16", "--envs", "2", "--hidden", "8", "--rounds", "2"])
    torch.set_num_threads(threads)
    assert all(seconds > 0 for seconds in times)
    assert "resets" in capsys.readouterr().out
