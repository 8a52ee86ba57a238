"""An adapter that provides every method and is wrong in all of them; as a file that `refprune verify` loads."""

import numpy as np

import refprune
from refprune.backend import ORACLE
from refprune.conformance.levels import METHODS


class Wrong(refprune.Implementation):
    """The oracle's answers, moved; flags turned round."""

    conventions = refprune.EVERY

    def theta_sample(self, **arguments):
        return np.full((arguments["draws"], len(arguments["theta"])), 0.125)


def _spoilt(a):
    a = np.asarray(a)
    return ~a if a.dtype == bool else a + 1 if a.dtype.kind in "iu" else a * 1.25 + 0.5


def _wrong(name):
    def answer(self, **arguments):
        hidden = {"_estimator": self.estimator} if name == "theta_estimate" else {}
        return {n: _spoilt(a) for n, a in METHODS[name].values(arguments | hidden, ORACLE).items()}

    return answer


for _name in METHODS:
    setattr(Wrong, _name, _wrong(_name))


class Drawn(Wrong):
    """Estimates that cannot be repeated."""

    deterministic = False
