"""RecurrentPPO of sb3-contrib on rnnkit's LSTM: one call with `resets` instead of a loop over time.

    pip install sb3-contrib
    python examples/recurrent_ppo.py --env CartPole-v1

sb3-contrib's policy calls its LSTM once for every time step if an episode starts anywhere in a
batch. The policy here, which RecurrentPPO takes as it takes its own, calls it once. This collects a
rollout, shows that both give the same values and gradients for it, and how long they take.
"""

import argparse
import statistics
import time
from typing import Any, NamedTuple

import torch
from gymnasium.spaces import Discrete
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor

import rnnkit


class ResetsPolicy(RecurrentActorCriticPolicy):
    """RecurrentPPO's policy on rnnkit's LSTM: RecurrentPPO(ResetsPolicy, env)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rnnkit.convert(self)

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
    ) -> tuple[Tensor, Any]:
        """All steps of B sequences in one call.

        Args:
            features: (B * T, I), one sequence after the other, padded to one length.
            lstm_states: h and c, (layers, B, H), of the step before.
            episode_starts: (B * T): 1 where a step is the first of an episode, else 0.
            lstm: the rnnkit.LSTM of the actor or of the critic.

        Returns the outputs (B * T, H) and the last h and c.
        """
        rows = lstm_states[0].shape[1]
        x = features.unflatten(0, (rows, -1)).transpose(0, 1)
        resets = episode_starts.bool().view(rows, -1).T
        output, state = lstm(x, lstm_states, resets=resets)
        return output.transpose(0, 1).flatten(0, 1), state


def make_agent(policy: Any, env: str, steps: int, envs: int, **options: Any) -> Any:
    """An agent that learns from `steps` steps of `envs` environments in one batch."""
    return RecurrentPPO(
        policy,
        make_vec_env(env, envs, seed=0),
        n_steps=steps,
        batch_size=steps * envs,
        seed=0,
        device="cpu",
        **options,
    )


def collect(agent: Any) -> RecurrentRolloutBufferSamples:
    """One rollout, as RecurrentPPO hands it to the policy."""
    steps = agent.n_steps * agent.n_envs
    agent.learn(steps)
    return next(agent.rollout_buffer.get(steps))


def evaluate(
    policy: RecurrentActorCriticPolicy, data: RecurrentRolloutBufferSamples
) -> tuple[Tensor, dict[str, Tensor]]:
    """Values, log probabilities and entropies (3, steps) of a batch; and, of their mean square, the
    gradient of every parameter that has one."""
    policy.zero_grad()
    discrete = isinstance(policy.action_space, Discrete)
    actions = data.actions.long().flatten() if discrete else data.actions
    values, log_probs, entropy = policy.evaluate_actions(
        data.observations, actions, data.lstm_states, data.episode_starts
    )
    found = torch.stack([values.flatten(), log_probs, entropy])
    found[:, data.mask > 1e-8].square().mean().backward()
    gradients = {k: v.grad for k, v in policy.named_parameters() if v.grad is not None}
    return found.detach(), gradients


def differences(
    a: RecurrentActorCriticPolicy,
    b: RecurrentActorCriticPolicy,
    data: RecurrentRolloutBufferSamples,
) -> tuple[float, float]:
    """The largest differences of results and of gradients."""
    (found, gradients), (expected, others) = evaluate(a, data), evaluate(b, data)
    largest = [(gradients[name] - others[name]).abs().max() for name in gradients]
    return float((found - expected).abs().max()), float(max(largest))


class Times(NamedTuple):
    """Medians of the seconds of evaluate."""

    theirs: float  # sb3-contrib's policy as it is
    converted: float  # the same with its layers converted
    resets: float  # ResetsPolicy


def measure(
    policies: list[RecurrentActorCriticPolicy], data: RecurrentRolloutBufferSamples, rounds: int
) -> Times:
    """Turn about, so that all meet the same machine."""
    seconds: list[list[float]] = [[] for _ in policies]
    for _ in range(1 + rounds):
        for policy, log in zip(policies, seconds, strict=True):
            start = time.perf_counter()
            evaluate(policy, data)
            log.append(time.perf_counter() - start)
    # The first round warms up.
    return Times(*(statistics.median(log[1:]) for log in seconds))


def main(argv: list[str] | None = None) -> Times:
    """Read the command line, collect, compare and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="CartPole-v1", help="default %(default)s")
    parser.add_argument("--steps", type=int, default=128, help="default %(default)s")
    parser.add_argument("--envs", type=int, default=8, help="default %(default)s")
    parser.add_argument("--hidden", type=int, default=256, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="default %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    options: dict[str, Any] = {"policy_kwargs": {"lstm_hidden_size": args.hidden}, "n_epochs": 1}
    size = (args.env, args.steps, args.envs)
    agent = make_agent(RecurrentActorCriticPolicy, *size, **options)
    data, theirs = collect(agent), agent.policy
    converted, ours = (
        make_agent(policy, *size, **options).policy
        for policy in (RecurrentActorCriticPolicy, ResetsPolicy)
    )
    rnnkit.convert(converted)
    for policy in (converted, ours):
        policy.load_state_dict(theirs.state_dict())
    rows = data.lstm_states.pi[0].shape[1]
    print(f"{args.env}: {args.steps} steps of {args.envs} environments, {rows} sequences of")
    print(f"{len(data.mask) // rows} steps with padding, {args.hidden} units")
    results, gradients = differences(theirs, ours, data)
    print(f"Largest difference: results {results:.1e}, gradients {gradients:.1e}")
    times = measure([theirs, converted, ours], data, args.rounds)
    print("Forward and backward, medians:")
    for name, value in times._asdict().items():
        print(f"  {name:9}  {1e3 * value:7.1f} ms  {times.theirs / value:5.2f} x")
    return times


if __name__ == "__main__":
    main()
