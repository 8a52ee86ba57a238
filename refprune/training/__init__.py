"""Training W and θ at once: configuration, state, steps, removals, the decision of every gate at the end.

For others:

- `config`: the keys of an experiment, read, checked and written.
- `state`: the arrays that training changes, before the first step.
- `images`: a data set as the network takes it, in mini-batches.
- `loop`: training from a state to its end, as events.
- `step`: one step of momentum SGD on W and projected SGD on θ.
- `removal`: the gates that the rule removes, and the state without them.
- `decide`: every gate to 0 or 1, at the end or before.
- `evaluate`: loss, accuracy and objective of a state on images.
- `checkpoint`: a state in two files, to the bit.
"""
