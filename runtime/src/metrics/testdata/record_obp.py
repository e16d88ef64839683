"""Records the estimates of the Open Bandit Pipeline on a made-up log, for offpolicy_tests.rs.

    python3 -m venv .venv && .venv/bin/pip install numpy scikit-learn pandas tqdm pyyaml matplotlib seaborn mypy_extensions
    .venv/bin/pip install --no-deps obp==0.4.1
    .venv/bin/python record_obp.py > obp.json

The package's own requirements (torch among them) are only for parts that are not used here; names it imports from them are
stood in for.
"""
import json
import sys
import types


class _Anything(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


for name in ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils", "torch.utils.data", "pyieoe", "pyieoe.evaluator"):
    try:
        __import__(name)
    except ImportError:
        sys.modules[name] = _Anything(name)

import numpy as np  # noqa: E402
import obp  # noqa: E402
from obp.ope import DoublyRobust, InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting  # noqa: E402

N, A = 400, 4
rng = np.random.default_rng(20_261_128)
chance = rng.uniform(size=(N, A))
logits = chance + rng.normal(0, 0.5, size=(N, A))
mu_all = np.exp(2 * logits) / np.exp(2 * logits).sum(1, keepdims=True)
action = np.array([rng.choice(A, p=p) for p in mu_all])
rows = np.arange(N)
mu = mu_all[rows, action].round(6)
reward = (rng.uniform(size=N) < chance[rows, action]).astype(float)
target = np.zeros((N, A))
target[rows, (chance + rng.normal(0, 0.2, size=(N, A))).argmax(1)] = 1.0
# A quarter of the decisions of a rule that is not certain either.
target[: N // 4] = 0.7 * target[: N // 4] + 0.3 / A
model = np.clip(chance + rng.normal(0, 0.3, size=(N, A)), 0, 1).round(4)

given = dict(reward=reward, action=action, pscore=mu, action_dist=target[:, :, None])
estimates = dict(
    ips=InverseProbabilityWeighting().estimate_policy_value(**given),
    snips=SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**given),
    dr=DoublyRobust().estimate_policy_value(**given, estimated_rewards_by_reg_model=model[:, :, None]),
)
json.dump(
    dict(
        obp=obp.__version__,
        actions=A,
        action=action.tolist(),
        mu=mu.tolist(),
        reward=reward.tolist(),
        target=target.tolist(),
        model=model.tolist(),
        **{k: float(v) for k, v in estimates.items()},
    ),
    sys.stdout,
)
