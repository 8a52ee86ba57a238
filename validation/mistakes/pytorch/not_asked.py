"""Catalogued mistakes that no method of an implementation can show, each with the reason."""

from __future__ import annotations

_SAMPLES = "no method asks for samples of weights"
_LOGARITHM = "no method asks for log π* or the KL made of it: an intermediate of refprune's own"
_CONVERSION = "conversion of a configuration: every method is given λ and β per sample"
_COMPLEX = "right in real arithmetic; wrong for refprune's own complex step"
_RUN = "refprune's own training run, its rules and its book-keeping: no method asks for a run with removals in it"
_STREAMS = "refprune's own random streams: every method is given its random numbers"
_END = "the decision at the end of refprune's own runs"
_CRITERION = "methods are asked for similarities, not for what is removed by them"
_FLOW = "refprune's own integrator and comparison system of the dynamics; `attracted` asks for the domain alone"
_KAPPA = "refprune's own estimate of κ and ‖W‖; `attracted` is given both"
_REPORT = "refprune's own reports: no method asks for it"
_JUDGE = "the judging itself"

_BOX = "`attracted` asks for the domain of one gate; the box of several is refprune's own rule"
_SADDLE = "no method asks for the way out of a stationary point"

NOT_ASKED: dict[str, str] = {
    "Laplace scale with mean b² instead of 2b²": _SAMPLES,
    "half-Cauchy standard deviation taken for the variance": _SAMPLES,
    "gamma scale instead of inverse gamma": _SAMPLES,
    "samples with the scale for its root": _SAMPLES,
    "spike and slab swapped in samples": _SAMPLES,
    "weight decay of the data set not divided by N": _CONVERSION,
    "scaling of the data set ignored": _CONVERSION,
    "1/N dropped in log γ": _CONVERSION,
    "ν not divided by N": _CONVERSION,
    "density without its normaliser": "`hyper_prior` asks for the logarithm, where the same mistake is made",
    "normaliser of 1/γ": "refprune's log-density has its own; in an implementation both show it, which is made",
    "sign of log γ in log π*": _LOGARITHM,
    "log π* and log(1−π*) swapped": _LOGARITHM,
    "KL through π* itself": _LOGARITHM,
    "KL of F3 off by 1e-10 beyond |log γ| = 40": _LOGARITHM,
    "empty sections closed in silence": "`compact` gives numbers, refprune's own report names what it closed",
    "biased variance re-estimated": "no method asks for re-estimated statistics",
    "LeNet-5 with padding": "refprune's own zoo",
    "sigmoid that overflows": _COMPLEX,
    "ReLU with a modulus": _COMPLEX,
    "a step without weight decay": 'refprune\'s own step; in an implementation it is "no weight decay", made there',
    "schedule without effect": _RUN,
    "falling schedule without its power": _RUN,
    "momenta lost at a removal": _RUN,
    "the other gates are removed": _RUN,
    "start forgotten at a removal": _RUN,
    "either rule is enough": _RUN,
    "a plain layer may lose all its units": _RUN,
    "gates that nothing presses on left open": _RUN,
    "reference moved along with the pruning": _RUN,
    "step left out of the stream's name": _STREAMS,
    "uniforms of 52 bits": _STREAMS,
    "normals of twice the variance": _STREAMS,
    "permutation reversed": _STREAMS,
    "the worse vertex is taken": _END,
    "undecided gates not listed": _END,
    "vertices compared by the loss alone": _END,
    "flow without projection": _FLOW,
    "an end is never left": _FLOW,
    "saddle at half of λ": _FLOW + "; made there as a domain",
    "eigenvalues of λ = 0": _FLOW + "; made there as a domain",
    "time bound too short": _FLOW,
    "w_c five times too large": _FLOW,
    "comparison with twice the decay": _FLOW,
    "field without its pull": _FLOW,
    "field without decay": _FLOW,
    "block without its bias": _KAPPA,
    "a unit's row for its column": _KAPPA,
    "norm not drawn the root of": _KAPPA,
    "smallest slope taken for κ": _KAPPA,
    "steps with a closed gate counted": _KAPPA,
    "κ without its factor": _KAPPA,
    "rule without its warm-up": _KAPPA,
    "gates around grouped convolutions let through": "refprune refuses such specs: none is asked",
    "share of the pruned network in itself": _REPORT,
    "rows of layers at the likelier gates": _REPORT,
    "one FLOP a multiply-accumulate": _REPORT,
    "training counted as inference": _REPORT,
    "backward passes not counted": _REPORT,
    "passes of `paired` not counted": _REPORT,
    "expected size at the likelier gates": _REPORT,
    "degenerate input as a silent NaN": "a status of refprune's own; a method answers with a number",
    "a stage goes down to one block": _CRITERION,
    "the section with the highest score goes": _CRITERION,
    "bound of a sum: γ without n": _JUDGE,
    "size of a sum's rounding error without √n": _JUDGE,
    "given branches not taken": _JUDGE,
    "tolerance of a network 1000 times too wide": _JUDGE,
    "tolerance of a network 100 times too narrow": _JUDGE,
    "mixed derivative times θ": _SADDLE,
    "curvature left out of the escape": _SADDLE,
    "every activation scales": _RUN,
    "no activation scales": _RUN,
    "logarithms of Γ subtracted": "no example has degrees of freedom so many that they cancel",
    "features not scaled": "no example has features beyond 2^±100",
    "emptied sections paid for": "methods are asked for the cost with emptied sections kept",
    "weights taken to stay": _BOX,
    "section in the box without its bias": _BOX,
    "units of a section taken to be open": _BOX,
}
